"""Selection by several objectives at once: NSGA-II (Deb et al., 2002).

Members are sorted into fronts, such that no member is dominated by one of the
same or a later front, and within a front by their crowding distance. `fitness`
turns this order into one number a member, with which every selection and
survival of this package works. Objectives are maximised; a member with one that
is not finite has failed. Ties go to the lower id.
"""

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators import selection

# Areas that an exact hypervolume may take: about a second.
_MOST_AREAS = 30_000


def fronts(objectives: jax.Array) -> jax.Array:
  """Returns the non-dominated front (P,) i32 of each member, 0 the best.

  Objectives are (P, K) f32; failed members are in front P.
  """
  members = objectives.shape[0]
  alive = jnp.all(jnp.isfinite(objectives), axis=1)
  one, two = objectives[:, None], objectives[None, :]
  dominates = jnp.all(one >= two, axis=2) & jnp.any(one > two, axis=2)
  dominates = dominates & alive[:, None] & alive[None, :]

  def peel(state):
    number, front, left = state
    best = left & ~jnp.any(dominates & left[:, None], axis=0)
    return number + 1, jnp.where(best, number, front), left & ~best

  start = (jnp.int32(0), jnp.full((members,), members, jnp.int32), alive)
  return jax.lax.while_loop(lambda s: jnp.any(s[2]), peel, start)[1]


def crowding(
  objectives: jax.Array, front: jax.Array, ids: jax.Array | None = None
) -> jax.Array:
  """Returns how far each member's neighbours in its front are apart, (P,) f32.

  Summed over the objectives (P, K), each as a fraction of its range in the
  front; infinite at either end of a front. Zero for failed members.
  """
  members = objectives.shape[0]
  ids = selection.default_ids(front, ids)
  failed = front == members

  def along(values):
    order = jnp.lexsort((ids, values, front))
    ranked, group = values[order], front[order]
    below = jnp.roll(group, 1) == group
    below = below.at[0].set(False)
    above = jnp.roll(group, -1) == group
    above = above.at[-1].set(False)
    low = jax.ops.segment_min(ranked, group, members + 1)[group]
    high = jax.ops.segment_max(ranked, group, members + 1)[group]
    gap = (jnp.roll(ranked, -1) - jnp.roll(ranked, 1)) / jnp.where(
      high > low, high - low, 1.0
    )
    distance = jnp.where(below & above, gap, jnp.inf)
    return jnp.zeros_like(values).at[order].set(distance)

  known = jnp.where(failed[:, None], 0.0, objectives)
  total = jnp.sum(jax.vmap(along, 1)(known), axis=0)
  return jnp.where(failed, 0.0, total)


def ranking(objectives: jax.Array, ids: jax.Array | None = None) -> jax.Array:
  """Returns indices (P,) i32 by front, then crowding distance, then id."""
  objectives = selection.seen('objectives', objectives, 'P', 'K')
  front = fronts(objectives)
  ids = selection.default_ids(front, ids)
  distance = crowding(objectives, front, ids)
  return jnp.lexsort((ids, -distance, front)).astype(jnp.int32)


def fitness(objectives: jax.Array, ids: jax.Array | None = None) -> jax.Array:
  """Returns the ranking as a fitness (P,) f32 to be maximised.

  P for the first of the ranking, down to one; NaN where failed.
  """
  members = objectives.shape[0]
  position = selection.positions_in(ranking(objectives, ids))
  alive = jnp.all(jnp.isfinite(objectives), axis=1)
  return jnp.where(alive, (members - position).astype(jnp.float32), jnp.nan)


def hypervolume(objectives: np.ndarray, reference: np.ndarray) -> float:
  """Returns the volume between points and a reference that they dominate.

  Exact, by slicing objectives (While et al., 2006, IEEE Trans. Evol. Comput.
  10:29): of n points, the areas n^(K - 2) are summed. On the host.

  Args:
    objectives: (P, K), maximised; those of members that failed, or are not
      better than the reference in all, add nothing.
    reference: (K,).

  Returns:
    The volume; NaN where so many points in so many dimensions would take long.
  """
  points = np.asarray(objectives, np.float64) - np.asarray(reference)
  with np.errstate(invalid='ignore'):
    points = points[np.isfinite(points).all(axis=1) & (points > 0).all(axis=1)]
  points = np.unique(points, axis=0)
  if not len(points):
    return 0.0
  beaten = (points[:, None] <= points).all(axis=2).sum(axis=1) > 1
  points = points[~beaten]
  if len(points) ** (points.shape[1] - 2.0) > _MOST_AREAS:
    return float('nan')
  return float(_volume(points))


def _volume(points):
  """That of points (n, K) from zero, n at least one; any may dominate any."""
  if points.shape[1] == 1:
    return points.max()
  points = points[np.argsort(-points[:, -1])]
  if points.shape[1] == 2:
    reach = np.maximum.accumulate(points[:, 0])
    return (np.diff(reach, prepend=0.0) * points[:, 1]).sum()
  depth = points[:, -1] - np.append(points[1:, -1], 0.0)
  return sum(
    _volume(points[: i + 1, :-1]) * depth[i] for i in np.flatnonzero(depth)
  )
