"""The contract of a search, for populations of pytrees.

`init`, `ask` and `tell` are pure functions of a state, which is a pytree;
hyperparameters are arrays, so that changing one compiles nothing. Fitness is
maximised everywhere. An algorithm written for a cost is wrapped by
`strategies.evosax`, which also offers strategies to code that minimises.
"""

import abc
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import succession
from evojax_llm.options import option
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack

SEES = ('fitness', 'tasks', 'items')


@dataclasses.dataclass(frozen=True)
class Options:
  """Options that are fixed when a strategy is made; a subclass has more."""

  keep_best: bool = option(
    True,
    'whether a run ends with the best member of all time; else with the best '
    'of its last population',
  )

  def __post_init__(self):
    options_lib.check(vars(self), type(self))


@flax.struct.dataclass
class Scores:
  """Scores of M members; all maximised, NaN where a member failed.

  Fitness (M,) f32; tasks (M, K) f32 and items (M, I) f32, or None where they
  are not known.
  """

  fitness: jax.Array
  tasks: jax.Array | None = None
  items: jax.Array | None = None

  def where(self, valid: jax.Array) -> 'Scores':
    """The same in f32 with NaN where (M,) `valid` is false."""

    def masked(leaf):
      mask = valid.reshape(valid.shape + (1,) * (leaf.ndim - 1))
      return jnp.where(mask, leaf.astype(jnp.float32), jnp.nan)

    return jax.tree.map(masked, self)


@flax.struct.dataclass
class State:
  """What every strategy carries from one generation to the next.

  Attributes:
    population: P genomes, leaves (P, ...).
    fitness: (P,) f32, NaN where a member failed.
    tasks: (P, K) f32, likewise, where the strategy sees it; else None.
    ids: (P,) i32, unique; -1 in an empty slot of a population that may grow.
    next_id: () i32, larger than every id given so far.
    generation: () i32, completed ask-score-tell rounds.
    memory: best and worst genomes of all time, and personal bests if any.
    proposal: where the members of the latest ask come from.
  """

  population: Any
  fitness: jax.Array
  tasks: jax.Array | None
  ids: jax.Array
  next_id: jax.Array
  generation: jax.Array
  memory: succession.Memory
  proposal: lineage.Proposal


