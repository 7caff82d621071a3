"""The k largest of many tensors on a GPU: by kernels, and equal to `small`.

Short rows are searched by one program each. Long ones share their passes, one
kernel a pass and group, and a sample of each says where to begin.
"""

from collections.abc import Sequence
import math

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import block_counts
from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import row_search

# A pass over long rows counts at so many thresholds in all, or a few a search.
_COUNTED, _LEAST, _MOST = 32, 4, 16
_SAMPLE = 1 << 15
# Deviations of the sample's rank in which the k-th largest is looked for.
_SURE = 2.5


def runs_here() -> bool:
  """Whether programs are compiled for one GPU; more would gather all rows."""
  return jax.default_backend() == 'gpu' and jax.device_count() == 1


def find(
  groups: Sequence, searches: Sequence[jax.Array], exact: bool
) -> list[tuple[jax.Array, jax.Array]]:
  """Finds where the k largest end.

  Args:
    groups: `small.Group`, whose tensors have as many k each.
    searches: (L, s) i32 for each group: the k of a layer, by tensor.
    exact: whether the value is to be the k-th largest itself.

  Returns:
    For each group value and rest, (L, s) i32 each.
  """
  found, long = {}, []
  for i, group in enumerate(groups):
    if group.inputs[0][0].size > row_search.LONGEST:
      long.append(i)
    else:
      found[i] = _short(group, searches[i], exact)
  if long:
    together = _long(
      *([each[i] for i in long] for each in (groups, searches)), exact
    )
    found |= dict(zip(long, together, strict=True))
  return [found[i] for i in range(len(groups))]


def _short(group, k, exact):
  if not group.inputs[0].size:
    return k, k
  rows = _bits(group, _flat(group))
  found = row_search.find(rows, k.reshape(len(rows), -1), exact=exact)
  return [x.reshape(k.shape) for x in found]


def _flat(group):
  return [x.reshape(x.shape[0], -1) for x in group.inputs]


def _bits(group, inputs):
  """What is searched, (L n, size) i32, by layer and tensor."""
  bits = [brackets.size_bits(x) for x in group.of(*inputs)]
  return jnp.stack(bits, axis=1).reshape(-1, bits[0].shape[-1])


def _long(groups, searches, exact):
  inputs = [_flat(group) for group in groups]
  owners = [
    tuple(i for i, some in enumerate(group.ranks) for _ in some)
    for group in groups
  ]
  m = max(_LEAST, min(_MOST, _COUNTED // max(map(len, owners))))
  first = [
    _about(group, own, k, m)
    for group, own, k in zip(groups, inputs, searches, strict=True)
  ]
  sizes = [
    jnp.full(k.shape, own[0].shape[1], jnp.int32)
    for own, k in zip(inputs, searches, strict=True)
  ]
  first, sizes, k = (_joined(each, 2) for each in (first, sizes, searches))

  def split(x):
    return _split(x, [k.shape for k in searches])

  def counter(value):
    def count(at, still):
      at = jnp.where(still[:, None], at, brackets.TOP)
      counts = [
        block_counts.count(group.of, *each)
        for group, *each in zip(
          groups, inputs, owners, split(at), split(value), strict=True
        )
      ]
      return _joined(counts, 2), jnp.zeros((*at.shape, 0), jnp.int32)

    return count

  none, zero = jnp.zeros((len(k), 0), jnp.int32), jnp.zeros_like(k)
  bracket = brackets.Bracket(zero, sizes, none, zero + brackets.TOP, zero, none)
  bracket = brackets.search(counter(zero - 1), k, bracket, 0, m, first=first)
  low = split(bracket.low)
  if exact:
    each = zip(groups, inputs, owners, low, strict=True)
    return [(x, x) for x in (_least(*some) for some in each)]
  # Of equals the first are in, as far as so many places from the end reach.
  all_in = bracket.low_count == k
  wanted = jnp.where(all_in, bracket.within, k - bracket.high_count)
  places = brackets.Bracket(
    zero + 1, bracket.within, none, sizes + 1, zero, none
  )
  rest = brackets.search(counter(bracket.low), wanted, places, 0, m).low
  rest = split(jnp.where(all_in, 1, rest))
  return list(zip(low, rest, strict=True))


def _joined(each, axes):
  """One array of some, whose first axes are made one."""
  return jnp.concatenate([x.reshape(-1, *x.shape[axes:]) for x in each])


def _split(joined, shapes):
  found, start = [], 0
  for shape in shapes:
    end = start + math.prod(shape)
    found.append(joined[start:end].reshape(*shape, *joined.shape[1:]))
    start = end
  return found


def _least(group, inputs, owners, low):
  """The least bits (L, s) that are not below (L, s)."""
  tensors = [brackets.size_bits(x) for x in group.of(*inputs)]
  least = [
    jnp.min(
      jnp.where(
        tensors[owner] >= low[:, i, None], tensors[owner], brackets.TOP
      ),
      axis=1,
    )
    for i, owner in enumerate(owners)
  ]
  return jnp.stack(least, axis=1)


def _about(group, inputs, k, m):
  """Thresholds (L, s, m) about the k-th largest, from a sample."""
  size = inputs[0].shape[1]
  # Odd, so that it does not stay in some columns.
  stride = (size // _SAMPLE - 1) | 1
  sample = _bits(group, [x[:, : _SAMPLE * stride : stride] for x in inputs])
  rank = k.astype(jnp.float32) * (_SAMPLE / size)
  rank = jnp.minimum(rank, _SAMPLE)
  apart = _SURE * jnp.sqrt(rank * (1.0 - rank / _SAMPLE)) + 1.0
  rank = jnp.stack([rank + apart, rank - apart], axis=-1)
  rank = jnp.clip(jnp.round(rank), 1.0, float(_SAMPLE)).astype(jnp.int32)
  ends, _ = row_search.find(sample, rank.reshape(len(sample), -1))
  low, high = jnp.split(ends.reshape(*k.shape, 2), 2, axis=-1)
  start, end = (lax.bitcast_convert_type(x, jnp.float32) for x in (low, high))
  at = brackets.size_bits(start + (end - start) * jnp.linspace(0.0, 1.0, m))
  # They increase, though infinite sizes have no line.
  return jnp.clip(at, low, high)
