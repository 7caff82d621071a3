"""A GPU kernel that finds the k largest of each row by counting passes.

One program a search goes through its row until it is found: a pass reads what
the one before has left in the cache, and none waits for searches of other rows.
A sample tells where to begin; `brackets` says how a pass narrows. Searches of
one row that shared their passes were no faster.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from evojax_llm.operators.merges import brackets

# Rows are not longer, so that counts of blocks fit in bytes.
LONGEST = 1 << 17
_COLUMNS = 1024
_WARPS = 8
# Thresholds of a pass: their counts are the bytes of one number.
_M = 4
# Rows of fewer blocks are searched without a sample.
_SAMPLED = 8
# Deviations of the sample's rank in which the k-th largest is looked for.
_SURE = 2.5
# Bits of 2^-30 and 4: where the first pass looks where there is no sample.
_FIRST = 0x30800000, 0x40800000


# Traced and compiled once for all rows of a length.
@functools.partial(jax.jit, static_argnames='exact')
def find(
  bits: jax.Array, k: jax.Array, *, exact: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Finds where the k largest of each row end.

  Args:
    bits: (n, size) i32, not negative; size up to LONGEST.
    k: (n, s) i32, in [1, size]; elsewhere the result says nothing.
    exact: whether the value is to be the k-th largest itself; else it may lie
      between that and the next, and the rest is told as well.

  Returns:
    The value and the rest of a `brackets.Cut`, (n, s) i32 each.
  """
  size = bits.shape[1]
  one = pl.BlockSpec((None, None), lambda i, j: (i, j))
  shape = jax.ShapeDtypeStruct(k.shape, jnp.int32)
  return pl.pallas_call(
    functools.partial(_kernel, size=size, exact=exact),
    grid=k.shape,
    in_specs=[pl.BlockSpec((None, size), lambda i, j: (i, 0)), one],
    out_specs=[one, one],
    out_shape=[shape, shape],
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=jax.default_backend() == 'cpu',
    name='row_search',
  )(bits, k)


