"""The evosax interface for populations of pytrees.

evosax's own base ravels every genome into a flat vector, which loses the types
of the leaves and their sharding and copies the whole population at each call.
`Strategy` keeps its interface (`init`, `ask`, `tell`, `default_params`,
`get_best_solution`, `get_population`) and nothing of its storage.

evosax minimises a cost; inside this package fitness is maximised. `negate` is
the one place where the sign flips.
"""

import abc
from collections.abc import Callable
from collections.abc import Mapping
import functools
import math
from typing import Any

from evosax.algorithms.population_based import base as evosax_base
import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import succession
from evojax_llm.population import lineage
from evojax_llm.population import stack


def negate(values: jax.Array) -> jax.Array:
  """Turns a cost into fitness and fitness into a cost; NaN stays NaN."""
  return -values


@flax.struct.dataclass
class State:
  """What every strategy carries from one generation to the next.

  Attributes:
    population: P genomes, leaves (P, ...).
    fitness: (P,) f32, maximised, NaN where a member failed.
    objectives: (P, K) f32 fitness on each task, likewise, where the strategy
      looks at them; else None.
    ids: (P,) i32, unique; -1 marks a place that is empty, where a population
      may grow.
    next_id: () i32, larger than every id given so far.
    generation: () i32, completed ask-score-tell rounds.
    memory: best and worst genomes of all time, and personal bests if any.
    proposal: where the members of the latest ask come from.
  """

  population: Any
  fitness: jax.Array
  objectives: jax.Array | None
  ids: jax.Array
  next_id: jax.Array
  generation: jax.Array
  memory: succession.Memory
  proposal: lineage.Proposal

  # The names evosax gives to parts of its states.

  @property
  def best_solution(self) -> Any:
    """The best genome of all time."""
    return self.memory.best

  @property
  def best_fitness(self) -> jax.Array:
    """Its cost in evosax's sign; NaN before anything was scored."""
    return negate(self.memory.best_fitness)

  @property
  def generation_counter(self) -> jax.Array:
    """Completed generations."""
    return self.generation


