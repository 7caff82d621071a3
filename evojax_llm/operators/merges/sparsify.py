"""What of a delta a merge keeps: the large, the middle, or what is drawn.

Each function takes k deltas and the k densities (shares that are kept) and
gives the k deltas with the rest set to zero. At density 1 a delta stays as it
is, at 0 nothing of it stays, and in between magnitudes keep at least one
element.

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

Deltas = list[jax.Array]
RESCALES = ('l1', 'density', 'none')


def _rescaled(delta, kept, density, rescale):
  if rescale == 'none':
    return kept
  if rescale == 'density':
    return kept / tensors.divisor(density)
  before, after = tensors.sums([jnp.abs(delta), jnp.abs(kept)])
  possible = (before > 0.0) & (after > 0.0)
  return kept * jnp.where(possible, before / tensors.divisor(after), 1.0)


def magnitude(
  deltas: Deltas, density: list[jax.Array], *, rescale: str = 'none'
) -> Deltas:
  """The floor(density n) largest by size (TIES, arXiv 2306.01708)."""
  counts = [thresholds.at_least_one(d, deltas[0].size) for d in density]
  found = []
  for delta, count, share in zip(deltas, counts, density, strict=True):
    cut = thresholds.top(delta, count)
    kept = jnp.where(thresholds.inside(delta, cut), delta, 0.0)
    found.append(_rescaled(delta, kept, share, rescale))
  return found


def middle(
  deltas: Deltas,
  density: list[jax.Array],
  gamma: list[jax.Array],
  *,
  rescale: str = 'none',
) -> Deltas:
  """The floor(density n) largest after the floor(gamma n) largest of all.

  Breadcrumbs (arXiv 2312.06795). Where fewer remain, less is taken off the
  top, so that the density is kept.
  """
  size = deltas[0].size
  counts = [thresholds.at_least_one(d, size) for d in density]
  above = [
    jnp.minimum(thresholds.share(outliers, size), size - count)
    for outliers, count in zip(gamma, counts, strict=True)
  ]
  found = []
  for delta, top, count, share in zip(
    deltas, above, counts, density, strict=True
  ):
    large, wanted = (
      thresholds.inside(delta, thresholds.top(delta, k))
      for k in (top, top + count)
    )
    middling = wanted & ~large
    kept = jnp.where(middling, delta, 0.0)
    found.append(_rescaled(delta, kept, share, rescale))
  return found


def bernoulli(
  deltas: Deltas,
  density: list[jax.Array],
  key: jax.Array,
  *,
  rescale: str = 'l1',
) -> Deltas:
  """Each element on its own with the chance of the density (DARE).

  Chances are multiples of 2^-16. 'density' divides by the chance that was
  taken, so that the mean over masks is the delta exactly.
  """
  numbers = draws.decisions(key, deltas[0].shape, len(deltas))
  found = []
  for delta, share, number in zip(deltas, density, numbers, strict=True):
    steps = draws.steps(share)
    kept = jnp.where(number < steps, delta, 0.0)
    chance = steps.astype(jnp.float32) / draws.STEPS
    found.append(_rescaled(delta, kept, chance, rescale))
  return found


def by_rank(
  deltas: Deltas,
  density: list[jax.Array],
  epsilon: list[jax.Array],
  key: jax.Array,
  *,
  axis: int = -1,
  rescale: str = 'l1',
) -> Deltas:
  """By chance, the larger the likelier in its row (DELLA, arXiv 2406.11617).

  'density' divides each element by its own chance, as in the paper.
  """
  numbers = draws.decisions(key, deltas[0].shape, len(deltas))
  found = []
  for delta, share, width, number in zip(
    deltas, density, epsilon, numbers, strict=True
  ):
    chance = keep_chances(delta, share, width, axis)
    steps = draws.steps(chance)
    kept = jnp.where(number < steps, delta, 0.0)
    realised = steps.astype(jnp.float32) / draws.STEPS
    found.append(_rescaled(delta, kept, realised, rescale))
  return found


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
  place = lax.broadcasted_iota(jnp.int32, delta.shape, delta.ndim + axis)
  size = lax.bitcast_convert_type(jnp.abs(delta), jnp.int32)
  # Integers compare faster than floats, whose order has to place NaN.
  _, order = lax.sort((size, place), dimension=delta.ndim + axis, num_keys=1)
  ranks = jnp.zeros(delta.shape, jnp.int32)
  return jnp.put_along_axis(ranks, order, place, axis, inplace=False)
