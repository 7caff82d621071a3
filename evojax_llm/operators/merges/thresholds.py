"""The k largest of a tensor by a few counting passes, without a sort.

A float that is not negative orders as its bits do, so the search is one over
whole numbers (see `brackets`). All searches in the tensors of one merge share
their passes, and the tensors are computed in the loops that count. Of millions
of elements

  a sample tells where to begin,
  two passes leave some dozen candidates,
  one more finds their rows, and the rest is done on these.

Of equal values at the threshold those of lowest index are kept, so that
exactly k are.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import tensors

# A sample has one block, of a cache line, of every `_STRIDE` or more.
SAMPLE = 1 << 18
_BLOCK = 16
_STRIDE = 16
# From so many elements on, candidates are looked at in their rows.
LARGE = 1 << 20
_ROW = 512
_CANDIDATES = 128
_TOP = 0x7FFFFFFF


class Cut(NamedTuple):
  """Where the k largest end: bits () i32 above `value`, or equal and early.

  An element equal to `value` is in if there are at least `rest` () i32 elements
  from it to the end of the tensor.
  """

  value: jax.Array
  rest: jax.Array


def size_bits(values: jax.Array) -> jax.Array:
  """I32 that orders as the sizes of f32 values; NaN is above infinity.

  Compared and sorted faster than floats, of which two zeros and NaN differ.
  """
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


def top(
  of: Callable[..., list[jax.Array]],
  inputs: Sequence[jax.Array],
  ranks: Sequence[Sequence[jax.Array]],
) -> list[list[Cut]]:
  """Finds where the k largest by size end, of several tensors and k.

  Args:
    of: gives the tensors, f32, from the inputs, element by element.
    inputs: of one shape, which the tensors have as well.
    ranks: for each tensor some k, () i32 in [0, size].

  Returns:
    For each tensor the cut of each k; `inside` tells the k elements.
  """
  everywhere = _Everywhere(of, inputs, ranks)
  k = jnp.stack([k for some in ranks for k in some])
  bracket, nearby = _find(everywhere, k, exact=False)
  # Equal values are told apart by what is left of the tensor after them.
  ties = bracket.within
  wanted = jnp.where(bracket.low_count == k, ties, k - bracket.high_count)
  wanted = jnp.where(k > 0, wanted, 0)
  early = brackets.start(k, 1, ties, everywhere.size + 1)
  if nearby is not None:
    count = nearby.count_rests(bracket.low)
    early = brackets.search(early, wanted, count, where=nearby.complete)
  early = brackets.search(early, wanted, everywhere.count_rests(bracket.low))
  values = jnp.where(k > 0, bracket.low, _TOP)
  rests = jnp.where(k > 0, early.low, _TOP)
  cuts = map(Cut, values, rests)
  return [[next(cuts) for _ in some] for some in ranks]


def inside(values: jax.Array, cut: Cut) -> jax.Array:
  """Whether each element is among the k largest; bool as `values`."""
  size = size_bits(values)
  rest = values.size - draws.flat_indices(values.shape, jnp.int32)
  tied = (size == cut.value) & (rest >= cut.rest)
  return (size > cut.value) | tied


def kth_largest(
  values: jax.Array, ranks: Sequence[jax.Array | int]
) -> list[jax.Array]:
  """The k-th largest sizes of (...) f32 for some k in [1, size]; () f32."""
  k = jnp.stack([jnp.asarray(rank, jnp.int32) for rank in ranks])
  everywhere = _Everywhere(lambda x: [x], [values], [list(k)])
  bracket, _ = _find(everywhere, k, exact=True)
  return list(lax.bitcast_convert_type(bracket.low, jnp.float32))


class _Everywhere:
  """All elements of the tensors, computed anew in each loop that counts."""

  def __init__(self, of, inputs, ranks):
    self._of = of
    # Stored where they are computed: each is read in every pass.
    self._inputs = list(lax.optimization_barrier(tuple(inputs)))
    self._owners = [i for i, some in enumerate(ranks) for _ in some]
    self._shape = self._inputs[0].shape
    self.size = self._inputs[0].size

  def count(self, at):
    """How many elements are at or above each of (s, m) thresholds."""
    return _count(self._bits(_held(at, self._inputs)), at)

  def count_rests(self, value):
    """Counts those equal to `value` by what is left of the tensor."""

    def count(at):
      inputs, one = _held(at, (self._inputs, jnp.int32(1)))
      rest = self.size - _flat_indices(self._shape, one)
      return _count_equal(self._bits(inputs), value, [rest] * len(value), at)

    return count

  def sample(self):
    """The bits of blocks of elements, or None if there are too few."""
    stride = self.size // SAMPLE * _BLOCK
    stride = max(stride, _BLOCK * _STRIDE)
    blocks = self.size // stride
    if blocks < _BLOCK:
      return None

    def blocked(x):
      return x.reshape(-1)[: blocks * stride].reshape(blocks, -1)[:, :_BLOCK]

    return self._bits([blocked(x) for x in self._inputs])

  def near(self, bracket):
    """The rows that hold what is in the bracket."""
    inputs = _held(bracket.low, self._inputs)
    masks = [
      (bits >= low) & (bits < high)
      for bits, low, high in zip(
        self._bits(inputs), bracket.low, bracket.high, strict=True
      )
    ]
    found = tensors.row_counts(masks, _ROW) > 0
    order = jnp.cumsum(found, axis=1, dtype=jnp.int32)
    nth = jnp.arange(1, _CANDIDATES + 1, dtype=jnp.int32)
    rows = jax.vmap(lambda x: jnp.searchsorted(x, nth))(order)
    # Of fewer rows with candidates the others are none.
    there = nth <= order[:, -1:]
    bits = [
      self._bits([x.reshape(-1, _ROW)[row] for x in self._inputs])[i]
      for i, row in enumerate(rows)
    ]
    bits = [
      jnp.where(mask[:, None] & (x >= low) & (x < high), x, -1)
      for mask, x, low, high in zip(
        there, bits, bracket.low, bracket.high, strict=True
      )
    ]
    index = rows[..., None] * _ROW + jnp.arange(_ROW, dtype=jnp.int32)
    return _Nearby(bits, list(self.size - index), bracket)

  def _bits(self, inputs):
    """What is counted for each search."""
    sizes = [size_bits(tensor) for tensor in self._of(*inputs)]
    return [sizes[owner] for owner in self._owners]


class _Nearby:
  """The rows with the elements of a bracket; others have bits of -1.

  Attributes:
    complete: (s,) bool, whether no element of the bracket is missing.
  """

  def __init__(self, bits, rests, bracket):
    self._bits = bits
    self._rests = rests
    self._above = bracket.high_count
    self.complete = bracket.within <= _CANDIDATES

  def count(self, at):
    """As that of all elements, for thresholds in the bracket."""
    return self._above[:, None] + _count(self._bits, at)

  def count_rests(self, value):
    """As that of all elements, for values in the bracket."""
    return lambda at: _count_equal(self._bits, value, self._rests, at)


def _find(everywhere, k, exact):
  """The bracket of each k, and the elements near it if they are few of many."""
  bracket = brackets.start(k, 0, everywhere.size, _TOP)
  sample = everywhere.sample()
  if sample is not None:
    at = _sampled(sample, k, everywhere.size)
    bracket = brackets.narrow(bracket, k, at, everywhere.count(at))
  large = everywhere.size >= LARGE and not everywhere.size % _ROW
  bracket = brackets.search(
    bracket,
    k,
    everywhere.count,
    enough=_CANDIDATES if large else 0,
    exact=exact,
  )
  if not large:
    return bracket, None
  near = everywhere.near(bracket)
  bracket = brackets.search(
    bracket, k, near.count, exact=exact, where=near.complete
  )
  return bracket, near


def _sampled(sample, k, size):
  """Thresholds (s, m) about the k-th largest of all, from a sample's bits."""
  count = sample[0].size
  rank = jnp.clip(k.astype(jnp.float32) * (count / size), 1.0, count - 1.0)
  # Deviation of the rank, in the sample, of what has this rank in all.
  deviation = jnp.sqrt(rank * (1.0 - rank / count)) + 0.5
  largest = jnp.stack([jnp.max(bits) for bits in sample])
  high = jnp.minimum(largest, _TOP - 1) + 1
  rank = jnp.round(rank).astype(jnp.int32)
  bracket = brackets.search(
    brackets.start(k, 0, count, high),
    rank,
    lambda at: _count(sample, at),
    enough=2 * math.isqrt(count),
  )
  return brackets.around(bracket, rank, deviation)


def _held(at, values):
  """The values, held back from being hoisted out of the loop that sets `at`.

  What is hoisted is computed even if the loop never runs, and stored.
  """
  return lax.optimization_barrier((at, values))[1]


def _flat_indices(shape, one):
  """Each element's index; `one` keeps it in the loop that computes that."""
  index = jnp.zeros(shape, jnp.int32)
  for axis in range(len(shape)):
    along = lax.broadcasted_iota(jnp.int32, shape, axis)
    index = index + along * (one * math.prod(shape[axis + 1 :]))
  return index


def _count(numbers, at):
  """(s, m) i32: how many of each are at or above its (s, m) thresholds."""
  masks = [x >= t for x, row in zip(numbers, at, strict=True) for t in row]
  return tensors.counts(masks).reshape(at.shape)


def _count_equal(bits, value, rests, at):
  """As `_count` for the rests of those whose bits equal `value` (s,)."""
  early = [
    jnp.where(x == v, rest, 0)
    for x, v, rest in zip(bits, value, rests, strict=True)
  ]
  return _count(early, at)
