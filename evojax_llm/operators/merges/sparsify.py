"""What of a delta a merge keeps: the large, the middle, or what is drawn.

Each function takes k parents (k, ...), their base (...) and the densities, the
shares that are kept, (k,) or () for all alike, and gives the k deltas in f32
with the rest set to zero. At density 1 a delta stays as it is, at 0 nothing of
it stays, and in between magnitudes keep at least one element.

`rescale` makes up for what is gone: 'density' divides by the density (DARE,
arXiv 2311.03099), 'l1' restores the sum of absolute values (mergekit's), and
'none' leaves it.
"""

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges import thresholds

RESCALES = ('l1', 'density', 'none')
_PER_WORD = 8


def magnitude(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  *,
  rescale: str = 'none',
) -> list[jax.Array]:
  """The floor(density n) largest by size (TIES, arXiv 2306.01708)."""
  shares = tensors.each(density, len(parents))
  ranks = [[thresholds.at_least_one(share, base.size)] for share in shares]
  deltas = tensors.deltas(parents, base)
  masks = [
    thresholds.inside(delta, cut)
    for delta, (cut,) in zip(deltas, _cuts(parents, base, ranks), strict=True)
  ]
  return _kept(deltas, masks, shares, rescale)


def middle(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  gamma: jax.Array | float,
  *,
  rescale: str = 'none',
) -> list[jax.Array]:
  """The floor(density n) largest after the floor(gamma n) largest of all.

  Breadcrumbs (arXiv 2312.06795). Where fewer remain, less is taken off the
  top, so that the density is kept. gamma is (k,), or () for all alike.
  """
  shares = tensors.each(density, len(parents))
  ranks = []
  for share, outliers in zip(
    shares, tensors.each(gamma, len(parents)), strict=True
  ):
    count = thresholds.at_least_one(share, base.size)
    above = thresholds.share(outliers, base.size)
    above = jnp.minimum(above, base.size - count)
    ranks.append([above, above + count])
  deltas, masks = tensors.deltas(parents, base), []
  for delta, cuts in zip(deltas, _cuts(parents, base, ranks), strict=True):
    large, wanted = (thresholds.inside(delta, cut) for cut in cuts)
    masks.append(wanted & ~large)
  return _kept(deltas, masks, shares, rescale)


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
  taken, so that the mean over masks is the delta exactly.
  """
  steps = [draws.steps(x) for x in tensors.each(density, len(parents))]
  return _drawn(tensors.deltas(parents, base), steps, key, rescale)


def by_rank(
  parents: jax.Array,
  base: jax.Array,
  density: jax.Array | float,
  epsilon: jax.Array | float,
  key: jax.Array,
  *,
  axis: int = -1,
  rescale: str = 'l1',
) -> list[jax.Array]:
  """By chance, the larger the likelier in its row (DELLA, arXiv 2406.11617).

  'density' divides each element by its own chance, as in the paper. epsilon is
  (k,), or () for all alike.
  """
  deltas = tensors.deltas(parents, base)
  shares = tensors.each(density, len(parents))
  widths = tensors.each(epsilon, len(parents))
  steps = [
    draws.steps(keep_chances(delta, share, width, axis))
    for delta, share, width in zip(deltas, shares, widths, strict=True)
  ]
  return _drawn(deltas, steps, key, rescale)


def _cuts(parents, base, ranks):
  """Where the largest of the deltas end, which are stored nowhere."""
  return thresholds.top(
    lambda *given: tensors.deltas(given[:-1], given[-1]),
    [*parents, base],
    ranks,
  )


def _drawn(deltas, steps, key, rescale):
  """The deltas where a number in [0, STEPS) is below their steps."""
  numbers = draws.decisions(key, deltas[0].shape, len(deltas))
  masks = [n < step for n, step in zip(numbers, steps, strict=True)]
  if rescale == 'l1':
    # Read twice: stored as bits, or all would be drawn twice.
    masks = _unpacked(lax.optimization_barrier(_packed(masks)), len(masks))
  chances = [step.astype(jnp.float32) / draws.STEPS for step in steps]
  return _kept(deltas, masks, chances, rescale)


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

  r is the rank of an element's size among the n of its row, the smallest
  first and equals in their order; n = 1 counts as the middle. Chances are
  cut to [0, 1]; at density 0 and 1 all are 0 or 1 whatever the epsilon.

  Args:
    delta: (...).
    density, epsilon: ().
    axis: the axis that runs along a row.
  """
  n = delta.shape[axis] if delta.ndim else 1
  if n == 1:
    height = jnp.full(delta.shape, 0.5, jnp.float32)
  else:
    height = _ranks(delta, axis).astype(jnp.float32) / (n - 1)
  chance = jnp.clip(density + epsilon * (2.0 * height - 1.0), 0.0, 1.0)
  settled = (density <= 0.0) | (density >= 1.0)
  return jnp.where(settled, jnp.clip(density, 0.0, 1.0), chance)


def _ranks(delta, axis):
  """Each element's place in its row by size, i32 from 0."""
  # Rows side by side in memory are sorted faster. Integers compare faster than
  # floats, whose order has to place NaN.
  size = lax.bitcast_convert_type(jnp.abs(delta), jnp.int32)
  size = jnp.moveaxis(size, axis, -1)
  place = lax.broadcasted_iota(jnp.int32, size.shape, size.ndim - 1)
  _, order = lax.sort((size, place), dimension=size.ndim - 1, num_keys=1)
  ranks = jnp.put_along_axis(
    jnp.zeros_like(place), order, place, -1, inplace=False
  )
  return jnp.moveaxis(ranks, -1, axis)