class Strategy(evosax_base.PopulationBasedAlgorithm, abc.ABC):
  """Base of strategies whose populations are pytrees.

  A subclass writes `_start`, `_propose` and `_succeed` in this package's sign
  and words; `init`, `ask` and `tell` are evosax's and take a cost.

  Not every slot of an ask need hold a member: `state.proposal.ids` is -1 in an
  empty one, whose genome is zeros or anything else. Its cost is ignored, so it
  need not be scored and may be NaN.

  `tell` gives up the buffers of the state it is handed: keep the new one.

  Attributes:
    population_size: members of the initial population.
    capacity: P, places for members; more than there are at first where the
      population grows.
    num_proposals: M, members of one ask; constant, so that nothing
      recompiles, and a multiple of the devices of `sharding`.
    operator_names: what `state.proposal.operator` counts.
    sharding: of population leaves, or None to leave it to the compiler.
    keep_best: whether a run ends with the best member of all time; else with
      the best of its last population, by the fitness that stands there. The
      memory, and patience with it, knows the best of all time either way.
  """

  def __init__(
    self,
    population_size: int,
    num_proposals: int,
    operator_names: tuple[str, ...],
    sharding: jax.sharding.Sharding | None = None,
    capacity: int | None = None,
    keep_best: bool = True,
  ):
    # evosax's constructors ravel a genome; they are left out on purpose.
    if population_size < 1:
      raise ValueError(
        f'Got population_size {population_size}; expected at least 1.'
      )
    devices = 1 if sharding is None else sharding.num_devices
    capacity = population_size if capacity is None else capacity
    if capacity < population_size:
      raise ValueError(
        f'Got places for {capacity} members and population_size '
        f'{population_size}; expected no fewer places.'
      )
    if capacity % devices:
      raise ValueError(
        f'Got a population of {capacity} on {devices} devices; expected a '
        'multiple. Change the size or use fewer devices.'
      )
    self.population_size, self.capacity = population_size, capacity
    # Whole shards: slots that fill up the last one stay empty.
    self.num_proposals = -(-num_proposals // devices) * devices
    self.operator_names = operator_names
    self.sharding = sharding
    self.keep_best = keep_best
    self.elite_ratio = 1.0
    self.metrics_fn = metrics

  @property
  def default_params(self) -> Any:
    """Hyperparameters: arrays, so that changing one compiles nothing."""
    return self._default_params

  @functools.partial(jax.jit, static_argnames=('self',))
  def _begin(self, key, population, cost, params, objectives):
    fitness = negate(cost.astype(jnp.float32))
    # Copies: the state owns its buffers, because `tell` gives them up.
    population = jax.tree.map(jnp.copy, population)
    return self._constrain(
      self._start(key, population, fitness, params, objectives)
    )

  def init(
    self,
    key: jax.Array,
    population: stack.Population,
    fitness: jax.Array,
    params: Any,
    objectives: jax.Array | None = None,
  ) -> Any:
    """Starts from a scored population.

    Args:
      key: () typed key.
      population: leaves (population_size, ...).
      fitness: (population_size,) cost, minimised; NaN where a member failed.
      params: hyperparameters.
      objectives: (population_size, K) f32 fitness on each task, maximised; for
        strategies that choose by them.

    Returns:
      State; members have the ids 0, 1, ...

    Raises:
      ValueError: if the sizes are not population_size, the strategy cannot
        work on such genomes, or it needs objectives and got none.
    """
    members = stack.size(population)
    if members != self.population_size or fitness.shape != (members,):
      raise ValueError(
        f'Got {members} members with fitness of shape {fitness.shape}; '
        f'expected {self.population_size} of each, the population_size this '
        'strategy was made with.'
      )
    self.check_genome(
      jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        population,
      )
    )
    return self._begin(key, population, fitness, params, objectives)

  def ask(
    self, key: jax.Array, state: Any, params: Any
  ) -> tuple[stack.Population, Any]:
    """Proposes members to score.

    Args:
      key: () typed key; the generation is folded in, so the run's seed key
        may be given every time.
      state: from `init` or `tell`.
      params: hyperparameters.

    Returns:
      Members (M, ...) and a state whose `proposal` describes them. What an ask
      leaves alone, the population first of all, is shared with `state`, so
      `tell` gives up both.
    """
    proposals, changes = self._ask(key, state, params)
    return proposals, state.replace(**changes)

  @functools.partial(jax.jit, static_argnames=('self',))
  def _ask(self, key, state, params):
    # Only what changes comes out: a jitted function copies what it passes on.
    proposals, changes = self._propose(key, state, params)
    return self._constrain_population(proposals), changes

  @functools.partial(
    jax.jit, static_argnames=('self',), donate_argnames=('state',)
  )
  def tell(
    self,
    key: jax.Array,
    population: stack.Population,
    fitness: jax.Array,
    state: Any,
    params: Any,
    objectives: jax.Array | None = None,
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Decides what lives on.

    Args:
      key: () typed key.
      population: the members (M, ...) of the last ask.
      fitness: (M,) their cost, minimised; NaN where one failed. What stands
        in empty slots does not matter.
      state: from that ask; its buffers are given up.
      params: hyperparameters.
      objectives: (M, K) f32 fitness on each task, maximised; for strategies
        that choose by them.

    Returns:
      The next state, and scalars worth a line of the record.
    """
    filled = state.proposal.filled
    value = jnp.where(filled, negate(fitness.astype(jnp.float32)), jnp.nan)
    if objectives is not None:
      objectives = jnp.where(filled[:, None], objectives, jnp.nan)
    state = self._succeed(key, population, value, state, params, objectives)
    state = state.replace(generation=state.generation + 1)
    return self._constrain(state), self.metrics_fn(
      key, population, negate(value), state, params
    )

  def get_best_solution(self, state: Any) -> stack.Genome:
    """The best genome of all time, from the memory."""
    return state.memory.best

  def get_population(self, state: Any) -> stack.Population:
    """The members alive, leaves (P, ...)."""
    return state.population

  def check_genome(self, genome: stack.Genome) -> None:
    """Refuses genomes that this strategy cannot work on.

    Args:
      genome: one genome, or its shapes and types.

    Raises:
      ValueError: saying why.
    """
    del genome

  @property
  @abc.abstractmethod
  def _default_params(self) -> Any:
    """Hyperparameters as a flax.struct pytree of arrays."""

  @abc.abstractmethod
  def _start(self, key, population, fitness, params, objectives) -> Any:
    """State of a scored population, in maximised fitness."""

  @abc.abstractmethod
  def _propose(
    self, key, state, params
  ) -> tuple[stack.Population, dict[str, Any]]:
    """M members, and fields of the state to replace, `proposal` among them."""

  @abc.abstractmethod
  def _succeed(
    self, key, population, fitness, state, params, objectives
  ) -> Any:
    """State after scoring; fitness and objectives are NaN in empty slots."""

  def _constrain_population(self, population):
    if self.sharding is None:
      return population
    return jax.tree.map(
      lambda leaf: jax.lax.with_sharding_constraint(leaf, self.sharding),
      population,
    )

  def _constrain(self, state):
    memory = state.memory
    if memory.personal is not None:
      memory = memory.replace(
        personal=self._constrain_population(memory.personal)
      )
    return state.replace(
      population=self._constrain_population(state.population), memory=memory
    )


def metrics(
  key: jax.Array,
  population: stack.Population,
  fitness: jax.Array,
  state: Any,
  params: Any,
) -> dict[str, jax.Array]:
  """Scalars of a generation under evosax's names, in its sign (cost).

  evosax also copies the best solutions here; they stay in the state.
  """
  del key, population, params
  return {
    'generation_counter': state.generation,
    'best_fitness_in_generation': jnp.nanmin(fitness),
    'best_fitness': state.best_fitness,
    'proposed': jnp.sum(state.proposal.filled).astype(jnp.int32),
  }


# What hyperparameters may be: from, to.
SHARE = (0.0, 1.0)
NOT_NEGATIVE = (0.0, math.inf)


def make_params(
  kind: Callable[..., Any],
  defaults: Mapping[str, float],
  values: Mapping[str, float],
  ranges: Mapping[str, tuple[float, float]],
) -> Any:
  """Hyperparameters of a flax.struct class, each a () f32 array.

  Args:
    kind: makes it of its fields by name.
    defaults: all its fields.
    values: those to change.
    ranges: what some of them may be; the others may be any finite number.

  Raises:
    ValueError: if a name is unknown, or a number is not in its range.
  """
  unknown = sorted(set(values) - set(defaults))
  if unknown:
    raise ValueError(
      f'Got unknown hyperparameters {unknown}; expected some of '
      f'{sorted(defaults)}.'
    )
  for name, value in values.items():
    low, high = ranges.get(name, (-math.inf, math.inf))
    if not (math.isfinite(value) and low <= value <= high):
      limits = 'a finite number'
      if low > -math.inf:
        limits = (
          f'{low:g} or more' if high == math.inf else f'{low:g} to {high:g}'
        )
      raise ValueError(f'Got {name} {value}; expected {limits}.')
  return kind(
    **{
      name: jnp.float32(value) for name, value in {**defaults, **values}.items()
    }
  )
