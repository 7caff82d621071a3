"""Which members become parents or survive, and by which criterion.

The criterion is one number a member: its fitness, its position in the
non-dominated sort of the fitness on each task, or the fitness on the tasks
shared with all members that are good at them. Every method of drawing works
with each criterion, for parents and for survivors.

An empty slot has the id -1. It is never drawn.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import niching
from evojax_llm.operators import pareto
from evojax_llm.operators import selection
from evojax_llm.operators import survival

# Those of operators.selection, and 'random', where all living are equal.
METHODS = (*selection.METHODS, 'random')
CRITERIA = ('fitness', 'pareto', 'shared')


def criterion(
  chosen_by: str,
  fitness: jax.Array,
  tasks: jax.Array | None,
  ids: jax.Array,
  share_alpha: jax.Array,
) -> jax.Array:
  """Returns the number by which members are chosen, (P,) f32, maximised.

  Args:
    chosen_by: one of CRITERIA.
    fitness: (P,) f32, NaN where failed or empty.
    tasks: (P, K) f32, likewise; None will do for 'fitness'.
    ids: (P,) i32.
    share_alpha: () f32, of 'shared': how strongly members compete on a task.
  """
  if chosen_by == 'fitness':
    return fitness
  known = jnp.where(jnp.isfinite(fitness)[:, None], tasks, jnp.nan)
  if chosen_by == 'pareto':
    return pareto.fitness(known, ids)
  return niching.shared_fitness(niching.not_negative(known), share_alpha)


def parents(
  method: str,
  key: jax.Array,
  value: jax.Array,
  ids: jax.Array,
  share: jax.Array,
  entrants: int,
) -> jax.Array:
  """Draws two different members for one child: (2,) i32 slots.

  'truncation' draws evenly from the fittest `share` () of those able, at least
  two. Failed members are drawn only for want of others; with fewer than two
  members, what is returned means nothing.
  """
  present = ids >= 0
  able = present & jnp.isfinite(value)
  able = jnp.where(jnp.sum(able) >= 2, able, present)
  if method == 'tournament':
    return selection.tournament(
      key, value, 2, ids, entrants=entrants, eligible=able
    )
  if method == 'universal':
    group, chance = selection.classes(jnp.where(able, value, jnp.nan))
    group = jnp.where(able, group, selection.EXCLUDED)
    pair = selection.spin(key, group, chance, 2, ids)
    # They come in the order of ids; which one is first is for chance.
    swapped = jax.random.bernoulli(jax.random.fold_in(key, 1))
    return jnp.where(swapped, pair[::-1], pair)
  if method == 'rank':
    value = selection.rank_chances(value, ids)
  elif method == 'truncation':
    position = selection.positions_in(selection.ranking(value, ids))
    count = jnp.ceil(share * jnp.sum(able).astype(jnp.float32))
    fittest = position < jnp.maximum(count, 2.0).astype(jnp.int32)
    value = jnp.where(fittest, 1.0, jnp.nan)
  elif method == 'random':
    value = jnp.ones_like(value)
  return selection.roulette(key, value, 2, ids, eligible=able)


def survivors(
  method: str,
  key: jax.Array,
  value: jax.Array,
  ids: jax.Array,
  count: int,
  elites: jax.Array,
  entrants: int,
) -> jax.Array:
  """Brings Q members and proposals back to `count` slots.

  As long as there are no more of them than slots, all live on. `value` (Q,) is
  the criterion; the best `elites` () survive whatever is drawn.

  Returns:
    (count,) i32 positions; those beyond the number of members are of empty
      slots.
  """
  eligible = ids >= 0
  if method == 'random':
    position = selection.positions_in(selection.ranking(value, ids))
    # All alike, but for the elites.
    chances = jnp.where(position < elites, 2.0, 1.0)
    value = jnp.where(jnp.isfinite(value), chances, jnp.nan)
    method = 'roulette'
  chosen = survival.survivors(
    key, value, eligible, count, ids, elites, method=method, entrants=entrants
  )
  all_members = jnp.lexsort((ids, ~eligible))[:count].astype(jnp.int32)
  return jnp.where(jnp.sum(eligible) <= count, all_members, chosen)
