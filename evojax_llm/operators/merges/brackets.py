"""Brackets about the k-th largest, which counting passes narrow.

A float that is not negative orders as its bits do, so the search is one over
whole numbers. A pass narrows a bracket, two thresholds and what is at or above
each, to two neighbours among the thresholds where it counts. They are placed
where linear interpolation expects the k-th largest, and as far around as such a
guess is off: about the root of n numbers spread at random. Where numbers are so
uneven that this fails, every fourth pass divides the bracket evenly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# A wider bracket of bits holds several powers of two, and no line.
WIDE = 1 << 24
# Above all bits of numbers.
TOP = 0x7FFFFFFF


def size_bits(values: jax.Array) -> jax.Array:
  """I32 that orders as the sizes of f32 values; NaN is above infinity.

  Compared and sorted faster than floats, of which two zeros and NaN differ.
  """
  return lax.bitcast_convert_type(jnp.abs(values), jnp.int32)


class Cut(NamedTuple):
  """Where the k largest end: bits () i32 above `value`, or equal and early.

  An element equal to `value` is in if there are at least `rest` () i32 elements
  from it to the end of the tensor.
  """

  value: jax.Array
  rest: jax.Array


class Bracket(NamedTuple):
  """At least k bits are at or above low, fewer at or above high; (s,) i32.

  The counts are of what is at or above either, in all and in each of the rows,
  (s, rows) i32.
  """

  low: jax.Array
  low_count: jax.Array
  low_rows: jax.Array
  high: jax.Array
  high_count: jax.Array
  high_rows: jax.Array

  @property
  def within(self) -> jax.Array:
    """Elements from low to below high, (s,) i32."""
    return self.low_count - self.high_count


def search(
  count: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
  k: jax.Array,
  bracket: Bracket,
  enough: int,
  m: int,
  *,
  first: jax.Array | None = None,
  exact: bool = False,
) -> Bracket:
  """Narrows brackets until `enough` are within, or equals.

  Args:
    count: how many are at or above thresholds (s, m), as a bracket has it; is
      told which searches (s,) go on.
    k: (s,) i32.
    bracket: to begin with.
    enough: elements within, at most.
    m: thresholds of a pass.
    first: thresholds (s, m) of the first pass; None where numbers are no bits
      of floats, and all brackets are divided evenly.
    exact: whether a bracket whose low leaves exactly k is narrowed on.
  """

  def is_open(b):
    found = (k <= 0) | (b.high - b.low <= 1) | (b.within <= enough)
    return ~(found if exact else found | (b.low_count == k))

  def step(state):
    passes, b = state
    part = jnp.maximum((b.high - b.low) // (m + 1), 1)
    at = b.low[:, None] + part[:, None] * jnp.arange(1, m + 1)
    if first is not None:
      divide = (b.high - b.low > WIDE) | (passes % 4 == 3)
      inside = jnp.maximum(b.within, 1).astype(jnp.float32)
      rank = (b.low_count - k).astype(jnp.float32)
      deviation = jnp.sqrt(jnp.maximum(rank * (1.0 - rank / inside), 0.25))
      # Between the k-th largest and the next.
      line = around(b.low, b.high, b.within, rank + 0.5, deviation, m)
      at = jnp.where(divide[:, None], at, line)
      at = jnp.where(passes == 0, first, at)
    at = jnp.clip(at, b.low[:, None] + 1, b.high[:, None] - 1)
    # A search that has ended keeps its bracket.
    still = is_open(b)
    return passes + 1, _narrowed(b, k, at, *count(at, still), still)

  return lax.while_loop(
    lambda state: jnp.any(is_open(state[1])), step, (jnp.int32(0), bracket)
  )[1]


def _narrowed(bracket, k, at, counts, rows, still):
  """The tightest bracket that counts at thresholds (s, m) give."""
  # Thresholds increase, so that the first few leave k or more.
  below = jnp.sum(counts >= k[:, None], axis=1)

  def picked(old, each, at):
    known = still & (at >= 0) & (at < each.shape[1])
    known = known.reshape(known.shape + (1,) * (old.ndim - 1))
    found = jax.vmap(taken)(each, jnp.clip(at, 0, each.shape[1] - 1))
    return jnp.where(known, found, old)

  each = at, counts, rows
  return Bracket(
    *(picked(o, e, below - 1) for o, e in zip(bracket[:3], each, strict=True)),
    *(picked(o, e, below) for o, e in zip(bracket[3:], each, strict=True)),
  )


def about(
  ordered: jax.Array,
  k: jax.Array,
  size: jax.Array | int,
  spread: jax.Array,
) -> jax.Array:
  """Elements of sorted samples (s, n) about the k-th largest of `size`.

  `spread` (m,) says how many deviations of its rank apart.
  """
  count = ordered.shape[1]
  rank = jnp.clip(k.astype(jnp.float32) * (count / size), 0.5, count - 0.5)
  deviation = jnp.sqrt(rank * (1.0 - rank / count)) + 0.5
  place = (count - rank)[:, None] + deviation[:, None] * spread
  place = jnp.clip(jnp.round(place).astype(jnp.int32), 0, count - 1)
  return jnp.take_along_axis(ordered, place, axis=1)


def around(
  low: jax.Array,
  high: jax.Array,
  within: jax.Array,
  rank: jax.Array,
  deviation: jax.Array,
  m: int,
) -> jax.Array:
  """Thresholds (s, m) i32 about a rank (s,) f32, if sizes lie on a line.

  The rank is from low on, and `within` (s,) i32 are below high; `deviation`
  (s,) f32 is by how many numbers the guess is off. Sizes, as their bits bend
  at each power of two.
  """
  low, high = (lax.bitcast_convert_type(x, jnp.float32) for x in (low, high))
  step = (high - low) / (within.astype(jnp.float32) + 1.0)
  points = rank[:, None] + deviation[:, None] * spread(m)
  return size_bits(jnp.maximum(low[:, None] + step[:, None] * points, 0.0))


def spread_numbers(m: int) -> list[float]:
  """M deviations, close to zero and up to three or more."""
  x = [(2 * j + 1 - m) / m for j in range(m)]
  return [2.4 * y / (1.0 - 0.45 * y * y) for y in x]


def spread(m: int) -> jax.Array:
  """(m,) f32 of `spread_numbers`."""
  return jnp.asarray(spread_numbers(m), jnp.float32)


def taken(rows: jax.Array, index: jax.Array) -> jax.Array:
  """Rows at indices that exist."""
  return rows.at[index].get(mode='promise_in_bounds')
