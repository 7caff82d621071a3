"""What of a delta a merge keeps: the large, the middle, or what is drawn.

Each function takes k parents (k, ...), their base (...) and the densities, the
shares that are kept, (k,) or () for all alike, and gives the k deltas in f32
with the rest set to zero. At density 1 a delta stays as it is, at 0 nothing of
it stays, and in between magnitudes keep at least one element.

`rescale` makes up for what is gone: 'density' divides by the density (DARE,
arXiv 2311.03099), 'l1' restores the sum of absolute values (mergekit's), and
'none' leaves it.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import brackets
from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import small
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges import thresholds

RESCALES = ('l1', 'density', 'none')
_PER_WORD = 8
# Where the largest of each of k deltas end, one cut or two.
Cuts = Sequence[Sequence[brackets.Cut]]


def magnitude(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  *,
  rescale: str = 'none',
  cuts: Cuts | None = None,
) -> list[jax.Array]:
  """The floor(density n) largest by size (TIES, arXiv 2306.01708).

  `cuts` are those of `ranks` where they are known.
  """
  shares = tensors.each(density, len(parents))
  if cuts is None:
    wanted = ranks(len(parents), base.size, density)
    cuts = _cuts(parents, base, wanted)
  deltas = tensors.deltas(parents, base)
  masks = [
    thresholds.inside(delta, cut)
    for delta, (cut,) in zip(deltas, cuts, strict=True)
  ]
  return _kept(deltas, masks, shares, rescale)


def middle(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  gamma: jax.Array | float,
  *,
  rescale: str = 'none',
  cuts: Cuts | None = None,
) -> list[jax.Array]:
  """The floor(density n) largest after the floor(gamma n) largest of all.

  Breadcrumbs (arXiv 2312.06795). Where fewer remain, less is taken off the
  top, so that the density is kept. gamma is (k,), or () for all alike. `cuts`
  are those of `ranks` where they are known.
  """
  shares = tensors.each(density, len(parents))
  if cuts is None:
    wanted = ranks(len(parents), base.size, density, gamma)
    cuts = _cuts(parents, base, wanted)
  deltas, masks = tensors.deltas(parents, base), []
  for delta, own in zip(deltas, cuts, strict=True):
    large, wanted = (thresholds.inside(delta, cut) for cut in own)
    masks.append(wanted & ~large)
  return _kept(deltas, masks, shares, rescale)


def ranks(
  parents: int,
  size: int,
  density: jax.Array | float,
  gamma: jax.Array | float | None = None,
) -> list[list[jax.Array]]:
  """How many elements, () i32, are above each cut of each delta of `size`."""
  found = [
    [thresholds.at_least_one(share, size)]
    for share in tensors.each(density, parents)
  ]
  if gamma is None:
    return found
  outliers = tensors.each(gamma, parents)
  above = [
    jnp.minimum(thresholds.share(share, size), size - count)
    for share, (count,) in zip(outliers, found, strict=True)
  ]
  return [[a, a + count] for a, (count,) in zip(above, found, strict=True)]


def bernoulli(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  key: jax.Array,
  *,
  rescale: str = 'l1',
) -> list[jax.Array]:
  """Each element on its own with the chance of the density (DARE).

  Chances are multiples of 2^-16. 'density' divides by the chance that was
  used, so that the mean over masks is the delta exactly.
  """
  steps = [draws.steps(x) for x in tensors.each(density, len(parents))]
  numbers = draws.decisions(key, base.shape, len(parents))
  masks = [n < step for n, step in zip(numbers, steps, strict=True)]
  if rescale == 'l1':
    masks = _stored(masks)  # Read twice, or all would be drawn twice.
  chances = [draws.chance(step) for step in steps]
  return _kept(tensors.deltas(parents, base), masks, chances, rescale)


def by_rank(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  epsilon: jax.Array | float,
  key: jax.Array,
  *,
  axis: int = -1,
  rescale: str = 'l1',
  masks: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
  """By chance, the larger the likelier in its row (DELLA, arXiv 2406.11617).

  The chances are those of `keep_chances` to within 2^-16. 'density' divides
  each element by its own, as in the paper. epsilon is (k,), or () for all
  alike. `masks` are those of `rank_masks` where they are known.
  """
  deltas = tensors.deltas(parents, base)
  shares = tensors.each(density, len(parents))
  widths = tensors.each(epsilon, len(parents))
  if masks is None:
    masks = rank_masks(parents, base, density, epsilon, key, axis=axis)
  chances = shares
  if rescale == 'density':
    chances = [
      keep_chances(delta, share, width, axis)
      for delta, share, width in zip(deltas, shares, widths, strict=True)
    ]
  return _kept(deltas, masks, chances, rescale)


def rank_masks(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  epsilon: jax.Array | float,
  key: jax.Array,
  *,
  axis: int = -1,
  ordered: Sequence[jax.Array] | None = None,
  start: jax.Array | int = 0,
) -> list[jax.Array]:
  """Whether `by_rank` keeps each element, bool.

  Args:
    parents: (k, ...), or whole rows of them.
    base: (...).
    density: (k,) or ().
    epsilon: (k,) or ().
    key: of the tensor.
    axis: the one that runs along a row.
    ordered: the bits of the sizes of each delta, its rows along the last axis
      and each sorted, where they are known.
    start: the index in its tensor of the first element, u32.
  """
  numbers = draws.decisions(key, base.shape, len(parents), start)
  # Stored with rows side by side in memory, as they are made.
  sizes = [
    brackets.size_bits(_rows(delta, axis))
    for delta in tensors.deltas(parents, base)
  ]
  if ordered is None:
    ordered = [lax.sort(size, is_stable=False) for size in sizes]
  masks = _stored(
    [
      _high_enough(size, order, share, width, _rows(n, axis))
      for size, order, share, width, n in zip(
        sizes,
        ordered,
        tensors.each(density, len(parents)),
        tensors.each(epsilon, len(parents)),
        numbers,
        strict=True,
      )
    ]
  )
  return [jnp.moveaxis(m, -1, axis).reshape(base.shape) for m in masks]


def group(
  inputs: Sequence[jax.Array], ranks: Sequence[Sequence[jax.Array]]
) -> small.Group:
  """Deltas to be searched with others, of parents (L, ...) and their base."""
  return small.Group(_of, inputs, ranks)


def _of(*inputs):
  return tensors.deltas(inputs[:-1], inputs[-1])


def _cuts(parents, base, ranks):
  """Where the largest of the deltas end, which are stored nowhere."""
  return thresholds.top(_of, [*parents, base], ranks)


def _stored(masks):
  """The masks, made once however often they are read, as bits."""
  return _unpacked(lax.optimization_barrier(_packed(masks)), len(masks))


def _packed(masks):
  """Masks as bits of u8 arrays, each of which holds eight."""
  return [
    sum(
      mask.astype(jnp.uint8) << jnp.uint8(bit)
      for bit, mask in enumerate(masks[first : first + _PER_WORD])
    )
    for first in range(0, len(masks), _PER_WORD)
  ]


def _unpacked(words, count):
  return [
    (words[i // _PER_WORD] >> jnp.uint8(i % _PER_WORD)) & jnp.uint8(1) > 0
    for i in range(count)
  ]


def _kept(deltas, masks, chances, rescale):
  """The deltas where the masks are true, rescaled."""
  kept = [jnp.where(m, d, 0.0) for m, d in zip(masks, deltas, strict=True)]
  if rescale == 'none':
    return kept
  if rescale == 'density':
    pairs = zip(kept, chances, strict=True)
    return [delta / tensors.divisor(chance) for delta, chance in pairs]
  found = tensors.sums([jnp.abs(delta) for delta in deltas + kept])
  before, after = found[: len(deltas)], found[len(deltas) :]
  return [
    delta * jnp.where((b > 0.0) & (a > 0.0), b / tensors.divisor(a), 1.0)
    for delta, b, a in zip(kept, before, after, strict=True)
  ]


def keep_chances(
  delta: jax.Array, density: jax.Array, epsilon: jax.Array, axis: int = -1
) -> jax.Array:
  """DELLA's chances: density - epsilon + 2 epsilon (r - 1) / (n - 1).

  r is the rank of an element's size among the n of its row along `axis`, the
  smallest first. Equals have the mean of what the first and the last of them
  would have, and n = 1 counts as the middle. Chances are cut to [0, 1]; at
  density 0 and 1 all are 0 or 1 whatever the epsilon.
  """
  sizes = brackets.size_bits(_rows(delta, axis))
  ordered = lax.sort(sizes, is_stable=False)
  ends = [
    jnp.vectorize(
      functools.partial(jnp.searchsorted, side=side), signature='(n),(n)->(n)'
    )(ordered, sizes)
    for side in ('left', 'right')
  ]
  n = sizes.shape[-1]
  first, last = (
    _chances(rank, n, density, epsilon) for rank in (ends[0], ends[1] - 1)
  )
  return jnp.moveaxis((first + last) / 2.0, -1, axis).reshape(delta.shape)


def _chances(rank, n, density, epsilon):
  """What `keep_chances` says of ranks (...), from 0 on, in a row of n."""
  rank = rank.astype(jnp.float32)
  height = rank / (n - 1) if n > 1 else rank + 0.5
  chance = jnp.clip(density + epsilon * (2.0 * height - 1.0), 0.0, 1.0)
  settled = (density <= 0.0) | (density >= 1.0)
  return jnp.where(settled, jnp.clip(density, 0.0, 1.0), chance)


def _high_enough(sizes, ordered, density, epsilon, numbers):
  """Where numbers in [0, STEPS) are below the steps of an element's chance.

  No element's rank is computed for that, which would sort pairs. A number keeps
  all elements from some rank on: an element is compared with the one of that
  rank in its row. Of equals an even number keeps all if it keeps the last, an
  odd number if it keeps the first. Sizes (..., n) are bits, and `ordered` the
  same with each row sorted.
  """
  n = sizes.shape[-1]
  steps = draws.steps(_chances(jnp.arange(n), n, density, epsilon))
  lowest = jnp.searchsorted(steps, jnp.arange(draws.STEPS), side='right')
  lowest = lowest.astype(jnp.int32)[numbers]
  odd = numbers & 1
  other = jnp.take_along_axis(
    ordered,
    jnp.clip(lowest - odd, 0, n - 1),
    axis=-1,
    mode='promise_in_bounds',
  )
  return (lowest == 0) | ((lowest < n) & (other <= sizes - odd))


def _rows(values, axis):
  """The axis last, so that rows lie side by side; of one number, a row."""
  return jnp.moveaxis(jnp.atleast_1d(values), axis, -1)
