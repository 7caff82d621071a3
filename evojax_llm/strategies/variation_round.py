"""A round of crossover and mutation, and the selection that ends it.

Slots of a proposal: C = P // 2 for children, then those for mutated copies.
Every draw is addressed by the id of who draws, so the order of the members
does not matter.
"""

from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import selection
from evojax_llm.operators import survival
from evojax_llm.operators.merges import linear
from evojax_llm.operators.merges import weights as merge_weights
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack

# In the order of the slots; with '+scale', the member's mass was changed too.
OPERATORS = ('crossover', 'crossover+scale', 'mutation', 'mutation+scale')
CROSSOVERS = ('fitness', 'extrapolate')


def propose(
  strategy: Any, key: jax.Array, state: Any, params: Any
) -> tuple[stack.Population, dict[str, Any]]:
  """Crossover children, and mutated copies of members and children.

  Failed members take no part, unless everybody failed. More copies than there
  are slots are dropped, those of the highest ids first.

  Args:
    strategy: for its options and numbers of slots; see genome.Genome.
    key: () typed key.
    state: with the population and its fitness.
    params: hyperparameters; see genome.Params.

  Returns:
    Members (M, ...), and the state's new proposal.
  """
  generation, first_id = state.generation, state.next_id
  able = jnp.isfinite(state.fitness)
  able = able | ~jnp.any(able)
  num_children, num_mutants = strategy.num_children, strategy.num_mutants
  num_slots = num_children + num_mutants
  ids = first_id + jnp.arange(num_slots, dtype=jnp.int32)
  child_ids = ids[:num_children]
  children, wanted, child_parents, child_scaled = _cross(
    strategy, key, state, able, child_ids, params
  )

  # Nobody is copied twice, so a copy may draw with the id of its source.
  pool = stack.concatenate(state.population, children)
  pool_ids = jnp.concatenate([state.ids, child_ids])
  copy_keys = keys.keys_for(key, generation, pool_ids, 'copy')
  chance, scale_chance, mass = _uniform(copy_keys, 3)
  mutates = jnp.concatenate([able, wanted]) & (chance < params.mutation_rate)
  order = jnp.lexsort((pool_ids, ~mutates))[:num_mutants]
  sources = pool_ids[order]

  def mutate(mutant_key, genome):
    return mutation.gaussian(
      mutant_key,
      genome,
      params.sigma,
      params.gene_rate,
      relative=strategy.relative_sigma,
      mask=strategy.mask,
    )

  mutants = jax.vmap(mutate)(
    keys.keys_for(key, generation, sources, 'mutation'), stack.take(pool, order)
  )
  mutants, mutant_scaled = _scale(
    scale_chance[order], mass[order], mutants, params
  )

  mutant_parents = jnp.stack(
    [sources, jnp.full_like(sources, lineage.NOBODY)], axis=1
  )
  operator = jnp.concatenate(
    [
      _operator(strategy, 'crossover') + child_scaled.astype(jnp.int32),
      _operator(strategy, 'mutation') + mutant_scaled.astype(jnp.int32),
    ]
  )
  empty = strategy.num_proposals - num_slots
  proposal = lineage.fill(
    jnp.pad(jnp.concatenate([wanted, mutates[order]]), (0, empty)),
    first_id,
    jnp.pad(
      jnp.concatenate([child_parents, mutant_parents]), ((0, empty), (0, 0))
    ),
    jnp.pad(operator, (0, empty)),
  )
  proposals = stack.concatenate(children, mutants)
  return stack.pad(proposals, strategy.num_proposals), {'proposal': proposal}


def select(
  strategy: Any,
  key: jax.Array,
  population: stack.Population,
  fitness: jax.Array,
  state: Any,
  params: Any,
) -> tuple[Any, jax.Array]:
  """Brings members and proposals back to P.

  Returns:
    State with the survivors, and (P,) their places among members and
    proposals.
  """
  members = strategy.population_size
  pool_fitness = jnp.concatenate([state.fitness, fitness])
  pool_ids = jnp.concatenate([state.ids, state.proposal.ids])
  eligible = pool_ids >= 0
  elite_base = jnp.int32(members)
  if strategy.elite_base == 'pool':
    elite_base = jnp.sum(eligible)
  places = survival.survivors(
    keys.key_for(key, state.generation, lineage.NOBODY, 'selection'),
    pool_fitness,
    eligible,
    members,
    pool_ids,
    survival.elite_count(
      params.elite_share,
      elite_base,
      least=strategy.least_elites,
      rounding=strategy.elite_rounding,
    ),
    method=strategy.selection_method,
    entrants=strategy.entrants,
  )
  pool = stack.concatenate(state.population, population)
  state = state.replace(
    population=stack.take(pool, places),
    fitness=pool_fitness[places],
    ids=pool_ids[places],
  )
  return state, places


def _operator(strategy, name):
  return strategy.operator_names.index(name)


def _uniform(member_keys, count):
  """(count, M) f32 in [0, 1): several draws of each member."""
  return jax.vmap(lambda k: jax.random.uniform(k, (count,), jnp.float32))(
    member_keys
  ).T


def _cross(strategy, key, state, able, ids, params):
  """Children (C, ...), slots used (C,), parents' ids (C, 2), scaled (C,)."""
  if not strategy.num_children:
    nothing = jax.tree.map(lambda leaf: leaf[:0], state.population)
    none = jnp.zeros((0,), bool)
    return nothing, none, jnp.zeros((0, 2), jnp.int32), none
  child_keys = keys.keys_for(key, state.generation, ids, 'child')
  chance, t, scale_chance, mass = _uniform(child_keys, 4)
  # Two distinct parents must be found among those able.
  wanted = (chance < params.cross_rate) & (jnp.sum(able) >= 2)
  places = jax.vmap(
    lambda k: selection.roulette(k, state.fitness, 2, state.ids)
  )(keys.keys_for(key, state.generation, ids, 'parents'))
  if strategy.crossover == 'fitness':
    weights = jax.vmap(merge_weights.fitness_weights)(state.fitness[places])
  else:
    t = params.cross_low + (params.cross_high - params.cross_low) * t
    weights = jax.vmap(merge_weights.line_weights)(t)
  children = jax.vmap(linear.combine)(
    stack.take(state.population, places), weights
  )
  children, scaled = _scale(scale_chance, mass, children, params)
  return children, wanted, state.ids[places], scaled


def _scale(chance, mass, population, params):
  """Multiplies the mass of some members; (M, ...) and (M,) bool."""
  scaled = chance < params.scale_rate
  factor = params.scale_low + (params.scale_high - params.scale_low) * mass
  # A factor of one leaves a member as it is, bit for bit.
  factor = jnp.where(scaled, factor, 1.0)
  return jax.vmap(mutation.scale_by)(population, factor), scaled
