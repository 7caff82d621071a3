"""A GPU kernel that finds the k largest of each row by counting passes.

One program a row goes through it until all of its searches have ended: a pass
reads what the one before has left in the cache, and none waits for other rows.
A sample tells where to begin; `brackets` says how a pass narrows.
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
  size, searches = bits.shape[1], k.shape[1]
  each = pl.BlockSpec((None, searches), lambda i: (i, 0))
  shape = jax.ShapeDtypeStruct(k.shape, jnp.int32)
  return pl.pallas_call(
    functools.partial(
      _kernel, size=size, searches=range(searches), exact=exact
    ),
    grid=(len(k),),
    in_specs=[pl.BlockSpec((None, size), lambda i: (i, 0)), each],
    out_specs=[each, each],
    out_shape=[shape, shape],
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=jax.default_backend() == 'cpu',
    name='row_search',
  )(bits, k)


def _kernel(bits_ref, k_ref, value_ref, rest_ref, *, size, searches, exact):
  """The program of a row (size,) and its k (s,)."""
  k = [k_ref[i] for i in searches]
  column = jnp.arange(_COLUMNS, dtype=jnp.int32)
  blocks = -(-size // _COLUMNS)

  def over_blocks(step, start):
    def block(i, state):
      place = i * _COLUMNS + column
      here = pl.ds(i * _COLUMNS, _COLUMNS)
      x = triton.load(bits_ref.at[here], mask=place < size, other=-1)
      return [step(j, part, x, place) for j, part in enumerate(state)]

    start = [jnp.full((_COLUMNS,), start, jnp.int32) for _ in searches]
    return lax.fori_loop(0, blocks, block, start)

  def counted(of, at):
    sums = over_blocks(
      lambda j, sums, x, place: sums + flags(of(j, x, place), at[j]), 0
    )
    return [[jnp.sum(x, axis=0) for x in unpacked(part, _M)] for part in sums]

  zero = k[0] * 0
  first = [_evenly(*_FIRST) for _ in searches]
  if blocks >= _SAMPLED:
    # Odd, so that it does not stay in some columns.
    stride = (size // _COLUMNS - 1) | 1
    first = _about(triton.load(bits_ref.at[column * stride]), k, size)
  whole = (zero, zero + size, zero + brackets.TOP, zero)
  found = _search(
    functools.partial(counted, lambda j, x, place: x),
    k,
    [whole for _ in searches],
    first=first,
  )
  low = [each[0] for each in found]
  if exact:
    least = over_blocks(
      lambda j, least, x, place: jnp.where(
        x >= low[j], jnp.minimum(least, x), least
      ),
      brackets.TOP,
    )
    for i, part in enumerate(least):
      value_ref[i] = jnp.min(part, axis=0)
      rest_ref[i] = zero
    return
  # Of equals the first are in, as far as so many places from the end reach.
  all_in = [
    low_count == k for k, (_, low_count, _, _) in zip(k, found, strict=True)
  ]
  within = [low_count - high_count for _, low_count, _, high_count in found]
  rest = _search(
    functools.partial(
      counted, lambda j, x, place: jnp.where(x == low[j], size - place, 0)
    ),
    [
      jnp.where(all_in[i], within[i], k[i] - high_count)
      for i, (*_, high_count) in enumerate(found)
    ],
    [(zero + 1, within[i], zero + size + 1, zero) for i in searches],
  )
  for i in searches:
    value_ref[i] = low[i]
    rest_ref[i] = jnp.where(all_in[i], 1, rest[i][0])


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
    return [
      [jnp.sum((sample >= t).astype(jnp.int32), axis=0) for t in some]
      for some in at
    ]

  wanted = []
  for nth in k:
    rank = nth.astype(jnp.float32) * (_COLUMNS / size)
    apart = _SURE * jnp.sqrt(rank * (1.0 - rank / _COLUMNS)) + 1.0
    for end in (rank + apart, rank - apart):
      nearest = jnp.clip(end + 0.5, 1.0, float(_COLUMNS))
      wanted.append(nearest.astype(jnp.int32))
  zero = k[0] * 0
  whole = (zero, zero + _COLUMNS, zero + brackets.TOP, zero)
  first = [_evenly(*_FIRST) for _ in wanted]
  found = _search(count, wanted, [whole for _ in wanted], first=first)
  ends = [_size(low) for low, *_ in found]
  return [
    [_bits(low + (high - low) * (j / (_M - 1))) for j in range(_M)]
    for low, high in zip(ends[::2], ends[1::2], strict=True)
  ]


def _evenly(low, high):
  return [jnp.int32(low + (high - low) // (_M - 1) * j) for j in range(_M)]


def _search(count, k, found, *, first=None):
  """As `brackets.search`, until each low leaves k or high is next to it.

  Args:
    count: how many are at or above each of the thresholds of each search.
    k: of each search.
    found: low, its count, high, its count, to begin with.
    first: thresholds of the first pass; None where numbers are no bits of
      floats.

  Returns:
    What is found of each search.
  """

  def is_open(k, bracket):
    low, low_count, high, _ = bracket
    return (high - low > 1) & (low_count != k) & (k > 0)

  def goes_on(state):
    return functools.reduce(jnp.logical_or, map(is_open, k, state[1]))

  def step(state):
    passes, found = state
    still = list(map(is_open, k, found))
    at = [
      _thresholds(passes, *search)
      for search in zip(k, found, first or [None] * len(k), strict=True)
    ]
    at = [
      [jnp.where(is_on, t, brackets.TOP) for t in some]
      for is_on, some in zip(still, at, strict=True)
    ]
    return passes + 1, list(map(_narrowed, still, k, found, at, count(at)))

  return lax.while_loop(goes_on, step, (k[0] * 0, found))[1]


def _thresholds(passes, k, bracket, first):
  low, low_count, high, high_count = bracket
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


def _narrowed(still, k, bracket, at, counts):
  low, low_count, high, high_count = bracket
  # Thresholds increase, so that the first few leave k or more.
  for t, found in zip(at, counts, strict=True):
    enough, less = still & (found >= k), still & (found < k) & (t < high)
    low, low_count = (
      jnp.where(enough, x, y) for x, y in ((t, low), (found, low_count))
    )
    high, high_count = (
      jnp.where(less, x, y) for x, y in ((t, high), (found, high_count))
    )
  return low, low_count, high, high_count


def _size(bits):
  return lax.bitcast_convert_type(bits, jnp.float32)


def _bits(size):
  return lax.bitcast_convert_type(size, jnp.int32)
