"""A round of crossover and mutation, and the selection that ends it.

Slots of a proposal: C = P // 2 for children, then those for mutated copies,
where P is the number of places. Every draw is addressed by the id of who draws,
so the order of the members does not matter.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import survival
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies.genome import crossover
from evojax_llm.strategies.genome import parent_selection

# In the order of the slots; with '+scale', the member's mass was changed too.
OPERATORS = ('crossover', 'crossover+scale', 'mutation', 'mutation+scale')


@dataclasses.dataclass(frozen=True)
class Options:
  """What of a round is done how; the defaults are the corrected algorithm.

  Attributes:
    merge: makes a child; see crossover.Crossover.
    weighing: weights of its parents; likewise.
    merge_options: static choices of the merge, by name; None for its default.
    parents: how they are drawn, one of choice.METHODS.
    survivors: likewise.
    chosen_by: worth that parents and survivors are chosen by, one of
      choice.WORTHS; all but 'fitness' need the fitness of every task.
    entrants: size of a tournament.
    relative_sigma: see genome.Params.sigma.
    mask: one of operators.mutation.MASKS.
    least_elites: at least so many survive; the guard that keeps the best.
    elite_rounding: 'floor' or 'round' of elite_share times the base.
    elite_base: the base is the 'population', its places, or the 'pool' of
      members and filled proposals.
  """

  merge: str = 'linear'
  weighing: str = 'line'
  merge_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  parents: str = 'roulette'
  survivors: str = 'roulette'
  chosen_by: str = 'fitness'
  entrants: int = 3
  relative_sigma: bool = True
  mask: str = 'element'
  least_elites: int = 1
  elite_rounding: str = 'floor'
  elite_base: str = 'population'

  def __post_init__(self):
    for name, known in (
      ('parents', parent_selection.METHODS),
      ('survivors', parent_selection.METHODS),
      ('chosen_by', parent_selection.WORTHS),
      ('mask', mutation.MASKS),
      ('elite_rounding', ('floor', 'round')),
      ('elite_base', ('population', 'pool')),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f'Got {name} {getattr(self, name)!r}; expected one of {known}.'
        )
    for name, least in (('entrants', 1), ('least_elites', 0)):
      if getattr(self, name) < least:
        raise ValueError(
          f'Got {name} {getattr(self, name)}; expected {least} or more.'
        )

  def crossover(self) -> crossover.Crossover:
    """What makes a child of two parents.

    Raises:
      ValueError: if the merge or one of its options is unknown.
    """
    return crossover.make(self.merge, self.weighing, self.merge_options)


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
  options = strategy.variation
  generation, first_id = state.generation, state.next_id
  present = state.ids >= 0
  able = present & jnp.isfinite(state.fitness)
  able = jnp.where(jnp.any(able), able, present)
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
      relative=options.relative_sigma,
      mask=options.mask,
      # Of bf16 alone: most changes by a small sigma would be rounded away.
      rounding='stochastic',
    )

  mutants = jax.vmap(mutate)(
    keys.keys_for(key, generation, sources, 'mutation'), stack.take(pool, order)
  )
  mutants, mutant_scaled = _scale(
    scale_chance[order], mass[order], mutants, params
  )

  mutant_parents = jnp.stack(
    [sources, jnp.full_like(sources, lineage.NO_MEMBER)], axis=1
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
  objectives: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
  """Brings members and proposals back to P.

  Args:
    strategy: as in `propose`.
    key: () typed key.
    population: members (M, ...) of the ask.
    fitness: (M,) f32, NaN where failed or empty.
    state: with that ask's proposal.
    params: as in `propose`.
    objectives: (M, K) f32, or None.

  Returns:
    State with the survivors, and (P,) their places among members and
    proposals.
  """
  options = strategy.variation
  pool_fitness = jnp.concatenate([state.fitness, fitness])
  pool_ids = jnp.concatenate([state.ids, state.proposal.ids])
  pool_objectives = None
  if state.objectives is not None:
    pool_objectives = jnp.concatenate([state.objectives, objectives])
  places = parent_selection.survivors(
    options.survivors,
    keys.key_for(key, state.generation, lineage.NO_MEMBER, 'selection'),
    parent_selection.worth(
      options.chosen_by,
      pool_fitness,
      pool_objectives,
      pool_ids,
      params.share_alpha,
    ),
    pool_ids,
    strategy.capacity,
    elite_count(options, params, jnp.sum(pool_ids >= 0), strategy.capacity),
    options.entrants,
  )
  pool = stack.concatenate(state.population, population)
  state = state.replace(
    population=stack.take(pool, places),
    fitness=pool_fitness[places],
    ids=pool_ids[places],
  )
  if pool_objectives is not None:
    state = state.replace(objectives=pool_objectives[places])
  return state, places


def elite_count(
  options: Options, params: Any, pool: jax.Array, capacity: int
) -> jax.Array:
  """() i32, how many survive whatever is drawn.

  Args:
    options: see `Options`.
    params: with elite_share.
    pool: () i32, members and filled proposals together.
    capacity: P.
  """
  base = pool if options.elite_base == 'pool' else jnp.int32(capacity)
  return survival.elite_count(
    params.elite_share,
    base,
    least=options.least_elites,
    rounding=options.elite_rounding,
  )


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
  options = strategy.variation
  child_keys = keys.keys_for(key, state.generation, ids, 'child')
  chance, t, scale_chance, mass, second = _uniform(child_keys, 5)
  # Two distinct parents must be found among those able, and a population that
  # still grows has half as many children as members.
  wanted = (chance < params.cross_rate) & (jnp.sum(able) >= 2)
  members = jnp.sum(state.ids >= 0)
  wanted = wanted & (jnp.arange(strategy.num_children) < members // 2)
  value = parent_selection.worth(
    options.chosen_by,
    state.fitness,
    state.objectives,
    state.ids,
    params.share_alpha,
  )

  def draw(parents_key):
    return parent_selection.parents(
      options.parents,
      parents_key,
      value,
      state.ids,
      params.parent_share,
      options.entrants,
    )

  places = jax.vmap(draw)(keys.keys_for(key, state.generation, ids, 'parents'))
  weights = jax.vmap(
    lambda draws, fitness: crossover.weigh(
      options.weighing, draws, fitness, params
    )
  )(jnp.stack([t, second], axis=1), state.fitness[places])
  children = crossover.children(
    strategy.crossover,
    key,
    state.generation,
    ids,
    state.population,
    places,
    weights,
    params.merge,
    params.base,
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
