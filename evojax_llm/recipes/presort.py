"""What numpy finds on a CPU before a tensor is merged: cuts and sorted rows.

There a partition is faster than the passes that find where the largest of a
delta end, and nothing is compiled, which takes longer than both; rows are
sorted faster, too. The same elements are kept, bit for bit.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges import thresholds
from evojax_llm.operators.operator import Merge

_NONE = np.int32(0x7FFFFFFF)
_CHUNK = 1 << 20


def find(
  merge: Merge,
  parents: Sequence[np.ndarray],
  base: np.ndarray | None,
  values: Mapping[str, np.ndarray],
  axis: int = -1,
) -> dict[str, Any]:
  """Returns arguments of a merge that it would else find itself.

  Args:
    merge: of task vectors, or another, which has none.
    parents: of one shape, in their stored types.
    base: likewise.
    values: the numbers of the merge.
    axis: the one that runs along a row.
  """
  known = merge.signature
  if base is None or not {'cuts', 'ordered'} & known.keys():
    return {}
  if 'ordered' in known:
    sizes = [np.atleast_1d(_size_bits(x, base)) for x in parents]
    return {'ordered': [np.sort(np.moveaxis(x, axis, -1)) for x in sizes]}
  given = [
    values.get(name, merge.parameters[name].default)
    for name in ('density', 'gamma')
    if name in merge.parameters
  ]
  ranks = _ranks(len(parents), base.size, *given)
  return {
    'cuts': [
      _cuts(_size_bits(x, base), own)
      for x, own in zip(parents, ranks, strict=True)
    ]
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ranks(parents, size, *given):
  return sparsify.ranks(parents, size, *given)


def _size_bits(parent, base):
  """I32 that orders as the sizes of a delta, of the same arithmetic."""
  return np.asarray(_deltas_bits(parent, base))


@jax.jit
def _deltas_bits(parent, base):
  return thresholds.size_bits(*tensors.deltas(parent[None], base))


def _cuts(bits, ranks):
  """The cut of each of some ranks in [0, size]."""
  flat, ranks = bits.reshape(-1), [int(rank) for rank in ranks]
  ordered, found = flat.copy(), {0: thresholds.Cut(_NONE, _NONE)}
  # One by one: a partition at several places is many times as slow.
  for rank in sorted({*ranks} - {0}, reverse=True):
    ordered.partition(ordered.size - rank)
    largest = ordered[ordered.size - rank :]
    # Of its equals in the tensor those that come first are kept.
    kept = np.count_nonzero(largest == largest[0])
    last = _nth(flat, largest[0], kept)
    found[rank] = thresholds.Cut(largest[0], np.int32(flat.size - last))
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
