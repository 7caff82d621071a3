"""What numpy finds on a CPU before a tensor is merged: cuts, masks by rank.

There a partition is faster than the passes that find where the largest of a
delta end, and nothing is compiled, which takes longer than both; rows are
sorted faster, too, and block by block, so that little is held. The same
elements are kept, bit for bit.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge

_NONE = np.int32(0x7FFFFFFF)
_CHUNK = 1 << 20
# Elements of which rows are sorted at a time.
_BLOCK = 1 << 22


def find(
  merge: Merge,
  parents: Sequence[np.ndarray],
  base: np.ndarray | None,
  values: Mapping[str, np.ndarray],
  axis: int = -1,
  key_data: np.ndarray | None = None,
) -> dict[str, Any]:
  """Returns arguments of a merge that it would else find itself.

  Args:
    merge: of task vectors, or another, which has none.
    parents: of one shape, in their stored types.
    base: likewise.
    values: the numbers of the merge.
    axis: the one that runs along a row.
    key_data: of the key, two words.
  """
  known = merge.signature
  if base is None or not {'cuts', 'masks'} & known.keys():
    return {}
  density, more = (
    values.get(name, merge.parameters[name].default)
    if name in merge.parameters
    else None
    for name in ('density', 'epsilon' if 'masks' in known else 'gamma')
  )
  if 'masks' in known:
    given = density, more, key_data
    return {'masks': _masks([*parents, base], given, axis)}
  ranks = _ranks(len(parents), base.size, density, more)
  return {
    'cuts': [
      _cuts(_size_bits(x, base), own)
      for x, own in zip(parents, ranks, strict=True)
    ]
  }


def _masks(stored, given, axis):
  """What della keeps of each parent, found in blocks of rows."""
  base = stored[-1]
  if axis != -1 or base.ndim < 2:
    return [np.asarray(x) for x in _block_masks(stored, given, axis, 0)]
  stored = [x.reshape(-1, x.shape[-1]) for x in stored]
  rows, width = stored[-1].shape
  step = min(rows, max(1, _BLOCK // width))
  found = [np.empty((rows, width), bool) for _ in stored[1:]]
  for first in range(0, rows, step):
    block = [x[first : first + step] for x in stored]
    short = step - len(block[-1])
    if short:  # The last one; of another shape it would be another program's.
      block = [np.pad(x, ((0, short), (0, 0))) for x in block]
    made = _block_masks(block, given, axis, first * width)
    for whole, part in zip(found, made, strict=True):
      whole[first : first + step] = np.asarray(part)[: rows - first]
  return [x.reshape(base.shape) for x in found]


def _block_masks(block, given, axis, start):
  sizes = [np.atleast_1d(_size_bits(x, block[-1])) for x in block[:-1]]
  ordered = [np.sort(np.moveaxis(x, axis, -1)) for x in sizes]
  start = np.uint32(start % 2**32)
  return _rank_masks(block, *given, ordered, start, axis)


@functools.partial(jax.jit, static_argnums=6)
def _rank_masks(block, density, epsilon, key_data, ordered, start, axis):
  *parents, base = (x.astype(jnp.float32) for x in block)
  key = jax.random.wrap_key_data(key_data, impl='threefry2x32')
  return sparsify.rank_masks(
    jnp.stack(parents),
    base,
    density,
    epsilon,
    key,
    axis=axis,
    ordered=ordered,
    start=start,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ranks(parents, size, density, gamma):
  return sparsify.ranks(parents, size, density, gamma)


def _size_bits(parent, base):
  """I32 that orders as the sizes of a delta, of the same arithmetic."""
  return np.asarray(_deltas_bits(parent, base))


@jax.jit
def _deltas_bits(parent, base):
  return brackets.size_bits(*tensors.deltas(parent[None], base))


def _cuts(bits, ranks):
  """The cut of each of some ranks in [0, size]."""
  flat, ranks = bits.reshape(-1), [int(rank) for rank in ranks]
  ordered, found = flat.copy(), {0: brackets.Cut(_NONE, _NONE)}
  # One by one: a partition at several places is many times as slow.
  for rank in sorted({*ranks} - {0}, reverse=True):
    ordered.partition(ordered.size - rank)
    largest = ordered[ordered.size - rank :]
    # Of its equals in the tensor those that come first are kept.
    kept = np.count_nonzero(largest == largest[0])
    last = _nth(flat, largest[0], kept)
    found[rank] = brackets.Cut(largest[0], np.int32(flat.size - last))
    ordered = largest
  return [found[rank] for rank in ranks]


def _nth(flat, value, n):
  """The index of the n-th element, from one on, that equals the value."""
  for start in range(0, flat.size, _CHUNK):
    places = np.flatnonzero(flat[start : start + _CHUNK] == value)
    if n <= len(places):
      return start + places[n - 1]
    n -= len(places)
  raise AssertionError('fewer than n')
