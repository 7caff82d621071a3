"""Who is drawn as a parent, who survives, and by which worth.

Everything is told apart by one number a member, its worth: the fitness, the
place in the non-dominated sort of the tasks' fitnesses, or the fitness shared
on the tasks with all who are good at them. With it every method of drawing
works, for parents and for survivors.

A place that holds nobody has the id -1. It is never drawn.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import niching
from evojax_llm.operators import pareto
from evojax_llm.operators import selection
from evojax_llm.operators import survival

# As operators.selection has them, and 'random', where all who live are equal.
METHODS = (*selection.METHODS, 'random')
WORTHS = ('fitness', 'pareto', 'shared')


def worth(
  chosen_by: str,
  fitness: jax.Array,
  objectives: jax.Array | None,
  ids: jax.Array,
  share_alpha: jax.Array,
) -> jax.Array:
  """The number by which members are chosen.

  Args:
    chosen_by: one of WORTHS.
    fitness: (P,) f32, NaN where failed or empty.
    objectives: (P, K) f32 fitness on each task, likewise; for 'fitness' None
      will do.
    ids: (P,) i32.
    share_alpha: () f32, of 'shared': how strongly members compete on a task.

  Returns:
    (P,) f32, maximised; NaN where failed or empty.
  """
  if chosen_by == 'fitness':
    return fitness
  known = jnp.where(jnp.isfinite(fitness)[:, None], objectives, jnp.nan)
  if chosen_by == 'pareto':
    return pareto.fitness(known, ids)
  # What is shared must not be negative, as errors to be minimised are.
  lowest = jnp.min(jnp.where(jnp.isfinite(known), known, 0.0), axis=0)
  return niching.shared_fitness(known - jnp.minimum(lowest, 0.0), share_alpha)


def parents(
  method: str,
  key: jax.Array,
  value: jax.Array,
  ids: jax.Array,
  share: jax.Array,
  entrants: int,
) -> jax.Array:
  """Two different members for one child.

  Failed members are drawn for want of others alone; with fewer than two
  members, what is returned means nothing.

  Args:
    method: one of METHODS. 'truncation' draws evenly from the fittest.
    key: () typed key.
    value: (P,) f32 worth.
    ids: (P,) i32.
    share: () f32, of 'truncation': which part of those able is drawn from, at
      least two.
    entrants: of a tournament.

  Returns:
    (2,) i32 places.
  """
  present = ids >= 0
  able = present & jnp.isfinite(value)
  able = jnp.where(jnp.sum(able) >= 2, able, present)
  if method == 'tournament':
    return selection.tournaments(key, value, 2, ids, able, entrants=entrants)
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
    position = selection.places_of(selection.ranking(value, ids))
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
  """Brings members and proposals back to `count` places.

  As long as there are no more of them than places, everybody lives on.

  Args:
    method: one of METHODS.
    key: () typed key.
    value: (Q,) f32 worth.
    ids: (Q,) i32.
    count: number of places.
    elites: () i32, the worthiest, who survive whatever is drawn.
    entrants: of a tournament.

  Returns:
    (count,) i32 places, of which those beyond the number of members hold
    nobody.
  """
  eligible = ids >= 0
  if method == 'random':
    position = selection.places_of(selection.ranking(value, ids))
    # All alike, but for the elites.
    chances = jnp.where(position < elites, 2.0, 1.0)
    value = jnp.where(jnp.isfinite(value), chances, jnp.nan)
    method = 'roulette'
  chosen = survival.survivors(
    key, value, eligible, count, ids, elites, method=method, entrants=entrants
  )
  everybody = jnp.lexsort((ids, ~eligible))[:count].astype(jnp.int32)
  return jnp.where(jnp.sum(eligible) <= count, everybody, chosen)