class Strategy(abc.ABC):
  """Base of strategies; a subclass writes `_start`, `_propose`, `_succeed`.

  A slot of an ask may be empty: `state.proposal.ids` is -1, its genome may be
  anything and its scores are ignored. `tell` and `rescored` give up the buffers
  of the state that they are given.

  Attributes:
    declared: dataclasses whose fields declare the options of the constructor,
      hyperparameters first.
    options: an instance of the last of these.
    personal: whether the memory holds personal bests.
    can_rescore: whether members can be scored again on other items.
    needs_refine: whether members that it proposes must be refined.
    sees: which of the scores it needs, one of SEES.
    ends_in_front: whether a run ends with a front, above `state.reference`.
    shares_centre: whether an ask is seeds around one centre.
    population_size: members of the initial population.
    capacity: P, slots for members; some are empty if it may grow.
    num_proposals: M, members of one ask; constant, so that nothing recompiles.
    operator_names: what `state.proposal.operator` counts.
    layers: the space's key of a genome below which leaves have the axis L.
    mesh: devices that genomes are cut over (see `sharding.cut`), or None.
    static: class and what its programs are made from, hashable. Equal ones
      share programs; one whose class is not named, as a subclass, none.
  """

  declared: tuple[type, ...] = ()
  options: Any = None
  personal = ends_in_front = shares_centre = False
  can_rescore = True
  needs_refine = False
  sees = 'fitness'
  layers: str | None = None
  mesh: jax.sharding.Mesh | None = None
  static: tuple[Any, ...] = ()

  def __init__(
    self,
    population_size: int,
    num_proposals: int,
    operator_names: tuple[str, ...],
    capacity: int | None = None,
  ):
    if population_size < 1:
      raise ValueError(
        f'Got population_size {population_size}; expected at least 1.'
      )
    capacity = population_size if capacity is None else capacity
    if capacity < population_size:
      raise ValueError(
        f'Got slots for {capacity} members and population_size '
        f'{population_size}; expected no fewer slots.'
      )
    self.population_size, self.capacity = population_size, capacity
    self.num_proposals = num_proposals
    self.operator_names = operator_names

  def take(self, options: Mapping[str, Any]) -> None:
    """Checks and keeps the options and hyperparameters of a constructor."""
    self.options, self._values = options_lib.split(self.declared[-1], options)
    options_lib.check(self._values, *self.declared)

  def cut_over(self, mesh: jax.sharding.Mesh) -> 'Strategy':
    """Returns the same for genomes that are cut over a mesh."""
    other = copy.copy(self)
    other.mesh = mesh
    return other

  @property
  def keep_best(self) -> bool:
    """Whether a run ends with the best member of all time, or of its end."""
    return getattr(self.options, 'keep_best', True)

  def _made_from(self):
    if self.static[:1] != (type(self),):
      return id(self)
    sizes = self.population_size, self.capacity, self.num_proposals
    return self.static, sizes, self.mesh, self.layers

  def __eq__(self, other: Any) -> bool:
    own = self._made_from()
    return isinstance(other, Strategy) and own == other._made_from()

  def __hash__(self) -> int:
    return hash(self._made_from())

  @classmethod
  def for_space(
    cls, population_size: int, space: Any, genome: Any, **options: Any
  ) -> 'Strategy':
    """Makes the strategy for a space, which may be None, and its genomes.

    See `registry.make_strategy`; options are those of the constructor.
    """
    strategy = cls(population_size, **options)
    strategy.layers = getattr(space, 'layers', None)
    if genome is not None:
      strategy.check_genome(genome)
    return strategy

  @property
  def default_params(self) -> Any:
    """Hyperparameters: a flax.struct pytree of arrays."""
    return make_params(self.declared[0], self._values)

  def init(
    self,
    key: jax.Array,
    population: stack.Population,
    scores: Scores,
    params: Any,
  ) -> Any:
    """Returns the state of a scored population (P, ...), with ids 0, 1, ...

    Raises:
      ValueError: if the sizes are not population_size, the strategy cannot work
        on such genomes, or it needs scores that are missing.
    """
    members = stack.size(population)
    if members != self.population_size or scores.fitness.shape != (members,):
      raise ValueError(
        f'Got {members} members with fitness of shape {scores.fitness.shape}; '
        f'expected {self.population_size} of each, the population_size this '
        'strategy was made with.'
      )
    self._check_scores(scores)
    self.check_genome(jax.eval_shape(lambda: stack.take(population, 0)))
    return self._begin(key, population, scores, params)

  @functools.partial(jax.jit, static_argnames=('self',))
  def _begin(self, key, population, scores, params):
    # Copies, as `tell` gives buffers up; empty slots stand behind the members.
    population = jax.tree.map(jnp.copy, stack.pad(population, self.capacity))
    slots = jnp.arange(self.capacity, dtype=jnp.int32)
    ids = jnp.where(slots < self.population_size, slots, lineage.NO_MEMBER)
    scores = stack.pad(scores, self.capacity).where(ids >= 0)
    state = State(
      population=population,
      fitness=scores.fitness,
      tasks=None if self.sees == 'fitness' else scores.tasks,
      ids=ids,
      next_id=jnp.int32(self.population_size),
      generation=jnp.int32(0),
      memory=succession.start_memory(
        population, scores.fitness, ids, scores.tasks, personal=self.personal
      ),
      proposal=lineage.empty_proposal(self.num_proposals),
    )
    state = self._start(key, state, scores, params)
    return self._constrain(state, self.capacity)

  def ask(
    self, key: jax.Array, state: Any, params: Any
  ) -> tuple[stack.Population, Any]:
    """Proposes members (M, ...) to score, and a state that describes them.

    It shares what an ask leaves alone with `state`, so `tell` gives up both.
    """
    proposals, changes = self._ask(key, state, params)
    return proposals, state.replace(**changes)

  @functools.partial(jax.jit, static_argnames=('self',))
  def _ask(self, key, state, params):
    # Only what changes comes out: a jitted function copies what it passes on.
    proposals, changes = self._propose(key, state, params)
    changes = self._constrain(changes, self.capacity)
    return self._constrain(proposals, self.num_proposals), changes

  def tell(
    self,
    key: jax.Array,
    population: stack.Population,
    scores: Scores,
    state: Any,
    params: Any,
  ) -> Any:
    """Returns the next state: decides what lives on.

    The scores are of the members (M, ...) of the ask that the state is from;
    ValueError if the strategy needs some that are missing.
    """
    self._check_scores(scores)
    return self._tell(key, population, scores, state, params)

  @functools.partial(
    jax.jit, static_argnames=('self',), donate_argnames=('state',)
  )
  def _tell(self, key, population, scores, state, params):
    proposal, generation = state.proposal, state.generation + 1
    scores = scores.where(proposal.filled)
    known = (scores.fitness, proposal.ids, scores.tasks, generation)
    memory = succession.remember_extremes(state.memory, population, *known)
    state = state.replace(memory=memory)
    state = self._succeed(key, population, scores, state, params)
    next_id = state.next_id + self.num_proposals
    state = state.replace(generation=generation, next_id=next_id)
    return self._constrain(state, self.capacity)

  def held(self, state: Any) -> tuple[stack.Population, jax.Array]:
    """The genomes (H, ...) whose scores the state holds, alive or remembered.

    And their ids (H,) i32, -1 in empty slots; they may repeat.
    """
    memory = state.memory
    groups = [state.population, stack.stack([memory.best, memory.worst])]
    ids = [state.ids, memory.best_id[None], memory.worst_id[None]]
    if memory.personal is not None:
      groups.append(memory.personal)
      ids.append(memory.personal_ids)
    return stack.concatenate(*groups), jnp.concatenate(ids)

  @functools.partial(
    jax.jit, static_argnames=('self',), donate_argnames=('state',)
  )
  def rescored(self, state: Any, scores: Scores) -> Any:
    """The state with new scores of `held(state)`, for fitness on other items.

    Best and worst are chosen anew among all genomes that are held, and a
    personal best between the old one and what the member is now.
    """
    memory, alive = state.memory, state.ids.shape[0]
    genomes, ids = self.held(state)
    scores = scores.where(ids >= 0)
    fitness = scores.fitness
    known = jnp.nan_to_num(fitness, nan=-jnp.inf)
    best = jnp.argmax(known)
    worst = jnp.argmin(jnp.nan_to_num(fitness, nan=jnp.inf))
    same = ids[best] == memory.best_id
    changes = {}
    if memory.personal is not None:
      own = jnp.arange(alive)
      past = own + alive + 2
      chosen = jnp.where(known[own] > known[past], own, past)
      changes = {
        'personal': stack.take(genomes, chosen),
        'personal_fitness': fitness[chosen],
        'personal_ids': ids[chosen],
      }
    memory = memory.replace(
      best=stack.take(genomes, best),
      best_fitness=fitness[best],
      best_id=ids[best],
      best_tasks=None if scores.tasks is None else scores.tasks[best],
      best_generation=jnp.where(same, memory.best_generation, state.generation),
      worst=stack.take(genomes, worst),
      worst_fitness=fitness[worst],
      worst_id=ids[worst],
      **changes,
    )
    state = state.replace(
      fitness=fitness[:alive],
      tasks=None if state.tasks is None else scores.tasks[:alive],
      memory=memory,
    )
    return self._constrain(state, self.capacity)

  def refines(self, state: Any) -> jax.Array | None:
    """(M,) bool, members of the ask to refine before scoring; None for all."""
    return None

  def notes(self, state: Any) -> Sequence[dict[str, Any]]:
    """What its records say of each of M members of the latest ask, or ()."""
    return ()

  def monitors(self, state: Any) -> dict[str, jax.Array]:
    """Returns numbers that tell how a search goes, for its records."""
    return {}

  def check_genome(self, genome: stack.Genome) -> None:
    """Raises ValueError for a genome, or shapes, that it cannot work on."""
    del genome

  @abc.abstractmethod
  def _start(self, key, state: State, scores: Scores, params) -> Any:
    """State of a scored population, made of what all strategies carry."""

  @abc.abstractmethod
  def _propose(
    self, key, state, params
  ) -> tuple[stack.Population, dict[str, Any]]:
    """M members, and fields of the state to replace, `proposal` among them."""

  @abc.abstractmethod
  def _succeed(self, key, population, scores: Scores, state, params) -> Any:
    """State after scoring; best and worst are up to date."""

  def _check_scores(self, scores):
    needed = SEES[: SEES.index(self.sees) + 1]
    missing = [name for name in needed if getattr(scores, name) is None]
    if missing:
      raise ValueError(
        f'Got scores without {" and ".join(missing)} for a strategy that sees '
        f'{self.sees!r}; expected {", ".join(needed)} in init and tell.'
      )

  def _constrain(self, tree, members):
    """Keeps genomes cut over the devices, of so many members or of one."""
    if self.mesh is None:
      return tree
    where = sharding.cut(self.mesh, tree, members)
    return jax.lax.with_sharding_constraint(tree, where)


def make_params(kind: type, values: Mapping[str, float], **others: Any) -> Any:
  """Hyperparameters of `kind` as () f32 arrays, given and by default.

  A value of None leaves the default; `others` are fields that are no options.

  Raises ValueError if a name is unknown, or a number is not in its range.
  """
  given = {k: v for k, v in values.items() if v is not None}
  options_lib.check(given, kind)
  values = options_lib.defaults(kind) | given
  return kind(**{k: jnp.float32(v) for k, v in values.items()}, **others)


def as_arrays(params: Any) -> Any:
  """Numbers of Python as () f32: of another type, programs compile again."""
  return jax.tree.map(
    lambda one: jnp.float32(one) if isinstance(one, float) else one, params
  )
