"""The k largest of many small tensors, with one loop for all searches.

A pass reads all tensors once, with what they are made of, and ends when each
search has two elements left, or one value. The smaller, the larger and the
first of the two are then read in one more pass. Only where one value is left of
more elements than are wanted, a second loop searches for the place of the last
that is in. On one GPU tensors of every size are searched here, by the kernels
of `gpu_search`.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import gpu_search
from evojax_llm.operators.merges import tensors

# Tensors of fewer elements are searched here, with others.
_LARGE = 1 << 20
# Inputs of a search are in memory at once, for each of the children: large
# tensors have searches of their own where all inputs have more elements.
_TOGETHER = 1 << 29
_COUNTED = 16
_LEAST, _MOST = 4, 16
_SAMPLE = 128
_ENOUGH = 2


class Group(NamedTuple):
  """Tensors of one size.

  Attributes:
    of: gives n tensors (L, ...) f32 from the inputs, element by element.
    inputs: (L, ...) each.
    ranks: for each of the n tensors some k, () or (L,) i32 in [0, size], as
      many for each.
  """

  of: Callable[..., list[jax.Array]]
  inputs: Sequence[jax.Array]
  ranks: Sequence[Sequence[jax.Array]]


def takes(size: int) -> bool:
  """Whether a tensor of `size` elements is searched here."""
  return size < _LARGE or gpu_search.runs_here()


def shares(size: int, whole: int) -> bool:
  """Whether it is searched with others; `whole` elements are read for all."""
  return size < _LARGE or (gpu_search.runs_here() and whole <= _TOGETHER)


def top(groups: Sequence[Group]) -> list[list[list[brackets.Cut]]]:
  """The cuts of each k, of each tensor, of each group; as the k have axes."""
  k = _joined(groups)
  value, rest = _find(groups, k)
  value = jnp.where(k > 0, value, brackets.TOP)
  rest = jnp.where(k > 0, rest, brackets.TOP)
  values, rests = _split(groups, value), _split(groups, rest)
  found = []
  for group, own, ends in zip(groups, values, rests, strict=True):
    cuts = iter(
      brackets.Cut(*(x[:, i].reshape(jnp.shape(k)) for x in (own, ends)))
      for i, k in enumerate(k for some in group.ranks for k in some)
    )
    found.append([[next(cuts) for _ in some] for some in group.ranks])
  return found


def kth_largest(groups: Sequence[Group]) -> jax.Array:
  """The bits of the k-th largest for each k in [1, size], (s,) i32."""
  return _find(groups, _joined(groups), exact=True)[0]


def _joined(groups):
  """All k, (s,) i32: by group, by layer, by tensor."""
  return jnp.concatenate(
    [
      jnp.stack(
        [
          jnp.broadcast_to(k, group.inputs[0].shape[:1])
          for some in group.ranks
          for k in some
        ],
        axis=1,
      ).reshape(-1)
      for group in groups
    ]
  )


def _split(groups, each):
  """(L, n, ...) for each group of (s, ...)."""
  found, start = [], 0
  for group in groups:
    layers, n = group.inputs[0].shape[0], sum(map(len, group.ranks))
    own = each[start : start + layers * n]
    found.append(own.reshape(layers, n, *each.shape[1:]))
    start += layers * n
  return found


def _bits(group, inputs):
  """What is read for each search of a layer, (L, size) i32 each."""
  sizes = group.of(*[x.reshape(x.shape[0], -1) for x in inputs])
  sizes = [brackets.size_bits(x) for x in sizes]
  return [x for x, some in zip(sizes, group.ranks, strict=True) for _ in some]


def _find(groups, k, exact=False):
  """Bits (s,) of the k-th largest and its place from the end, of equals."""
  if gpu_search.runs_here():
    return _by_kernels(groups, k, exact)
  sizes = np.concatenate(
    [
      np.full(x.shape[0] * sum(map(len, group.ranks)), x[0].size, np.int32)
      for group in groups
      for x in group.inputs[:1]
    ]
  )
  # Stored where they are computed: each is read in every pass.
  stored = lax.optimization_barrier([list(group.inputs) for group in groups])
  most = max(sum(map(len, group.ranks)) for group in groups)
  m = min(max(_COUNTED // most, _LEAST), _MOST)

  def passed(reduce, at):
    """Reduces the elements of each group beside some (s, ...)."""
    # Held back from being computed before the loop, and stored.
    at, inputs = lax.optimization_barrier((at, stored))
    split = [_split(groups, x) for x in at]
    found = [
      jnp.stack(reduce(_bits(group, own), *beside), axis=1)
      for group, own, *beside in zip(groups, inputs, *split, strict=True)
    ]
    return jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in found])

  none = jnp.zeros((len(k), 0), jnp.int32)

  def count(at, _):
    counts = passed(lambda bits, at: _counts(bits, at, m), [at])
    return counts.reshape(-1, m), jnp.zeros((len(k), m, 0), jnp.int32)

  def count_places(at, _):
    counts = passed(
      lambda bits, at, value: _counts(_places(bits, value), at, m), [at, value]
    )
    return counts.reshape(-1, m), jnp.zeros((len(k), m, 0), jnp.int32)

  zero = jnp.zeros_like(k)
  bracket = brackets.Bracket(
    zero, zero + sizes, none, zero + brackets.TOP, zero, none
  )
  bracket = brackets.search(
    count,
    k,
    bracket,
    _ENOUGH,
    m,
    first=_first(groups, stored, k, sizes, m),
    exact=exact,
  )
  wanted = k - bracket.high_count
  within = bracket.within
  ends = passed(_ends, [bracket.low, bracket.high]).reshape(-1, 3)
  large, small, place = ends[:, 0], brackets.TOP - ends[:, 1], ends[:, 2]
  few = within <= _ENOUGH
  value = jnp.where(wanted == 1, large, small)
  value = jnp.where(few, value, bracket.low)
  value = jnp.where(wanted == within, small, value)
  if exact:
    return value, None
  # Of equals the first may do, and is known; all are in if all are wanted.
  all_in = (wanted == within) | (few & (large != small))
  known = all_in | few
  places = brackets.Bracket(
    zero + 1, jnp.where(known, wanted, within), none, sizes + 1, zero, none
  )
  rest = brackets.search(count_places, wanted, places, 0, m).low
  return value, jnp.where(all_in, 1, jnp.where(few, place, rest))


def _by_kernels(groups, k, exact):
  """As `_find`."""
  searches = [x.reshape(x.shape[0], -1) for x in _split(groups, k)]
  found = gpu_search.find(groups, searches, exact)
  return [
    jnp.concatenate([x.reshape(-1) for x in each])
    for each in zip(*found, strict=True)
  ]


def _first(groups, inputs, k, sizes, m):
  """Thresholds (s, m) about the k-th largest, from a sample."""
  samples = []
  for group, own in zip(groups, inputs, strict=True):
    size = max(own[0][0].size, 1)
    # Odd, so that it does not stay in some columns.
    places = np.arange(_SAMPLE) * (max(size // _SAMPLE, 1) | 1) % size
    picked = [x.reshape(x.shape[0], -1) for x in own]
    picked = [
      x[:, places] if x.size else jnp.zeros((len(x), _SAMPLE), x.dtype)
      for x in picked
    ]
    samples.append(jnp.stack(_bits(group, picked), 1).reshape(-1, _SAMPLE))
  ordered = lax.sort(jnp.concatenate(samples), is_stable=False)
  return brackets.about(
    ordered, k, np.maximum(sizes, 1).astype(np.float32), brackets.spread(m)
  )


def _counts(bits, at, m):
  """How many of (L, size) are at or above thresholds (L, n, m), (L,) each."""
  return tensors.row_sums(
    [x >= at[:, i, j, None] for i, x in enumerate(bits) for j in range(m)]
  )


def _places(bits, value):
  """From each element that has the value (L, n) to the end; else zero."""
  size = bits[0].shape[1]
  place = size - jnp.arange(size, dtype=jnp.int32)
  return [
    jnp.where(x == value[:, i, None], place, 0) for i, x in enumerate(bits)
  ]


def _ends(bits, low, high):
  """The largest, TOP less the smallest, and the first place in brackets."""
  size = bits[0].shape[1]
  place = jnp.broadcast_to(
    size - jnp.arange(size, dtype=jnp.int32), bits[0].shape
  )
  terms = []
  for i, x in enumerate(bits):
    there = (x >= low[:, i, None]) & (x < high[:, i, None])
    for term in (x, brackets.TOP - x, place):
      terms.append(jnp.where(there, term, 0))

  def larger(left, right):
    return tuple(jnp.maximum(x, y) for x, y in zip(left, right, strict=True))

  zeros = tuple(jnp.int32(0) for _ in terms)
  return list(lax.reduce(tuple(terms), zeros, larger, (1,)))
