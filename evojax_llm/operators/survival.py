"""Survival: bringing members and proposals back to P.

As in `selection`, indices and not genomes are returned for any fitness
whatever, draws are addressed by id, and ties go to the lower id.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import selection
from evojax_llm.operators.operator import Parameter

ELITES = Parameter('elites', 1, 'the fittest, which survive', 0, span=(0, 10))


def elite_count(
  share: jax.Array | float,
  members: jax.Array | int,
  *,
  least: int = 1,
  rounding='floor',
) -> jax.Array:
  """Returns the number of elites, () i32, for a share of the members.

  `least` is a guard that GENOME's released code has not: its default share of
  0.02 makes no elite among ten. `rounding` is 'floor' (GENOME) or 'round'
  (GENOME+).

  Raises:
    ValueError: if `rounding` is neither.
  """
  if rounding not in ('floor', 'round'):
    raise ValueError(f"Got rounding {rounding!r}; expected 'floor' or 'round'.")
  exact = jnp.float32(share) * jnp.float32(members)
  # A share of 0.1 of ten is one elite, also in f32.
  whole = jnp.round(exact) if rounding == 'round' else jnp.floor(exact + 1e-4)
  return jnp.clip(whole.astype(jnp.int32), least, members)


def survivors(
  key: jax.Array,
  fitness: jax.Array,
  eligible: jax.Array,
  count: int,
  ids: jax.Array,
  elites: jax.Array | int = 1,
  *,
  method: str = 'roulette',
  entrants: int = 3,
) -> jax.Array:
  """Chooses survivors, (mu + lambda): elites, then others by `method`.

  Args:
    key: () typed key.
    fitness: (P + M,) f32 of members and proposals together.
    eligible: (P + M,) bool; false for empty slots.
    count: P, at most the number eligible.
    ids: (P + M,) i32; may repeat only where not eligible.
    elites: () i32, the fittest that survive whatever is drawn.
    method: one of METHODS; a tournament has `entrants`.

  Returns:
    (count,) different i32 indices, ordered by id; failed members only if too
      few others are eligible.

  Raises:
    ValueError: if `method` is unknown or there are fewer members than `count`.
  """
  if method not in selection.METHODS:
    raise ValueError(
      f'Got selection {method!r}; expected one of {selection.METHODS}.'
    )
  fitness = selection.seen('fitness', fitness, 'P')
  ids, eligible = jnp.asarray(ids), jnp.asarray(eligible)
  if not 0 <= count <= fitness.shape[0]:
    raise ValueError(
      f'Got {count} survivors out of {fitness.shape[0]}; expected 0 to '
      f'{fitness.shape[0]}.'
    )
  ELITES.check_known(elites, 'survivors')
  elites = jnp.asarray(elites, jnp.int32)
  fitness = jnp.where(eligible, fitness, jnp.nan)
  order = jnp.lexsort((ids, selection.ranking_key(fitness), ~eligible))
  position = selection.positions_in(order)
  if method == 'tournament':
    # Failed members stand aside while there are others: drawn three at a time
    # they could win, as a group of failed entrants has a winner too.
    alive = eligible & jnp.isfinite(fitness)
    playing = jnp.where(jnp.sum(alive) >= count, alive, eligible)
    chosen = selection.tournament(
      key,
      fitness,
      count,
      ids,
      entrants=entrants,
      eligible=playing,
      elites=elites,
    )
  else:
    chances = fitness
    if method == 'rank':
      chances = selection.rank_chances(fitness, ids)
    group, chance = selection.classes(chances)
    if method == 'truncation':
      group, chance = jnp.zeros_like(group), -position.astype(jnp.float32)
    is_elite = eligible & (position < elites)
    group = jnp.where(is_elite, selection.ELITE, group)
    group = jnp.where(eligible, group, selection.EXCLUDED)
    if method == 'universal':
      return selection.spin(key, group, chance, count, ids)
    if method != 'truncation':
      chance = chance + selection.gumbel(key, ids)
    chosen = jnp.lexsort((ids, -chance, group))[:count]
  return chosen[jnp.argsort(ids[chosen])].astype(jnp.int32)