def _kernel(bits_ref, k_ref, value_ref, rest_ref, *, size, exact):
  """The program of a row (size,) and one k ()."""
  k = k_ref[()]
  column = jnp.arange(_COLUMNS, dtype=jnp.int32)
  blocks = -(-size // _COLUMNS)

  def over_blocks(step, start):
    def block(i, state):
      place = i * _COLUMNS + column
      here = pl.ds(i * _COLUMNS, _COLUMNS)
      x = triton.load(bits_ref.at[here], mask=place < size, other=-1)
      return step(state, x, place)

    start = jnp.full((_COLUMNS,), start, jnp.int32)
    return lax.fori_loop(0, blocks, block, start)

  def counted(of, at):
    packed = over_blocks(
      lambda sums, x, place: sums + flags(of(x, place), at), 0
    )
    return [jnp.sum(x, axis=0) for x in unpacked(packed, len(at))]

  zero = k * 0
  first = _evenly(*_FIRST)
  if blocks >= _SAMPLED:
    # Odd, so that it does not stay in some columns.
    stride = (size // _COLUMNS - 1) | 1
    first = _about(triton.load(bits_ref.at[column * stride]), k, size)
  low, low_count, high_count = _search(
    functools.partial(counted, lambda x, place: x),
    k,
    (zero, zero + size, zero + brackets.TOP, zero),
    first=first,
  )
  if exact:
    least = over_blocks(
      lambda least, x, place: jnp.where(x >= low, jnp.minimum(least, x), least),
      brackets.TOP,
    )
    value_ref[()] = jnp.min(least, axis=0)
    rest_ref[()] = zero
    return
  # Of equals the first are in, as far as so many places from the end reach.
  all_in, within = low_count == k, low_count - high_count
  rest, _, _ = _search(
    functools.partial(
      counted, lambda x, place: jnp.where(x == low, size - place, 0)
    ),
    jnp.where(all_in, within, k - high_count),
    (zero + 1, within, zero + size + 1, zero),
  )
  value_ref[()] = low
  rest_ref[()] = jnp.where(all_in, 1, rest)


def flags(values: jax.Array, at: Sequence[jax.Array]) -> jax.Array:
  """Whether values are at or above up to four that increase, as bytes."""
  found = jnp.zeros_like(values)
  for j, t in enumerate(at):
    found = jnp.where(values >= t, jnp.int32(0x01010101 >> (24 - 8 * j)), found)
  return found


def unpacked(packed: jax.Array, count: int) -> list[jax.Array]:
  """The bytes of i32."""
  return [(packed >> (8 * j)) & 0xFF for j in range(count)]


def _about(sample, k, size):
  """Thresholds about the k-th largest of `size`, from a sample of these."""

  def count(at):
    return [jnp.sum((sample >= t).astype(jnp.int32), axis=0) for t in at]

  rank = jnp.minimum(k.astype(jnp.float32) * (_COLUMNS / size), _COLUMNS)
  apart = _SURE * jnp.sqrt(rank * (1.0 - rank / _COLUMNS)) + 1.0
  zero = k * 0
  ends = []
  for end in (rank + apart, rank - apart):
    nearest = jnp.clip(end + 0.5, 1.0, float(_COLUMNS)).astype(jnp.int32)
    whole = (zero, zero + _COLUMNS, zero + brackets.TOP, zero)
    end, _, _ = _search(count, nearest, whole, first=_evenly(*_FIRST))
    ends.append(end)
  low, high = ends
  line = (_size(high) - _size(low)) / (_M - 1)
  at = [_bits(_size(low) + line * j) for j in range(_M)]
  # They increase, though infinite sizes have no line.
  return [jnp.minimum(jnp.maximum(t, low), high) for t in at]


def _evenly(low, high):
  return [jnp.int32(low + (high - low) // (_M - 1) * j) for j in range(_M)]


def _search(count, k, bracket, *, first=None):
  """As `brackets.search`, for one k, until low leaves k or high is next to it.

  Args:
    count: how many are at or above each of some thresholds.
    k: () i32.
    bracket: low, its count, high and its count, () i32, to begin with.
    first: thresholds of the first pass; None where numbers are no bits of
      floats.

  Returns:
    Low, and the counts at low and high.
  """

  def is_open(state):
    _, low, low_count, high, _ = state
    return (high - low > 1) & (low_count != k) & (k > 0)

  def step(state):
    passes, low, low_count, high, high_count = state
    at = _thresholds(*state, k, first)
    # Thresholds increase, so that the first few leave k or more.
    for t, found in zip(at, count(at), strict=True):
      enough, less = found >= k, (found < k) & (t < high)
      low, low_count = (
        jnp.where(enough, x, y) for x, y in ((t, low), (found, low_count))
      )
      high, high_count = (
        jnp.where(less, x, y) for x, y in ((t, high), (found, high_count))
      )
    return passes + 1, low, low_count, high, high_count

  _, low, low_count, _, high_count = lax.while_loop(
    is_open, step, (k * 0, *bracket)
  )
  return low, low_count, high_count


def _thresholds(passes, low, low_count, high, high_count, k, first):
  """Where a pass counts."""
  part = jnp.maximum(lax.div(high - low, jnp.int32(_M + 1)), 1)
  at = [low + part * (j + 1) for j in range(_M)]
  if first is not None:
    within = jnp.maximum(low_count - high_count, 1).astype(jnp.float32)
    rank = (low_count - k).astype(jnp.float32)
    deviation = jnp.sqrt(jnp.maximum(rank * (1.0 - rank / within), 0.25))
    start, line = _size(low), (_size(high) - _size(low)) / (within + 1.0)
    divide = (high - low > brackets.WIDE) | (lax.rem(passes, 4) == 3)
    for j, apart in enumerate(brackets.spread_numbers(_M)):
      # Between the k-th largest and the next.
      guess = start + line * (rank + 0.5 + deviation * apart)
      at[j] = jnp.where(divide, at[j], _bits(jnp.maximum(guess, 0.0)))
      at[j] = jnp.where(passes == 0, first[j], at[j])
  return [jnp.minimum(jnp.maximum(t, low + 1), high - 1) for t in at]


def _size(bits):
  return lax.bitcast_convert_type(bits, jnp.float32)


def _bits(size):
  return lax.bitcast_convert_type(size, jnp.int32)
