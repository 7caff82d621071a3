"""A round of crossover and mutation, and the selection that ends it.

Slots of a proposal: C = P // 2 for children, then those for mutated copies,
where P is the number of slots. Every draw is addressed by the id
of the member that draws, so the order of the members does not matter.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import mutation
from evojax_llm.operators import survival
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.genome import crossover
from evojax_llm.strategies.genome import parent_selection

# In the order of the slots; with '+scale', the member's mass was changed too.
OPERATORS = ('crossover', 'crossover+scale', 'mutation', 'mutation+scale')


@dataclasses.dataclass(frozen=True)
class Options:
  """How a round is made; the defaults are the corrected algorithm."""

  merge: str = option('linear', 'makes a child; see operators/README.md')
  weighing: str = option(
    'line',
    "weights of its parents: t and 1 - t on the 'line' through them, "
    "'fitness' f_a / (f_a + f_b) (GENOME's released code), 'softmax' of "
    "fitness, 'random' or 'equal'",
    choices=crossover.WEIGHINGS,
  )
  merge_options: Mapping[str, Any] = option(
    {},
    'choices of the merge by name; see operators/README.md',
    parts=crossover.MERGE_OPTIONS,
  )
  parents: str = option(
    'roulette', 'how they are drawn', choices=parent_selection.METHODS
  )
  survivors: str = option(
    'roulette', 'how they are drawn', choices=parent_selection.METHODS
  )
  chosen_by: str = option(
    'fitness',
    "criterion of parents and survivors; 'pareto' and 'shared' see the "
    'fitness on every task',
    choices=parent_selection.CRITERIA,
  )
  entrants: int = option(3, 'members of a tournament', low=1)
  relative_sigma: bool = option(
    True, 'whether sigma is relative to each matrix'
  )
  mask: str = option('element', 'what a gene is', choices=mutation.MASKS)
  least_elites: int = option(
    1, 'at least so many survive: the guard that keeps the best', low=0
  )
  elite_rounding: str = option(
    'floor', 'of elite_share times the base', choices=('floor', 'round')
  )
  elite_base: str = option(
    'population',
    "the base: the 'population', its slots, or the 'pool' of members and "
    'proposals',
    choices=('population', 'pool'),
  )

  def __post_init__(self):
    options_lib.check(vars(self), Options)

  def crossover(self) -> crossover.Crossover:
    """What makes a child of two parents."""
    return crossover.make(self.merge, self.weighing, self.merge_options)


def propose(
  strategy: Any, key: jax.Array, state: Any, params: Any
) -> tuple[stack.Population, dict[str, Any]]:
  """Crossover children, and mutated copies of members and children.

  Failed members take no part, unless all members failed. More copies than there
  are slots are dropped, those of the highest ids first.

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

  # No member is copied twice, so a copy may draw with the id of its source.
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
      layers=strategy.layers,
    )

  mutants = jax.vmap(mutate)(
    keys.keys_for(key, generation, sources, 'mutation'),
    stack.take_of_both(state.population, children, order, mesh=strategy.mesh),
  )
  mutants, mutant_scaled = _scale(
    scale_chance[order], mass[order], mutants, params
  )

  mutant_parents = jnp.stack(
    [sources, jnp.full_like(sources, lineage.NO_MEMBER)], axis=1
  )
  crossed, copied = map(strategy.operator_names.index, OPERATORS[::2])
  operator = jnp.concatenate(
    [
      crossed + child_scaled.astype(jnp.int32),
      copied + mutant_scaled.astype(jnp.int32),
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
  scores: base.Scores,
  state: Any,
  params: Any,
) -> tuple[Any, jax.Array]:
  """Brings members and proposals (M, ...) back to P.

  Returns:
    State with the survivors, and (P,) their positions among members and
      proposals.
  """
  options = strategy.variation
  fitness = jnp.concatenate([state.fitness, scores.fitness])
  ids = jnp.concatenate([state.ids, state.proposal.ids])
  tasks = None
  if state.tasks is not None:
    tasks = jnp.concatenate([state.tasks, scores.tasks])
  chosen = parent_selection.survivors(
    options.survivors,
    keys.key_for(key, state.generation, lineage.NO_MEMBER, 'selection'),
    parent_selection.criterion(
      options.chosen_by, fitness, tasks, ids, params.share_alpha
    ),
    ids,
    strategy.capacity,
    elite_count(options, params, jnp.sum(ids >= 0), strategy.capacity),
    options.entrants,
  )
  state = state.replace(
    population=stack.take_of_both(
      state.population, population, chosen, mesh=strategy.mesh
    ),
    fitness=fitness[chosen],
    ids=ids[chosen],
    tasks=None if tasks is None else tasks[chosen],
  )
  return state, chosen


def elite_count(
  options: Options, params: Any, pool: jax.Array, capacity: int
) -> jax.Array:
  """() i32, how many survive whatever is drawn.

  `pool` () is the number of members and filled proposals, `capacity` P.
  """
  of = pool if options.elite_base == 'pool' else jnp.int32(capacity)
  return survival.elite_count(
    params.elite_share,
    of,
    least=options.least_elites,
    rounding=options.elite_rounding,
  )


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
  value = parent_selection.criterion(
    options.chosen_by, state.fitness, state.tasks, state.ids, params.share_alpha
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

  pairs = jax.vmap(draw)(keys.keys_for(key, state.generation, ids, 'parents'))
  draws = jnp.stack([t, second], axis=1)
  children = crossover.children(
    strategy, options.weighing, key, state, params, ids, pairs, draws
  )
  children, scaled = _scale(scale_chance, mass, children, params)
  return children, wanted, state.ids[pairs], scaled


def _scale(chance, mass, population, params):
  """Multiplies the mass of some members; (M, ...) and (M,) bool."""
  scaled = chance < params.scale_rate
  factor = params.scale_low + (params.scale_high - params.scale_low) * mass
  # A factor of one leaves a member as it is, bit for bit.
  factor = jnp.where(scaled, factor, 1.0)
  return jax.vmap(mutation.scale_by)(population, factor), scaled
