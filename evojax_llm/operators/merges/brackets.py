"""Where a count falls to k: a search that counts at several points at once.

A bracket is two thresholds and how many whole numbers are at or above each; a
pass narrows it to two neighbours among those where it counts. They are placed
where linear interpolation expects the k-th largest, and as far around as such a
guess is off: about the root of n numbers spread at random. Where numbers are so
uneven that this fails, every fourth pass divides the bracket evenly.

Several searches go together, and all arrays have their axis (s,); thresholds
are (s, m), the largest last.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# A pass counts at about so many thresholds in all: more cost more than they
# narrow.
_COUNTED = 16
_MOST = 8
# A wider bracket of the bits of floats holds several exponents, and no line.
_WIDE = 1 << 24

_TOP = 0x7FFFFFFF
_LARGEST = 2147483520.0  # below 2^31, in f32.

Count = Callable[[jax.Array], jax.Array]


class Bracket(NamedTuple):
  """At least k numbers are at or above low, fewer at or above high; (s,) i32.

  The counts are of the numbers at or above either.
  """

  low: jax.Array
  low_count: jax.Array
  high: jax.Array
  high_count: jax.Array

  @property
  def within(self) -> jax.Array:
    """Numbers from low to below high, (s,) i32."""
    return self.low_count - self.high_count


def start(
  k: jax.Array,
  low: jax.Array | int,
  count: jax.Array | int,
  high: jax.Array | int,
) -> Bracket:
  """`count` numbers from low to below high, for each of k (s,)."""
  low, count, high = (
    jnp.broadcast_to(jnp.asarray(value, jnp.int32), k.shape)
    for value in (low, count, high)
  )
  return Bracket(low, count, high, jnp.zeros_like(low))


def around(
  bracket: Bracket, k: jax.Array, deviation: jax.Array | None = None
) -> jax.Array:
  """Thresholds (s, m) i32 about the k-th (s,) largest, if numbers lie on a
  line.

  `deviation` (s,) f32 is by how many numbers the guess is off; that of numbers
  spread at random by default.
  """
  within = jnp.maximum(bracket.within, 1).astype(jnp.float32)
  rank = (k - bracket.high_count).astype(jnp.float32)
  if deviation is None:
    deviation = jnp.sqrt(jnp.maximum(rank * (1.0 - rank / within), 0.25))
  step = (bracket.high - bracket.low).astype(jnp.float32) / (within + 1.0)
  # Between the k-th largest and the next, and around as a Cauchy distribution
  # has its quantiles: close by, with tails.
  m = _thresholds(k)
  spread = [math.tan(math.pi * ((j + 0.5) / m - 0.5)) for j in range(m)]
  points = (within - rank + 0.5)[:, None] + deviation[:, None] * jnp.asarray(
    spread, jnp.float32
  )
  return _above(bracket.low, step[:, None] * points)


def narrow(
  bracket: Bracket, k: jax.Array, at: jax.Array, counts: jax.Array
) -> Bracket:
  """The tightest bracket that counts (s, m) at thresholds (s, m) give."""
  below = counts >= k[:, None]

  def tightest(pick, old, values, where):
    kept = jnp.where(where, values, old[:, None])
    return pick(jnp.stack([old, pick(kept, axis=1)]), axis=0)

  return Bracket(
    tightest(jnp.max, bracket.low, at, below),
    tightest(jnp.min, bracket.low_count, counts, below),
    tightest(jnp.min, bracket.high, at, ~below),
    tightest(jnp.max, bracket.high_count, counts, ~below),
  )


def search(
  bracket: Bracket,
  k: jax.Array,
  count: Count,
  *,
  enough: int = 0,
  exact: bool = False,
  where: jax.Array | bool = True,
) -> Bracket:
  """Narrows until `low` leaves exactly k (s,), or is the k-th largest.

  Args:
    bracket: to begin with.
    k: (s,) i32; nothing is searched where it is zero.
    count: gives counts (s, m) at thresholds (s, m).
    enough: ends as well where so many numbers, or fewer, are within.
    exact: whether `low` must be the k-th largest.
    where: (s,) bool, the searches that are made.
  """
  m = _thresholds(k)

  def is_open(b):
    found = (k <= 0) | (b.high - b.low <= 1) | (b.within <= enough)
    return where & ~(found if exact else found | (b.low_count == k))

  def step(state):
    passes, b = state
    width = (b.high - b.low).astype(jnp.float32)[:, None]
    evenly = _above(b.low, width * (jnp.arange(1.0, m + 1) / (m + 1)))
    divide = (b.high - b.low > _WIDE) | (passes % 4 == 3)
    at = jnp.where(divide[:, None], evenly, around(b, k))
    at = jnp.clip(at, b.low[:, None] + 1, b.high[:, None] - 1)
    # A search that has ended keeps numbers enough to draw a line through.
    new, still = narrow(b, k, at, count(at)), is_open(b)
    new = Bracket(
      *(jnp.where(still, n, o) for n, o in zip(new, b, strict=True))
    )
    return passes + 1, new

  return lax.while_loop(
    lambda state: jnp.any(is_open(state[1])), step, (jnp.int32(0), bracket)
  )[1]


def _thresholds(k):
  return min(max(_COUNTED // k.shape[0], 2), _MOST)


def _above(low, offset):
  """low + offset, (s, m) i32 from zero on; low (s,) i32, offset (s, m) f32."""
  low = low[:, None]
  offset = jnp.clip(offset, -low.astype(jnp.float32), _LARGEST)
  return low + jnp.minimum(offset.astype(jnp.int32), _TOP - low)
