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

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import selection
from evojax_llm.operators import succession
from evojax_llm.population import lineage
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round
from evojax_llm.strategies import variation_round

OPERATORS = ('succession',) + variation_round.OPERATORS


@flax.struct.dataclass
class Params(succession_round.Params):
  """Hyperparameters; every one a () f32 array that a sweep may vary.

  Attributes:
    cross_rate: probability that a slot for a child is used.
    cross_low: children extrapolate with t ~ U(cross_low, cross_high).
    cross_high: see cross_low.
    mutation_rate: probability that a member or child gets a mutated copy.
    gene_rate: probability that a gene of the copy changes.
    sigma: standard deviation of a change; a fraction of each matrix's root
      mean square unless the strategy was made with relative_sigma=False.
    scale_rate: probability that a child or copy has its mass multiplied.
    scale_low: by u ~ U(scale_low, scale_high).
    scale_high: see scale_low.
    elite_share: fraction of P that survives whatever selection draws.
  """

  cross_rate: jax.Array
  cross_low: jax.Array
  cross_high: jax.Array
  mutation_rate: jax.Array
  gene_rate: jax.Array
  sigma: jax.Array
  scale_rate: jax.Array
  scale_low: jax.Array
  scale_high: jax.Array
  elite_share: jax.Array


DEFAULTS = {
  'cross_rate': 0.8,
  'cross_low': 0.0,
  'cross_high': 2.0,
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


def make_params(**values: float) -> Params:
  """Params with `values` in place of defaults.

  Raises:
    ValueError: if a name is unknown.
  """
  return base.make_params(Params, DEFAULTS, values)


class Genome(base.Strategy):
  """GENOME, with succession GENOME+.

  Slots of one ask: P // 2 children, then the mutated copies of members and
  children; in a succession round the first P hold the moved members. With
  `max_mutants` the copies have fewer slots, which saves memory; should more be
  drawn, those of the lowest ids are made.
  """

  def __init__(
    self,
    population_size: int,
    *,
    with_succession: bool = True,
    crossover: str = 'extrapolate',
    selection_method: str = 'roulette',
    entrants: int = 3,
    relative_sigma: bool = True,
    mask: str = 'element',
    least_elites: int = 1,
    elite_rounding: str = 'floor',
    elite_base: str = 'population',
    draws: str = 'particle',
    decay: str = 'before',
    personal: bool = True,
    rescore: bool = True,
    max_mutants: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    **params: float,
  ):
    """Makes the strategy.

    Args:
      population_size: P.
      with_succession: alternate with succession rounds (GENOME+).
      crossover: 'fitness' weighs parents f_a / (f_a + f_b), as published;
        'extrapolate' t and 1 - t.
      selection_method: one of operators.selection.METHODS, for survivors.
      entrants: size of a tournament.
      relative_sigma: see Params.sigma.
      mask: one of operators.mutation.MASKS.
      least_elites: at least so many survive; the guard that keeps the best.
      elite_rounding: 'floor' or 'round' of elite_share times the base.
      elite_base: the base is the 'population', P, or the 'pool' of members
        and filled proposals.
      draws: of succession; see succession_round.Options.
      decay: likewise.
      personal: likewise.
      rescore: likewise.
      max_mutants: slots for mutated copies; all P + P // 2 by default.
      sharding: of population leaves.
      **params: hyperparameters to change in `default_params`.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    if crossover not in variation_round.CROSSOVERS:
      raise ValueError(
        f'Got crossover {crossover!r}; expected one of '
        f'{variation_round.CROSSOVERS}.'
      )
    if selection_method not in selection.METHODS:
      raise ValueError(
        f'Got selection_method {selection_method!r}; expected one of '
        f'{selection.METHODS}.'
      )
    if mask not in mutation.MASKS:
      raise ValueError(f'Got mask {mask!r}; expected one of {mutation.MASKS}.')
    if elite_rounding not in ('floor', 'round'):
      raise ValueError(
        f"Got elite_rounding {elite_rounding!r}; expected 'floor' or 'round'."
      )
    if elite_base not in ('population', 'pool'):
      raise ValueError(
        f"Got elite_base {elite_base!r}; expected 'population' or 'pool'."
      )
    self.num_children = population_size // 2
    sources = population_size + self.num_children
    self.num_mutants = sources if max_mutants is None else max_mutants
    if not 0 <= self.num_mutants <= sources:
      raise ValueError(
        f'Got max_mutants {max_mutants}; expected 0 to {sources}, the number '
        'of members and children.'
      )
    varied = self.num_children + self.num_mutants
    num_proposals = max(varied, population_size) if with_succession else varied
    super().__init__(population_size, num_proposals, OPERATORS, sharding)
    self.with_succession = with_succession
    self.crossover = crossover
    self.selection_method = selection_method
    self.entrants = entrants
    self.relative_sigma = relative_sigma
    self.mask = mask
    self.least_elites = least_elites
    self.elite_rounding = elite_rounding
    self.elite_base = elite_base
    self.succession = succession_round.Options(
      draws=draws, decay=decay, personal=personal, rescore=rescore
    )
    self._params = dict(params)
    make_params(**self._params)

  @property
  def _default_params(self) -> Params:
    return make_params(**self._params)

  def is_succession(self, generation: jax.Array) -> jax.Array:
    """Whether a round moves members: with succession, every other, first."""
    if not self.with_succession:
      return jnp.zeros_like(generation, bool)
    return generation % 2 == 0

  def _start(self, key, population, fitness, params):
    ids = jnp.arange(self.population_size, dtype=jnp.int32)
    memory = succession.start_memory(
      population, fitness, ids, personal=self.with_succession
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
      ids=ids,
      next_id=jnp.int32(self.population_size),
      generation=jnp.int32(0),
      memory=memory,
      proposal=lineage.empty_proposal(self.num_proposals),
      **moving,
    )

  def _propose(self, key, state, params):
    if not self.with_succession:
      return variation_round.propose(self, key, state, params)
    return jax.lax.cond(
      self.is_succession(state.generation),
      lambda: self._move(key, state, params),
      lambda: self._vary(key, state, params),
    )

  def _move(self, key, state, params):
    moved, changes = succession_round.move(key, state, params, self.succession)
    members, proposal = succession_round.propose(
      moved,
      state,
      jnp.full(state.ids.shape, self.succession.rescore),
      jnp.full(state.ids.shape, OPERATORS.index('succession'), jnp.int32),
      self.num_proposals,
    )
    velocity = self._constrain_population(changes['velocity'])
    return members, changes | {'velocity': velocity, 'proposal': proposal}

  def _vary(self, key, state, params):
    members, changes = variation_round.propose(self, key, state, params)
    # Both branches must return the same fields.
    same = {'velocity': state.velocity, 'step_length': state.step_length}
    return members, changes | same

  def _succeed(self, key, population, fitness, state, params):
    state = state.replace(
      memory=succession.remember_extremes(
        state.memory, population, fitness, state.proposal.ids
      ),
      next_id=state.next_id + self.num_proposals,
    )
    if not self.with_succession:
      return variation_round.select(
        self, key, population, fitness, state, params
      )[0]

    def vary():
      selected, places = variation_round.select(
        self, key, population, fitness, state, params
      )
      return succession_round.carry(key, selected, places, self.succession)

    return jax.lax.cond(
      self.is_succession(state.generation),
      lambda: succession_round.replace(
        population, fitness, state, kept=state.fitness
      ),
      vary,
    )

  def _constrain(self, state):
    state = super()._constrain(state)
    if state.velocity is None:
      return state
    return state.replace(velocity=self._constrain_population(state.velocity))
