"""The k largest of a tensor by a few counting passes, without a sort.

A float that is not negative orders as its bits do, so the search is over
integers: a sorted sample brackets the k-th largest, and each pass counts at
the threshold where linear interpolation expects it. An interpolation that is m
elements off leaves the next one about the root of m off, so that it ends, as
soon as a threshold leaves k elements, after about six passes over millions.
Where values are so uneven that it does not, every other pass halves what is
left: 70 are the most.

Of equal values at the threshold those of lowest index are kept, so that
exactly k are.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import tensors

SAMPLE = 8192
_TRUSTED = 8  # passes that interpolate before every other one halves.
_TOP = 0x7FFFFFFF


class Cut(NamedTuple):
  """Where the k largest end: bits above `value`, or equal and early enough.

  Attributes:
    value: () i32 bits.
    rest: () i32; an element equal to `value` is in if there are at least
      `rest` elements from it to the end of the tensor.
  """

  value: jax.Array
  rest: jax.Array


class _Bracket(NamedTuple):
  """low has at least k elements at or above it, high has fewer."""

  low: jax.Array
  low_count: jax.Array
  high: jax.Array
  high_count: jax.Array


def _bits(values):
  """I32 that orders as abs(values) does; NaN is above infinity."""
  return lax.bitcast_convert_type(jnp.abs(values), jnp.int32)


def share(density: jax.Array, count: jax.Array | int) -> jax.Array:
  """Floor(density * count), i32 in [0, count].

  The product is rounded to f32 before the floor, so that 0.7 of ten is seven;
  above 2^24 elements it is exact to f32's precision.
  """
  count = jnp.asarray(count, jnp.int32)
  product = jnp.clip(density, 0.0, 1.0) * count.astype(jnp.float32)
  return jnp.minimum(jnp.floor(product).astype(jnp.int32), count)


def at_least_one(density: jax.Array, count: int) -> jax.Array:
  """As `share`, but one where a positive density of few elements is none."""
  return jnp.where(density > 0.0, jnp.maximum(share(density, count), 1), 0)


def top(values: jax.Array, k: jax.Array) -> Cut:
  """Finds where the k largest by size of a tensor end.

  Args:
    values: f32, any shape.
    k: () i32 in [0, size].

  Returns:
    The cut; `inside` tells the k elements.
  """
  size = values.size

  def count(at):
    return _count(_bits(_held(at, values)), at)

  bracket = _Bracket(*map(jnp.int32, (0, size, _TOP, 0)))
  bracket = _narrow(bracket, k, _sampled(values, k), count)
  bracket = _search(bracket, k, count)
  # Equal values are told apart by what is left of the tensor after them.
  ties = bracket.low_count - bracket.high_count
  wanted = jnp.where(bracket.low_count == k, ties, k - bracket.high_count)

  def count_early(rests):
    held, one = _held(rests, values, jnp.int32(1))
    rest = size - _places(values.shape, one)
    early = jnp.where(_bits(held) == bracket.low, rest, 0)
    return _count(early, rests)

  early = _Bracket(jnp.int32(1), ties, jnp.int32(size + 1), jnp.int32(0))
  rest = _search(early, wanted, count_early).low
  return Cut(jnp.where(k > 0, bracket.low, _TOP), jnp.where(k > 0, rest, _TOP))


def inside(values: jax.Array, cut: Cut) -> jax.Array:
  """Whether each element is among the k largest; bool as `values`."""
  bits = _bits(values)
  rest = values.size - draws.places(values.shape, jnp.int32)
  tied = (bits == cut.value) & (rest >= cut.rest)
  return (bits > cut.value) | tied


def kth_largest(values: jax.Array, k: jax.Array) -> jax.Array:
  """The k-th largest size, () f32; k in [1, size]."""
  bits = _bits(values)
  last = jnp.min(jnp.where(bits >= top(values, k).value, bits, _TOP))
  return lax.bitcast_convert_type(last, jnp.float32)


def _held(at, *values):
  """The values, held back from being hoisted out of the loop that sets `at`.

  What is hoisted is computed even if the loop never runs, and stored.
  """
  _, *held = lax.optimization_barrier((at, *values))
  return held if len(held) > 1 else held[0]


def _places(shape, one):
  """Each element's index; `one` keeps it in the loop that computes that."""
  place = jnp.zeros(shape, jnp.int32)
  for axis in range(len(shape)):
    along = lax.broadcasted_iota(jnp.int32, shape, axis)
    place = place + along * (one * math.prod(shape[axis + 1 :]))
  return place


def _count(values, thresholds):
  """(m,) i32: how many values are at or above each of (m,) thresholds."""
  return tensors.counts([values >= t for t in thresholds])


def _sampled(values, k):
  """(m,) thresholds around the k-th largest, from a sorted sample."""
  flat = values.reshape(-1)
  stride = -(-flat.size // SAMPLE)
  sample = jnp.sort(_bits(flat[::stride]))
  size = sample.size
  # Standard deviations of a sampled rank; none where all is sampled.
  spread = jnp.asarray([-4.0, 4.0]) if stride > 1 else jnp.zeros(2)
  place = size - k.astype(jnp.float32) * (size / flat.size)
  index = jnp.floor(place + spread * (0.5 * size**0.5)).astype(jnp.int32)
  # One more above, so that a k-th largest that is sampled is bracketed.
  return sample[jnp.clip(index, 0, size - 1)] + jnp.asarray([0, 1], jnp.int32)


def _narrow(
  bracket: _Bracket,
  k: jax.Array,
  thresholds: jax.Array,
  count: Callable[[jax.Array], jax.Array],
) -> _Bracket:
  """One pass: the tightest bracket that the thresholds give."""
  counts = count(thresholds)
  below = counts >= k
  low = jnp.max(jnp.where(below, thresholds, bracket.low))
  high = jnp.min(jnp.where(below, bracket.high, thresholds))
  return _Bracket(
    low,
    jnp.min(jnp.where(below, counts, bracket.low_count)),
    high,
    jnp.max(jnp.where(below, bracket.high_count, counts)),
  )


def _search(bracket, k, count):
  """Narrows until `low` leaves exactly k, or is the k-th largest."""

  def unsettled(state):
    _, b = state
    return (b.high - b.low > 1) & (b.low_count != k)

  def step(state):
    passes, b = state
    within = jnp.maximum(b.low_count - b.high_count, 1).astype(jnp.float32)
    share = (b.low_count - k).astype(jnp.float32) / within
    halve = (passes >= _TRUSTED) & (passes % 2 == 0)
    width = (b.high - b.low).astype(jnp.float32)
    offset = jnp.where(halve, 0.5, share) * width
    threshold = b.low + jnp.clip(offset, 0.0, 2.0**30).astype(jnp.int32)
    threshold = jnp.clip(threshold, b.low + 1, b.high - 1)
    return passes + 1, _narrow(b, k, threshold[None], count)

  return lax.while_loop(unsettled, step, (jnp.int32(0), bracket))[1]
