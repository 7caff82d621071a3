"""The k largest of a tensor by a few counting passes, without a sort.

Small tensors are searched as in `small`, and on a GPU all. Of a large one:

  a sample tells where to begin,
  two passes, each over all elements, leave some dozen candidates of millions,
  and how many of them each row holds tells where they are.

All searches in the tensors of one merge share their passes, and the tensors are
computed in the loop that counts.

Of equal values at the threshold those of lowest index are kept, so that
exactly k are.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import small
from evojax_llm.operators.merges import tensors

# Tensors are sampled twice: by single elements, which are sorted, and by blocks
# of a cache line, which are counted.
_SORTED = 1024
_SAMPLE = 1 << 18
_BLOCK = 16
# A pass counts at so many thresholds in all, each search at so many.
_COUNTED = 16
_LEAST, _MOST = 4, 8
# The most candidates that are looked at one by one.
_CANDIDATES = 256
_ROW = 128


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
) -> list[list[brackets.Cut]]:
  """Finds where the k largest by size end, of several tensors and k.

  Args:
    of: gives the tensors, f32, from the inputs, element by element.
    inputs: of one shape, which the tensors have as well.
    ranks: for each tensor some k, () i32 in [0, size].

  Returns:
    For each tensor the cut of each k; `inside` tells the k elements.
  """
  if small.takes(inputs[0].size):
    (cuts,) = small.top([small.Group(of, _layer(inputs), ranks)])
    return cuts
  k = jnp.stack([k for some in ranks for k in some])
  value, index, bracket = _find(_Tensors(of, inputs, ranks), k, exact=False)
  # A threshold that leaves exactly k cuts before all that equal it.
  whole = bracket.low_count == k
  rest = jnp.where(whole, 1, inputs[0].size - index)
  value = jnp.where(whole, bracket.low, value)
  cuts = map(
    brackets.Cut,
    jnp.where(k > 0, value, brackets.TOP),
    jnp.where(k > 0, rest, brackets.TOP),
  )
  return [[next(cuts) for _ in some] for some in ranks]


def itself(values: jax.Array) -> list[jax.Array]:
  """Gives what is searched where that is stored; one function, one program."""
  return [values]


def inside(values: jax.Array, cut: brackets.Cut) -> jax.Array:
  """Whether each element is among the k largest; bool as `values`."""
  size = brackets.size_bits(values)
  rest = values.size - draws.flat_indices(values.shape, jnp.int32)
  tied = (size == cut.value) & (rest >= cut.rest)
  return (size > cut.value) | tied


def kth_largest(
  values: jax.Array, ranks: Sequence[jax.Array | int]
) -> list[jax.Array]:
  """The k-th largest sizes of (...) f32 for some k in [1, size]; () f32."""
  k = jnp.stack([jnp.asarray(rank, jnp.int32) for rank in ranks])
  if small.takes(values.size):
    group = small.Group(itself, _layer([values]), [list(k)])
    found = small.kth_largest([group])
    return list(lax.bitcast_convert_type(found, jnp.float32))
  everything = _Tensors(itself, [values], [list(k)])
  found, _, _ = _find(everything, k, exact=True)
  return list(lax.bitcast_convert_type(found, jnp.float32))


class _Tensors:
  """The bits of some large tensors by rows, computed anew in each pass.

  Attributes:
    size: elements of a tensor.
    rows: number of rows; the last may be short.
  """

  def __init__(self, of, inputs, ranks):
    self._of = of
    # Stored where they are computed: each is read in every pass.
    self._inputs = list(lax.optimization_barrier(tuple(inputs)))
    self._owners = [i for i, some in enumerate(ranks) for _ in some]
    self.size = self._inputs[0].size
    self.rows = -(-self.size // _ROW)

  def count(self, at, _):
    """How many are at or above each of (s, m) thresholds.

    In all, (s, m) i32, and in each of the rows, (s, m, rows) i32.
    """
    # Held back from being computed before the loop, and stored.
    inputs = lax.optimization_barrier((at, self._inputs))[1]
    bits = self._bits([x.reshape(-1) for x in inputs])
    missing = self.rows * _ROW - self.size
    if missing:
      bits = [jnp.pad(x, (0, missing), constant_values=-1) for x in bits]
    return _counted(bits, at, _ROW)

  def sampled(self, k):
    """Thresholds (s, m) about the k-th largest, from a sample."""
    # Odd, so that it does not stay in some columns.
    stride = (self.size // _SORTED - 1) | 1
    picked = [x.reshape(-1)[: _SORTED * stride : stride] for x in self._inputs]
    bits = lax.sort(jnp.stack(self._bits(picked)), is_stable=False)
    at = brackets.about(bits, k, self.size, jnp.linspace(-4.0, 4.0, _MOST))
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
    return brackets.around(
      low, high, more - less, rank, deviation, _thresholds(k)
    )

  def nth(self, bracket, nth):
    """Bits and indices of the nth (s, j) in the bracket, by their indices."""
    levels = [bracket.low_rows - bracket.high_rows]
    while levels[-1].shape[1] > _ROW:
      levels.append(jnp.sum(_grouped(levels[-1], _ROW), axis=2))
    last = levels.pop()
    until = jnp.tril(jnp.ones((last.shape[1],) * 2, jnp.int32))
    index, nth = _place(jnp.sum(last[:, None] * until, axis=2)[:, None], nth)
    # Products of whole numbers that f32 holds exactly.
    until = jnp.triu(jnp.ones((_ROW,) * 2, jnp.float32))
    for level in reversed(levels):
      running = jnp.dot(
        _grouped(level, _ROW).astype(jnp.float32),
        until,
        precision=lax.Precision.HIGHEST,
      ).astype(jnp.int32)
      place, nth = _place(jax.vmap(brackets.taken)(running, index), nth)
      # There are no more rows, whatever the nth is.
      index = jnp.minimum(index * _ROW + place, level.shape[1] - 1)
    missing = self.rows * _ROW - self.size
    rows = [
      jnp.pad(x.reshape(-1), (0, missing)).reshape(-1, _ROW)
      for x in self._inputs
    ]
    bits = jnp.stack(
      [
        self._bits([brackets.taken(x, own) for x in rows])[i]
        for i, own in enumerate(index)
      ]
    )
    place = index[..., None] * _ROW + jnp.arange(_ROW, dtype=jnp.int32)
    low, high = bracket.low[:, None, None], bracket.high[:, None, None]
    there = (bits >= low) & (bits < high) & (place < self.size)
    column, _ = _place(_running(there), nth)
    found = jnp.take_along_axis(bits, column[..., None], 2)[..., 0]
    return found, index * _ROW + column

  def _bits(self, inputs):
    """What is counted for each search."""
    sizes = [brackets.size_bits(tensor) for tensor in self._of(*inputs)]
    return [sizes[owner] for owner in self._owners]


def _find(tensors_, k, exact):
  """Bits (s,) and index (s,) of the k-th largest, and its bracket.

  Neither is told where the bracket's low leaves exactly k, unless `exact`.
  """
  size, rows = tensors_.size, tensors_.rows
  full = jnp.full((rows,), _ROW, jnp.int32)
  full = full.at[-1].set(size - (rows - 1) * _ROW)
  nothing = jnp.zeros((len(k), rows), jnp.int32)
  zero = jnp.zeros_like(k)
  bracket = brackets.Bracket(
    zero, zero + size, nothing + full, zero + brackets.TOP, zero, nothing
  )
  bracket = brackets.search(
    tensors_.count,
    k,
    bracket,
    _CANDIDATES,
    _thresholds(k),
    first=tensors_.sampled(k),
    exact=exact,
  )
  # Of more than can be looked at all are equal, and the one wanted is told.
  wanted = k - bracket.high_count
  few = bracket.within <= _CANDIDATES
  lane = jnp.arange(_CANDIDATES, dtype=jnp.int32)
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


def _layer(inputs):
  """The inputs, of one layer."""
  return [x[None] for x in inputs]


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
