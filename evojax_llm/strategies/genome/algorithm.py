"""GENOME and GENOME+: evolution of models in weight space, arXiv 2503.01155.

A run alternates two kinds of round, each scored before the next:

succession  every member moves by inertia and by attraction to its own best
            and the best of all, away from the worst of all;
variation   crossover children of fitness-proportional parents and mutated
            copies are added, and selection brings the pool back to P.

GENOME has the second kind only. The defaults are the corrected algorithm; for
what the released code does instead see experiments/genome/README.md.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import selection
from evojax_llm.options import option
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round
from evojax_llm.strategies.genome import crossover
from evojax_llm.strategies.genome import parent_selection
from evojax_llm.strategies.genome import variation

OPERATORS = ('succession',) + variation.OPERATORS


def _chance(default: float, text: str) -> Any:
  return option(default, text, low=0.0, high=1.0)


@flax.struct.dataclass
class Params(succession_round.Params):
  """Hyperparameters; all but the base () f32 arrays that a sweep may vary.

  Attributes:
    merge: hyperparameters of the merge by name, such as 'density'.
    base: genome that a merge takes the parents' changes from; None for zeros.
  """

  cross_rate: jax.Array = _chance(0.8, 'chance that a slot for a child is used')
  cross_low: jax.Array = option(
    0.0, "t ~ U(cross_low, cross_high) of weighing 'line'"
  )
  cross_high: jax.Array = option(
    2.0, 'see cross_low; beyond 0 to 1 children extrapolate'
  )
  temperature: jax.Array = option(0.1, "of weighing 'softmax'", low=0.0)
  parent_share: jax.Array = _chance(
    0.5, "of parents by 'truncation': the part that they are drawn from"
  )
  share_alpha: jax.Array = option(
    1.0, "of chosen_by 'shared': how strongly members compete on a task"
  )
  mutation_rate: jax.Array = _chance(
    0.3, 'chance that a member or child gets a mutated copy'
  )
  gene_rate: jax.Array = _chance(1.0, 'chance that a gene of the copy changes')
  sigma: jax.Array = option(
    0.1,
    'deviation of a change, a fraction of the root mean square of each matrix '
    'unless relative_sigma is off',
    low=0.0,
  )
  scale_rate: jax.Array = _chance(
    0.0, 'chance that the mass of a child or copy is multiplied'
  )
  scale_low: jax.Array = option(0.8, 'by u ~ U(scale_low, scale_high)')
  scale_high: jax.Array = option(1.8, 'see scale_low')
  elite_share: jax.Array = _chance(
    0.1, 'part of P that survives whatever selection draws'
  )
  merge: Any = None
  base: Any = None


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made, beside the two kinds of round."""

  spare_elites: bool = option(
    False,
    'in a succession round the elites stay where they are, with their ids and '
    'their fitness',
  )
  max_population: int | None = option(
    None, 'P, slots for members; as many as at first if unset', low=1, kind=int
  )
  max_mutants: int | None = option(
    None, 'slots for mutated copies; all P + P // 2 if unset', kind=int
  )
  merge_parameters: Mapping[str, float | None] = option(
    {},
    'numbers of the merge by name; see operators/README.md',
    parts=crossover.MERGE_PARAMETERS,
  )


