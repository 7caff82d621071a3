"""A GPU kernel that counts what is at or above thresholds in long rows.

One program a block of columns reads the inputs once, computes the tensors of
them and compares these with the thresholds of all searches. Nothing is stored
but the counts.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import row_search

_COLUMNS = 1024
_WARPS = 4
# Steps of a program; fewer than 256, so that their counts fit in bytes.
_STEPS = 16
# Thresholds of a program, whose counts stay in registers.
_MOST = 32


def count(
  of: Callable[..., list[jax.Array]],
  inputs: Sequence[jax.Array],
  owners: tuple[int, ...],
  at: jax.Array,
  value: jax.Array,
) -> jax.Array:
  """How many are at or above thresholds, (L, s, m) i32.

  Args:
    of: gives tensors from the inputs, element by element.
    inputs: (L, size) each.
    owners: for each of the s searches the index of its tensor.
    at: (L, s, m) i32 thresholds that increase. Layers where all are
      `brackets.TOP` are not read.
    value: (L, s) i32. Where it is not negative, what is counted are not the
      bits of a tensor but the places of elements with that value, from the end.
  """
  found = []
  step = max(1, _MOST // at.shape[2])
  for start in range(0, len(owners), step):
    some = slice(start, start + step)
    found.append(_count(of, inputs, owners[some], at[:, some], value[:, some]))
  return jnp.concatenate(found, axis=1)


@functools.partial(jax.jit, static_argnames=('of', 'owners'))
def _count(of, inputs, owners, at, value):
  layers, size = inputs[0].shape
  searches, m = at.shape[1:]
  blocks = -(-size // (_COLUMNS * _STEPS))

  def of_layer(*shape):
    zeros = (0,) * len(shape)
    return pl.BlockSpec((None, *shape), lambda i, j: (i, *zeros))

  counts = pl.pallas_call(
    functools.partial(_kernel, of=of, owners=owners, size=size, m=m),
    grid=(layers, blocks),
    in_specs=[
      of_layer(searches, m),
      of_layer(searches),
      *[of_layer(size) for _ in inputs],
    ],
    out_specs=pl.BlockSpec(
      (None, None, searches, m), lambda i, j: (i, j, 0, 0)
    ),
    out_shape=jax.ShapeDtypeStruct((layers, blocks, searches, m), jnp.int32),
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=jax.default_backend() == 'cpu',
    name='block_counts',
  )(at, value, *inputs)
  return jnp.sum(counts, axis=1)


def _kernel(at_ref, value_ref, *refs, of, owners, size, m):
  """The program of a layer and a block of columns.

  Refs: thresholds (s, m), values (s,), the inputs (size,), counts (s, m).
  """
  *input_refs, out_ref = refs
  searches = range(len(owners))
  at = [[at_ref[i, j] for j in range(m)] for i in searches]
  values = [value_ref[i] for i in searches]
  start = pl.program_id(1) * (_COLUMNS * _STEPS)
  column = jnp.arange(_COLUMNS, dtype=jnp.int32)

  def step(i, sums):
    first = start + i * _COLUMNS
    place = first + column
    inside = place < size
    tensors = of(
      *[
        triton.load(ref.at[pl.ds(first, _COLUMNS)], mask=inside, other=0.0)
        for ref in input_refs
      ]
    )
    found = []
    for owner, thresholds, value in zip(owners, at, values, strict=True):
      x = jnp.where(inside, brackets.size_bits(tensors[owner]), -1)
      places = jnp.where(x == value, size - place, 0)
      x = jnp.where(value >= 0, places, x)
      found += [row_search.flags(x, some) for some in _by_four(thresholds)]
    return tuple(map(jnp.add, sums, found))

  wanted = functools.reduce(jnp.minimum, [some[0] for some in at])
  left = jnp.minimum(size - start, _COLUMNS * _STEPS)
  steps = lax.div(left + (_COLUMNS - 1), _COLUMNS)
  steps = jnp.where(wanted < brackets.TOP, steps, 0)
  zeros = jnp.zeros((_COLUMNS,), jnp.int32)
  packed = [zeros for some in at for _ in _by_four(some)]
  sums = iter(lax.fori_loop(0, steps, step, tuple(packed)))
  for i, thresholds in enumerate(at):
    counts = []
    for some in _by_four(thresholds):
      counts += row_search.unpacked(next(sums), len(some))
    for j, x in enumerate(counts):
      out_ref[i, j] = jnp.sum(x, axis=0)


def _by_four(thresholds):
  return [thresholds[i : i + 4] for i in range(0, len(thresholds), 4)]
