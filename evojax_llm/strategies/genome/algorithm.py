"""GENOME and GENOME+: evolution of models in weight space, arXiv 2503.01155.

A run alternates two kinds of round, each scored before the next:

  succession  every member moves by inertia and by attraction to its own best
              and the best of all, away from the worst of all;
  variation   crossover children of fitness-proportional parents and mutated
              copies are added, and selection brings the pool back to P.

GENOME has the second kind only. What moves or is made is a new member with a
new id and is scored before anything is decided by its fitness.

The defaults are the corrected algorithm. What the released code does instead
is reached by options; see presets.py and experiments/genome/README.md.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import selection
from evojax_llm.operators import succession
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round
from evojax_llm.strategies.genome import crossover
from evojax_llm.strategies.genome import parent_selection
from evojax_llm.strategies.genome import variation

OPERATORS = ('succession',) + variation.OPERATORS


@flax.struct.dataclass
class Params(succession_round.Params):
  """Hyperparameters; all but the base () f32 arrays that a sweep may vary.

  Attributes:
    cross_rate: probability that a slot for a child is used.
    cross_low: of weighing 'line': t ~ U(cross_low, cross_high); beyond [0, 1]
      children extrapolate.
    cross_high: see cross_low.
    temperature: of weighing 'softmax'.
    merge: hyperparameters of the merge by name, such as 'density'.
    parent_share: of parents by 'truncation': the part of those able that they
      are drawn from.
    share_alpha: of chosen_by 'shared': how strongly members compete on a task.
    mutation_rate: probability that a member or child gets a mutated copy.
    gene_rate: probability that a gene of the copy changes.
    sigma: standard deviation of a change; a fraction of each matrix's root
      mean square unless the strategy was made with relative_sigma=False.
    scale_rate: probability that a child or copy has its mass multiplied.
    scale_low: by u ~ U(scale_low, scale_high).
    scale_high: see scale_low.
    elite_share: fraction of P that survives whatever selection draws.
    base: genome that a merge takes the parents' changes from; None for zeros.
  """

  cross_rate: jax.Array
  cross_low: jax.Array
  cross_high: jax.Array
  temperature: jax.Array
  merge: dict[str, jax.Array]
  parent_share: jax.Array
  share_alpha: jax.Array
  mutation_rate: jax.Array
  gene_rate: jax.Array
  sigma: jax.Array
  scale_rate: jax.Array
  scale_low: jax.Array
  scale_high: jax.Array
  elite_share: jax.Array
  base: Any


DEFAULTS = {
  'cross_rate': 0.8,
  'cross_low': 0.0,
  'cross_high': 2.0,
  'temperature': 0.1,
  'parent_share': 0.5,
  'share_alpha': 1.0,
  'mutation_rate': 0.3,
  'gene_rate': 1.0,
  'sigma': 0.1,
  'scale_rate': 0.0,
  'scale_low': 0.8,
  'scale_high': 1.8,
  'elite_share': 0.1,
  'inertia': 0.2,
  'cognitive': 0.2,
  'social': 0.2,
  'repel': 0.1,
  'step_length': 0.5,
  'step_decay': 0.95,
  'step_floor': 0.0,
}
RANGES = succession_round.RANGES | {
  'cross_rate': base.SHARE,
  'temperature': base.NOT_NEGATIVE,
  'parent_share': base.SHARE,
  'mutation_rate': base.SHARE,
  'gene_rate': base.SHARE,
  'sigma': base.NOT_NEGATIVE,
  'scale_rate': base.SHARE,
  'elite_share': base.SHARE,
}


def make_params(
  merge: str = 'linear',
  merge_parameters: Mapping[str, float | None] | None = None,
  merge_base: stack.Genome | None = None,
  **values: float,
) -> Params:
  """Params with `values` in place of defaults.

  Args:
    merge: a name of operators.merges.registry.
    merge_parameters: of that merge, in place of the registry's defaults.
    merge_base: see Params.base.
    **values: all other hyperparameters to change.

  Raises:
    ValueError: if a name is unknown or a number out of range.
  """
  own = crossover.parameters(merge, merge_parameters or {})
  kind = functools.partial(Params, merge=own, base=merge_base)
  return base.make_params(kind, DEFAULTS, values, RANGES)


class Genome(base.Strategy):
  """GENOME, with succession GENOME+.

  Slots of one ask: P // 2 children, then the mutated copies of members and
  children; in a succession round the first P hold the moved members. With
  `max_mutants` the copies have fewer slots, which saves memory; should more be
  drawn, those of the lowest ids are made.

  With `max_population` there are more places than members at first: nobody
  dies as long as there are empty ones (GENOME+'s growth). Shapes are those of
  the full population from the start.
  """

  def __init__(
    self,
    population_size: int,
    *,
    with_succession: bool = True,
    spare_elites: bool = False,
    keep_best: bool = True,
    max_population: int | None = None,
    max_mutants: int | None = None,
    merge_parameters: Mapping[str, float | None] | None = None,
    merge_base: stack.Genome | None = None,
    sharding: jax.sharding.Sharding | None = None,
    **options: Any,
  ):
    """Makes the strategy.

    Args:
      population_size: members at first.
      with_succession: alternate with succession rounds (GENOME+).
      spare_elites: in a succession round the elites stay where they are, with
        their ids and their fitness.
      keep_best: whether a run ends with the best member of all time; see
        base.Strategy.
      max_population: P, places for members; population_size by default.
      max_mutants: slots for mutated copies; all P + P // 2 by default.
      merge_parameters: of the merge, to change in `default_params`.
      merge_base: genome of the base, for whole weights and merges that work on
        what parents change of it.
      sharding: of population leaves.
      **options: of variation_round.Options and succession_round.Options; the
        rest are hyperparameters to change in `default_params`.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    self.variation = variation.Options(**_taken(options, variation.Options))
    self.succession = succession_round.Options(
      **_taken(options, succession_round.Options)
    )
    self.crossover = self.variation.crossover()
    places = population_size if max_population is None else max_population
    self.num_children = places // 2
    sources = places + self.num_children
    self.num_mutants = sources if max_mutants is None else max_mutants
    if not 0 <= self.num_mutants <= sources:
      raise ValueError(
        f'Got max_mutants {max_mutants}; expected 0 to {sources}, the number '
        'of members and children.'
      )
    varied = self.num_children + self.num_mutants
    num_proposals = max(varied, places) if with_succession else varied
    super().__init__(
      population_size, num_proposals, OPERATORS, sharding, places, keep_best
    )
    self.with_succession = with_succession
    self.spare_elites = spare_elites
    if not self.crossover.method.needs_base:
      merge_base = None
    self._params = options | {
      'merge': self.variation.merge,
      'merge_parameters': merge_parameters,
      'merge_base': jax.tree.map(jnp.asarray, merge_base),
    }
    make_params(**self._params)

  @property
  def _default_params(self) -> Params:
    return make_params(**self._params)

  def is_succession(self, generation: jax.Array) -> jax.Array:
    """Whether a round moves members: with succession, every other, first."""
    if not self.with_succession:
      return jnp.zeros_like(generation, bool)
    return generation % 2 == 0

  def check_genome(self, genome: stack.Genome) -> None:
    """See base.Strategy; merges may need a base that there is not."""
    del genome
    crossover.check_base(self.crossover, self._params['merge_base'])

  def _start(self, key, population, fitness, params, objectives):
    ids = jnp.arange(self.population_size, dtype=jnp.int32)
    memory = succession.start_memory(
      population, fitness, ids, personal=self.with_succession
    )
    if self.variation.chosen_by == 'fitness':
      objectives = None
    elif objectives is None:
      raise ValueError(
        f'Got no objectives for chosen_by {self.variation.chosen_by!r}; '
        'expected the fitness on every task, (P, K), in init and tell.'
      )
    else:
      missing = self.capacity - self.population_size
      objectives = jnp.pad(
        objectives, ((0, missing), (0, 0)), constant_values=jnp.nan
      )
    population, fitness, ids = self._room(population, fitness, ids)
    if self.with_succession:
      personal, personal_fitness, personal_ids = self._room(
        memory.personal, memory.personal_fitness, memory.personal_ids
      )
      memory = memory.replace(
        personal=personal,
        personal_fitness=personal_fitness,
        personal_ids=personal_ids,
      )
    moving = {
      'velocity': None,
      'step_length': jnp.copy(params.step_length),
      'run_blend': None,
    }
    if self.with_succession:
      moving = succession_round.begin(
        key, population, ids, memory, params, self.succession
      )
    return succession_round.State(
      population=population,
      fitness=fitness,
      objectives=objectives,
      ids=ids,
      next_id=jnp.int32(self.population_size),
      generation=jnp.int32(0),
      memory=memory,
      proposal=lineage.empty_proposal(self.num_proposals),
      **moving,
    )

  def _propose(self, key, state, params):
    if not self.with_succession:
      return variation.propose(self, key, state, params)
    return jax.lax.cond(
      self.is_succession(state.generation),
      lambda: self._move(key, state, params),
      lambda: self._vary(key, state, params),
    )

  def _move(self, key, state, params):
    moved, changes = succession_round.move(key, state, params, self.succession)
    moving = state.ids >= 0
    if self.spare_elites:
      moving = moving & ~self._elites(state, params)
      moved = stack.select(moving, moved, state.population)
      changes['velocity'] = stack.select(
        moving, changes['velocity'], state.velocity
      )
    members, proposal = succession_round.propose(
      moved,
      state,
      moving & self.succession.rescore,
      jnp.full(state.ids.shape, OPERATORS.index('succession'), jnp.int32),
      self.num_proposals,
    )
    velocity = self._constrain_population(changes['velocity'])
    return members, changes | {'velocity': velocity, 'proposal': proposal}

  def _elites(self, state, params):
    """(P,) bool, the worthiest that a selection would keep in any case."""
    count = variation.elite_count(
      self.variation, params, jnp.sum(state.ids >= 0), self.capacity
    )
    value = parent_selection.worth(
      self.variation.chosen_by,
      state.fitness,
      state.objectives,
      state.ids,
      params.share_alpha,
    )
    position = selection.places_of(selection.ranking(value, state.ids))
    return (position < count) & jnp.isfinite(value)

  def _vary(self, key, state, params):
    members, changes = variation.propose(self, key, state, params)
    # Both branches must return the same fields.
    same = {'velocity': state.velocity, 'step_length': state.step_length}
    return members, changes | same

  def _succeed(self, key, population, fitness, state, params, objectives):
    state = state.replace(
      memory=succession.remember_extremes(
        state.memory, population, fitness, state.proposal.ids
      ),
      next_id=state.next_id + self.num_proposals,
    )
    told = (population, fitness, state, params, objectives)
    if not self.with_succession:
      return variation.select(self, key, *told)[0]

    def vary():
      selected, places = variation.select(self, key, *told)
      return succession_round.carry(key, selected, places, self.succession)

    def replace():
      after = succession_round.replace(
        population, fitness, state, kept=state.fitness
      )
      if state.objectives is None:
        return after
      scored = state.proposal.filled[: self.capacity, None]
      return after.replace(
        objectives=jnp.where(
          scored, objectives[: self.capacity], state.objectives
        )
      )

    return jax.lax.cond(self.is_succession(state.generation), replace, vary)

  def _room(self, population, fitness, ids):
    """The same with empty places behind, (P, ...) and twice (P,)."""
    missing = (0, self.capacity - self.population_size)
    return (
      stack.pad(population, self.capacity),
      jnp.pad(fitness, missing, constant_values=jnp.nan),
      jnp.pad(ids, missing, constant_values=lineage.NO_MEMBER),
    )

  def _constrain(self, state):
    state = super()._constrain(state)
    if state.velocity is None:
      return state
    return state.replace(velocity=self._constrain_population(state.velocity))


def _taken(options: dict[str, Any], kind: type) -> dict[str, Any]:
  """Those that are fields of a dataclass, taken out of `options`."""
  names = [field.name for field in dataclasses.fields(kind)]
  return {name: options.pop(name) for name in names if name in options}