class Genome(base.Strategy):
  """GENOME, with succession GENOME+.

  Slots of one ask: P // 2 children, then the mutated copies of members and
  children; in a succession round the first P hold the moved members. Should
  more copies be drawn than `max_mutants`, those of the lowest ids are made.
  With `max_population` there are more slots than members at first: all live on
  as long as some are empty (GENOME+'s growth).
  """

  declared = (Params, variation.Options, succession_round.Options, Options)

  def __init__(
    self,
    population_size: int,
    *,
    with_succession: bool = True,
    merge_base: stack.Genome | None = None,
    **options: Any,
  ):
    """Makes the strategy.

    Options are of the dataclasses in `declared`; `merge_base` is the genome of
    the base, for merges of what parents change of it.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    self.variation, options = options_lib.split(variation.Options, options)
    self.succession, options = options_lib.split(
      succession_round.Options, options
    )
    self.take(options)
    own = self.options
    self.crossover = self.variation.crossover()
    self._merge_values = crossover.parameters(
      self.variation.merge, own.merge_parameters
    )
    slots = own.max_population or population_size
    self.num_children = slots // 2
    sources = slots + self.num_children
    mutants = own.max_mutants
    self.num_mutants = sources if mutants is None else mutants
    if not 0 <= self.num_mutants <= sources:
      raise ValueError(
        f'Got max_mutants {mutants}; expected 0 to {sources}, the number '
        'of members and children.'
      )
    varied = self.num_children + self.num_mutants
    num_proposals = max(varied, slots) if with_succession else varied
    super().__init__(population_size, num_proposals, OPERATORS, slots)
    self.with_succession = self.personal = with_succession
    self.spare_elites = own.spare_elites
    kind = with_succession, own.spare_elites, self.num_mutants
    options = repr((self.variation, self.succession))
    self.static = Genome, self.crossover.method, kind, options
    self.sees = 'fitness' if self.variation.chosen_by == 'fitness' else 'tasks'
    self._base = None
    if self.crossover.method.needs_base:
      self._base = jax.tree.map(jnp.asarray, merge_base)

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; merges work on what parents change of the base."""
    if space is not None:
      options['merge_base'] = space.base()
    return super().for_space(population_size, space, genome, **options)

  @property
  def default_params(self) -> Params:
    merge = {name: jnp.float32(v) for name, v in self._merge_values.items()}
    return base.make_params(Params, self._values, merge=merge, base=self._base)

  def is_succession(self, generation: jax.Array) -> jax.Array:
    """Whether a round moves members: with succession, every other, first."""
    if not self.with_succession:
      return jnp.zeros_like(generation, bool)
    return generation % 2 == 0

  def check_genome(self, genome: stack.Genome) -> None:
    """See base.Strategy; merges may need a base that there is not."""
    del genome
    crossover.check_base(self.crossover, self._base)

  def _start(self, key, state, scores, params):
    del scores
    moving = {
      'velocity': None,
      'step_length': jnp.copy(params.step_length),
      'run_blend': None,
    }
    if self.with_succession:
      moving = succession_round.begin(
        key, state.population, state.ids, state.memory, params, self.succession
      )
    return succession_round.State(**vars(state), **moving)

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
    return members, changes | {'proposal': proposal}

  def _elites(self, state, params):
    """(P,) bool, the best, which a selection would keep in any case."""
    count = variation.elite_count(
      self.variation, params, jnp.sum(state.ids >= 0), self.capacity
    )
    value = parent_selection.criterion(
      self.variation.chosen_by,
      state.fitness,
      state.tasks,
      state.ids,
      params.share_alpha,
    )
    position = selection.positions_in(selection.ranking(value, state.ids))
    return (position < count) & jnp.isfinite(value)

  def _vary(self, key, state, params):
    members, changes = variation.propose(self, key, state, params)
    # Both branches must return the same fields.
    same = {'velocity': state.velocity, 'step_length': state.step_length}
    return members, changes | same

  def _succeed(self, key, population, scores, state, params):
    def vary():
      return variation.select(self, key, population, scores, state, params)

    if not self.with_succession:
      return vary()[0]

    def vary_moving():
      selected, origin = vary()
      return succession_round.carry(key, selected, origin, self.succession)

    def replace():
      after = succession_round.replace(
        population, scores.fitness, state, kept=state.fitness
      )
      if state.tasks is None:
        return after
      scored = state.proposal.filled[: self.capacity, None]
      return after.replace(
        tasks=jnp.where(scored, scores.tasks[: self.capacity], state.tasks)
      )

    return jax.lax.cond(
      self.is_succession(state.generation), replace, vary_moving
    )
