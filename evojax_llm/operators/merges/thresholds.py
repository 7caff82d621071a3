"""The k largest of a tensor by a few counting passes, without a sort.

A float that is not negative orders as its bits do, so the search is one over
whole numbers. All searches in the tensors of one merge share their passes, and
the tensors are computed in the loop that counts:

  a sample tells where to begin,
  two passes, each over all elements, leave some dozen candidates of millions,
  and how many of them each row holds tells where they are.

A pass narrows a bracket, two thresholds and what is at or above each, to two
neighbours among the thresholds where it counts. They are placed where linear
interpolation expects the k-th largest, and as far around as such a guess is
off: about the root of n numbers spread at random. Where numbers are so uneven
that this fails, every fourth pass divides the bracket evenly.

Of equal values at the threshold those of lowest index are kept, so that
exactly k are.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import tensors

# Tensors of more elements are sampled twice: by single elements, which are
# sorted, and by blocks of a cache line, which are counted.
LARGE = 1 << 20
_SORTED = 1024
_SAMPLE = 1 << 18
_BLOCK = 16
# A pass counts at so many thresholds in all, each search at so many.
_COUNTED = 16
_LEAST, _MOST = 4, 8
# The most candidates that are looked at one by one.
_CANDIDATES = 256
# A wider bracket of bits holds several powers of two, and no line.
_WIDE = 1 << 24
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
  k = jnp.stack([k for some in ranks for k in some])
  value, index, bracket = _find(_Tensors(of, inputs, ranks), k, exact=False)
  # A threshold that leaves exactly k cuts before all that equal it.
  whole = bracket.low_count == k
  rest = jnp.where(whole, 1, inputs[0].size - index)
  value = jnp.where(whole, bracket.low, value)
  cuts = map(Cut, jnp.where(k > 0, value, _TOP), jnp.where(k > 0, rest, _TOP))
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
  everything = _Tensors(lambda x: [x], [values], [list(k)])
  found, _, _ = _find(everything, k, exact=True)
  return list(lax.bitcast_convert_type(found, jnp.float32))


class _Bracket(NamedTuple):
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


class _Tensors:
  """The bits of some tensors by rows, computed anew in each pass.

  Attributes:
    size: elements of a tensor.
    row: elements of a row.
    rows: their number; the last may be short.
  """

  def __init__(self, of, inputs, ranks):
    self._of = of
    # Stored where they are computed: each is read in every pass.
    self._inputs = list(lax.optimization_barrier(tuple(inputs)))
    self._owners = [i for i, some in enumerate(ranks) for _ in some]
    self.size = self._inputs[0].size
    self.row = 128 if self.size >= LARGE else 64
    self.rows = -(-self.size // self.row)

  def count(self, at):
    """How many are at or above each of (s, m) thresholds.

    In all, (s, m) i32, and in each of the rows, (s, m, rows) i32.
    """
    # Held back from being computed before the loop, and stored.
    inputs = lax.optimization_barrier((at, self._inputs))[1]
    bits = self._bits([x.reshape(-1) for x in inputs])
    missing = self.rows * self.row - self.size
    if missing:
      bits = [jnp.pad(x, (0, missing), constant_values=-1) for x in bits]
    return _counted(bits, at, self.row)

  def sampled(self, k):
    """Thresholds (s, m) about the k-th largest, from a sample."""
    few = min(_SORTED, max(self.size // 128, 64))
    # Odd, so that it does not stay in some columns.
    stride = max((self.size // few - 1) | 1, 1)
    picked = [x.reshape(-1)[: few * stride : stride] for x in self._inputs]
    bits = lax.sort(jnp.stack(self._bits(picked)), is_stable=False)
    if self.size < LARGE:
      return _about(bits, k, self.size, _spread(_thresholds(k)))
    at = _about(bits, k, self.size, jnp.linspace(-4.0, 4.0, _MOST))
    sample = min(_SAMPLE, self.size // 4) // _BLOCK * _BLOCK
    blocks = sample // _BLOCK
    stride = _BLOCK * ((self.size // sample - 1) | 1)
    picked = [
      x.reshape(-1)[: blocks * stride].reshape(blocks, stride)[:, :_BLOCK]
      for x in self._inputs
    ]
    counts, _ = _counted(self._bits(picked), at, _BLOCK)
    rank = k.astype(jnp.float32) * (sample / self.size)
    rank = jnp.clip(rank, 1.0, sample - 1.0)
    deviation = jnp.sqrt(rank * (1.0 - rank / sample)) + 0.5
    below = jnp.sum(counts.astype(jnp.float32) >= rank[:, None], axis=1)
    below = jnp.clip(below, 1, at.shape[1] - 1)[:, None]
    (low, more), (high, less) = (
      [jnp.take_along_axis(x, below - i, 1)[:, 0] for x in (at, counts)]
      for i in (1, 0)
    )
    rank = more.astype(jnp.float32) - rank
    return _around(low, high, more - less, rank, deviation, _thresholds(k))

  def nth(self, bracket, nth):
    """Bits and indices of the nth (s, j) in the bracket, by their indices."""
    levels = [bracket.low_rows - bracket.high_rows]
    while levels[-1].shape[1] > self.row:
      levels.append(jnp.sum(_grouped(levels[-1], self.row), axis=2))
    last = levels.pop()
    until = jnp.tril(jnp.ones((last.shape[1],) * 2, jnp.int32))
    index, nth = _place(jnp.sum(last[:, None] * until, axis=2)[:, None], nth)
    # Products of whole numbers that f32 holds exactly.
    until = jnp.triu(jnp.ones((self.row,) * 2, jnp.float32))
    for level in reversed(levels):
      running = jnp.dot(
        _grouped(level, self.row).astype(jnp.float32),
        until,
        precision=lax.Precision.HIGHEST,
      ).astype(jnp.int32)
      place, nth = _place(jax.vmap(_taken)(running, index), nth)
      # There are no more rows, whatever the nth is.
      index = jnp.minimum(index * self.row + place, level.shape[1] - 1)
    missing = self.rows * self.row - self.size
    rows = [
      jnp.pad(x.reshape(-1), (0, missing)).reshape(-1, self.row)
      for x in self._inputs
    ]
    bits = jnp.stack(
      [
        self._bits([_taken(x, own) for x in rows])[i]
        for i, own in enumerate(index)
      ]
    )
    place = index[..., None] * self.row + jnp.arange(self.row, dtype=jnp.int32)
    low, high = bracket.low[:, None, None], bracket.high[:, None, None]
    there = (bits >= low) & (bits < high) & (place < self.size)
    column, _ = _place(_running(there), nth)
    found = jnp.take_along_axis(bits, column[..., None], 2)[..., 0]
    return found, index * self.row + column

  def _bits(self, inputs):
    """What is counted for each search."""
    sizes = [size_bits(tensor) for tensor in self._of(*inputs)]
    return [sizes[owner] for owner in self._owners]


def _find(tensors_, k, exact):
  """Bits (s,) and index (s,) of the k-th largest, and its bracket.

  Neither is told where the bracket's low leaves exactly k, unless `exact`.
  """
  size, rows = tensors_.size, tensors_.rows
  most = min(max(size // 512, 32), _CANDIDATES)
  full = jnp.full((rows,), tensors_.row, jnp.int32)
  full = full.at[-1].set(size - (rows - 1) * tensors_.row)
  nothing = jnp.zeros((len(k), rows), jnp.int32)
  zero = jnp.zeros_like(k)
  bracket = _Bracket(
    zero, zero + size, nothing + full, zero + _TOP, zero, nothing
  )
  if size > most:
    bracket = _search(tensors_, k, bracket, most, exact)
  # Of more than can be looked at all are equal, and the one wanted is told.
  wanted = k - bracket.high_count
  few = bracket.within <= most
  lane = jnp.arange(most, dtype=jnp.int32)
  nth = jnp.where(few[:, None], lane + 1, wanted[:, None])
  bits, index = tensors_.nth(bracket, nth)
  bits = jnp.where(few[:, None] & (lane >= bracket.within[:, None]), -1, bits)
  one, other = bits[:, :, None], bits[:, None, :]
  earlier = lane[None, :] < lane[:, None]
  ahead = (other > one) | ((other == one) & earlier)
  rank = jnp.sum(ahead, axis=2, dtype=jnp.int32)
  rank = jnp.where(few[:, None], rank, lane + wanted[:, None] - 1)
  chosen = rank == wanted[:, None] - 1
  bits, index = (
    jnp.max(jnp.where(chosen, x, 0), axis=1) for x in (bits, index)
  )
  return bits, index, bracket


def _search(tensors_, k, bracket, enough, exact):
  """Narrows the bracket until `enough` are within, or equals."""
  m = _thresholds(k)
  first = tensors_.sampled(k)

  def is_open(b):
    found = (k <= 0) | (b.high - b.low <= 1) | (b.within <= enough)
    return ~(found if exact else found | (b.low_count == k))

  def step(state):
    passes, b = state
    part = (b.high - b.low) // (m + 1)
    evenly = b.low[:, None] + part[:, None] * jnp.arange(1, m + 1)
    divide = (b.high - b.low > _WIDE) | (passes % 4 == 3)
    inside = jnp.maximum(b.within, 1).astype(jnp.float32)
    rank = (b.low_count - k).astype(jnp.float32)
    deviation = jnp.sqrt(jnp.maximum(rank * (1.0 - rank / inside), 0.25))
    # Between the k-th largest and the next.
    line = _around(b.low, b.high, b.within, rank + 0.5, deviation, m)
    at = jnp.where(divide[:, None], evenly, line)
    at = jnp.where(passes == 0, first, at)
    at = jnp.clip(at, b.low[:, None] + 1, b.high[:, None] - 1)
    # A search that has ended keeps its bracket.
    return passes + 1, _narrowed(b, k, at, *tensors_.count(at), is_open(b))

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
    found = jax.vmap(_taken)(each, jnp.clip(at, 0, each.shape[1] - 1))
    return jnp.where(known, found, old)

  each = at, counts, rows
  return _Bracket(
    *(picked(o, e, below - 1) for o, e in zip(bracket[:3], each, strict=True)),
    *(picked(o, e, below) for o, e in zip(bracket[3:], each, strict=True)),
  )


def _about(ordered, k, size, spread):
  """Elements of a sorted sample (s, n) about the k-th largest of `size`.

  `spread` (m,) says how many deviations of its rank apart.
  """
  count = ordered.shape[1]
  rank = jnp.clip(k.astype(jnp.float32) * (count / size), 0.5, count - 0.5)
  deviation = jnp.sqrt(rank * (1.0 - rank / count)) + 0.5
  place = (count - rank)[:, None] + deviation[:, None] * spread
  place = jnp.clip(jnp.round(place).astype(jnp.int32), 0, count - 1)
  return jnp.take_along_axis(ordered, place, axis=1)


def _around(low, high, within, rank, deviation, m):
  """Thresholds (s, m) i32 about a rank (s,) f32, if sizes lie on a line.

  The rank is from low on, and `within` (s,) i32 are below high; `deviation`
  (s,) f32 is by how many numbers the guess is off. Sizes, as their bits bend
  at each power of two.
  """
  low, high = (lax.bitcast_convert_type(x, jnp.float32) for x in (low, high))
  step = (high - low) / (within.astype(jnp.float32) + 1.0)
  points = rank[:, None] + deviation[:, None] * _spread(m)
  return size_bits(jnp.maximum(low[:, None] + step[:, None] * points, 0.0))


def _spread(m):
  """(m,) deviations, close to zero and up to three or more."""
  x = [(2 * j + 1 - m) / m for j in range(m)]
  return jnp.asarray([2.4 * y / (1.0 - 0.45 * y * y) for y in x], jnp.float32)


def _thresholds(k):
  return min(max(_COUNTED // k.shape[0], _LEAST), _MOST)


def _counted(bits, at, row):
  """How many are at or above thresholds (s, m), in all and in each row."""
  masks = [x >= t for x, some in zip(bits, at, strict=True) for t in some]
  counts, rows = tensors.row_counts(masks, row)
  # Put together by copies, not element by element where they are read.
  rows = lax.optimization_barrier(rows)
  return counts.reshape(at.shape), rows.reshape(*at.shape, -1)


def _grouped(counts, row):
  """Groups (s, g, row) of (s, n), with zeros at the end."""
  counts = jnp.pad(counts, ((0, 0), (0, -counts.shape[1] % row)))
  return counts.reshape(counts.shape[0], -1, row)


def _taken(rows, index):
  return rows.at[index].get(mode='promise_in_bounds')


def _place(running, nth):
  """Where running counts (..., n) reach nth (...), and how-many-eth there."""
  before = running < nth[..., None]
  place = jnp.sum(before, axis=-1, dtype=jnp.int32)
  rest = nth - jnp.max(jnp.where(before, running, 0), axis=-1)
  return jnp.minimum(place, running.shape[-1] - 1), rest


def _running(flags):
  """Running counts (..., n) i32 of flags, n a multiple of 32, by words."""
  lane = jnp.arange(32, dtype=jnp.uint32)
  words = flags.reshape(*flags.shape[:-1], -1, 32).astype(jnp.uint32) << lane
  words = jnp.sum(words, axis=-1, keepdims=True, dtype=jnp.uint32)
  until = lax.population_count(
    words & ((jnp.uint32(2) << lane) - jnp.uint32(1))
  )
  until = until.astype(jnp.int32)
  # A few words a row, so that the sum of those before is written out.
  parts, start = [], 0
  for i in range(until.shape[-2]):
    parts.append(until[..., i, :] + start)
    start = parts[-1][..., -1:]
  return jnp.concatenate(parts, axis=-1)
