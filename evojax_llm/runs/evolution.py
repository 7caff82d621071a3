"""The loop of every search: ask, refine, score, tell.

`evolve` is the whole algorithm. It knows neither the model nor the genome: a
strategy proposes and selects, a function scores, and what must survive the
process is in one pytree, `run_state.RunState`. From Python no run folder is
needed:

    strategy = registry.make_strategy('genome_plus', 8, space)
    search = evolution.evolve(strategy, space, score, evaluations=200)
    for state, generation in search:
      print(generation.number, generation.best_fitness)
    print(search.stop, run_state.best_of(state).genome)
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import limits as limits_lib
from evojax_llm.runs import run_state
from evojax_llm.strategies import base

# Of the initial population, where none is given.
RECIPE = ('experts', 'zero', 'scaled_average', 'extrapolants')
SPENT = 'the budget is spent'
# What to do where no member could be scored.
_OWN = 'Have score return a finite number for one member at least.'
_ENGINE = (
  'Check the model folder, the adapters, the tasks and the type of the '
  'activations.'
)

# score(population, which) returns the fitness of the members at the indices
# `which` into P, (M,), or a fitness.evaluation.Evaluation of them.
Score = Callable[[Any, np.ndarray], Any]


class EvolutionError(errors.UserError):
  """No member could be scored: none to go on with."""


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a generation did, on the host, for records.

  Attributes:
    number: 0 for the initial population.
    ids: of the M members that were proposed.
    parents: two ids each, -1 where there is none.
    operators: index into the strategy's `operator_names`, -1 for the initial
      population.
    fitness: (M,) f32, NaN where a member failed.
    task_scores: (M, K) f32, as the tasks have them.
    reasons: why a member failed, or None.
    mean_fitness: of the population that lives on, failed members left out.
    best_id, best_fitness, best_task_scores: of the best member so far.
    evaluations: members scored since the run began.
    scored: how many of the M members were scored, the first ones.
  """

  number: int
  ids: list[int]
  parents: list[tuple[int, int]]
  operators: list[int]
  fitness: np.ndarray
  task_scores: np.ndarray
  reasons: list[str | None]
  mean_fitness: float
  best_id: int
  best_fitness: float
  best_task_scores: np.ndarray
  evaluations: int
  scored: int

  @property
  def failed(self) -> int:
    """How many of the members failed."""
    return sum(reason is not None for reason in self.reasons)


class Search:
  """A search: iterate over it for (state, generation) after each generation.

  Then `stop` is the limit that ended it, as `evolve` names it.
  """

  def __init__(self, rounds: Iterator[Any]):
    self._rounds, self.stop = rounds, None

  def __iter__(self) -> Iterator[tuple[run_state.RunState, Generation]]:
    self.stop = (yield from self._rounds) or self.stop


def evolve(
  strategy: base.Strategy,
  space: Any,
  score: Score,
  *,
  population: Any = None,
  params: Any = None,
  seed: int = 0,
  generations: int | None = None,
  evaluations: int | None = None,
  tokens: int | None = None,
  count_tokens: Callable[[], int] | None = None,
  seconds: float | None = None,
  patience: int | None = None,
  state: run_state.RunState | None = None,
  redraw: Callable[[int], None] | None = None,
  refine: Callable[[Any, np.ndarray, jax.Array], Any] | None = None,
  maximise: Sequence[bool] | None = None,
  phase: Callable[[str], Any] = contextlib.nullcontext,
) -> Search:
  """Evolves a population until the first of several limits.

  Args:
    strategy: see `strategies.base`.
    space: genomes.space.Space that makes the initial population; may be None
      where `population` or `state` is given.
    score: scores members of a population on `dev`; NaN where one failed.
    population: the initial population, leaves (P, ...); given up.
    params: the strategy's hyperparameters; its default by default.
    seed: of all randomness.
    generations: G, after the initial population's generation 0.
    evaluations: exactly so many members are scored. Members of the last
      generation beyond it count as failed; where the strategy does not keep
      the best, a generation that is more than is left is not begun.
    tokens: the search ends after the generation in which `count_tokens` has
      grown by so many since it began.
    count_tokens: returns the tokens that the engine has read and written.
    seconds: the search ends after the generation in which they have passed.
    patience: generations without a new best.
    state: where to go on; None to begin. Its evaluations count.
    redraw: called with the number of each generation but the first, it has
      `score` use other items. Members that are alive or remembered are scored
      again before any is proposed (as in EvoMerge, arXiv 2402.00070).
    refine: refine(members, which, key) returns the members (M, ...) of an ask
      with those at `which` improved, as by gradient steps; it must leave the
      buffers of `members` alone.
    maximise: K times whether more of a task's score is better; None for all.
    phase: `with phase('score'):` surrounds each part, to time it.

  Returns:
    The search, which runs as it is iterated over.

  Raises:
    ValueError: no limit is given, one cannot be, tokens are not counted, there
      is nothing to begin with, or score returns no number for each member.
    EvolutionError: no member of a population could be scored.
  """
  limits = limits_lib.Limits(
    generations, evaluations, tokens, count_tokens, seconds, patience
  )
  if state is None and population is None:
    if space is None:
      raise ValueError(
        'Got no space, population or state; expected one to begin with.'
      )
    made = space.initial(RECIPE, strategy.population_size, jax.random.key(seed))
    population = made.population
  loop = _Loop(
    strategy,
    strategy.default_params if params is None else base.as_arrays(params),
    score,
    limits,
    redraw,
    refine,
    None if maximise is None else np.asarray(maximise, bool),
    phase,
  )
  return Search(loop.rounds(state, population, seed))


@dataclasses.dataclass(frozen=True)
class _Loop:
  """The parts of a search; see `evolve`."""

  strategy: base.Strategy
  params: Any
  score: Score
  limits: limits_lib.Limits
  redraw: Any
  refine: Any
  maximise: np.ndarray | None
  phase: Any

  def rounds(self, state, population, seed):
    """Yields (state, generation); returns the limit that was reached."""
    self.limits.begin()
    if state is None:
      which = np.arange(stack.size(population))
      with self.phase('score'):
        scored = self._scored(population, which, self.limits.left(None))
      _refuse_if_all_failed(scored, 'members of the initial population')
      with self.phase('operators'):
        scores = self._scores(scored, which, len(which))
        state = run_state.begin(
          self.strategy, self.params, seed, population, scores, scored.models
        )
      del population  # the strategy has its own copy
      empty = lineage.empty_proposal(len(which))
      first = jax.device_get(empty).replace(ids=which)
      yield state, self._generation(state, first, which, scored)

    seed_key = jax.random.key(state.seed)
    while not (stop := self.limits.reached(state)):
      number = state.generation + jnp.int32(1)

      key = functools.partial(keys.key_for, seed_key, number, lineage.NO_MEMBER)
      if self.redraw is not None:
        with self.phase('score'):
          state = self._rescored(state, int(number))
        if state is None:
          return 'evaluations'
      with self.phase('operators'):
        members, inner = self.strategy.ask(
          key('ask'), state.strategy, self.params
        )
        proposal = jax.device_get(inner.proposal)
        # Empty slots cost nothing; what lives on is not proposed again.
        which = np.flatnonzero(proposal.ids >= 0)
        left = self.limits.left(state)
        if not (self.strategy.keep_best or left is None or len(which) <= left):
          return 'evaluations'
        if self.refine is not None and len(which):
          members = self.refine(members, which, key('refine'))
      with self.phase('score'):
        scored = self._scored(members, which, left)
      with self.phase('operators'):
        scores = self._scores(scored, which, len(proposal.ids))
        inner = self.strategy.tell(
          key('tell'), members, scores, inner, self.params
        )
        state = run_state.RunState(
          strategy=inner,
          seed=state.seed,
          generation=number,
          evaluations=state.evaluations + jnp.int32(scored.models),
        )
        generation = self._generation(state, proposal, which, scored)
      yield state, generation
    return stop

  def _scored(self, population, which, left) -> '_Scored':
    """Scores of the members at `which`; the budget's rest of them at most."""
    chosen = which[:left]
    missing = len(which) - len(chosen)
    found = self.score(population, chosen)
    fitness = _fitness(found, len(chosen))
    own = not hasattr(found, 'fitness')
    if own:
      tasks, reasons = fitness[:, None], [None] * len(chosen)
    else:
      tasks, reasons = np.asarray(found.task_scores), list(found.reasons)
    # What is infinite cannot be compared: a member has failed by it.
    failed = ~np.isfinite(fitness)
    fitness = np.where(failed, np.float32(np.nan), fitness)
    reasons = [
      (reason or 'its fitness is not finite') if bad else reason
      for reason, bad in zip(reasons, failed, strict=True)
    ]
    items = None
    if self.strategy.sees == 'items':
      values = [t.values if t.maximise else -t.values for t in found.tasks]
      items = _pad(np.concatenate(values, axis=1), missing)
    return _Scored(
      _pad(fitness, missing),
      _pad(tasks, missing),
      items,
      reasons + [SPENT] * missing,
      len(chosen),
      own,
      getattr(found, 'distinct', None) or len(chosen),
    )

  def _scores(self, scored, which, slots) -> base.Scores:
    """The scores of all slots, NaN in the empty ones."""

    def spread(values):
      if values is None:
        return None
      full = np.full((slots, *values.shape[1:]), np.nan, np.float32)
      full[which] = values
      return full

    tasks = spread(scored.tasks)
    return base.Scores(
      spread(scored.fitness),
      run_state.oriented(tasks, self.maximise),
      spread(scored.items),
    )

  def _rescored(self, state, number):
    """The state with scores on other items; None where they cost too much."""
    genomes, ids = self.strategy.held(state.strategy)
    which = np.flatnonzero(np.asarray(ids) >= 0)
    left = self.limits.left(state)
    if left is not None and len(which) >= left:
      return None
    self.redraw(number)
    scored = self._scored(genomes, which, None)
    _refuse_if_all_failed(
      scored, f'members that live in generation {number}, on other items,'
    )
    scores = self._scores(scored, which, len(ids))
    return state.replace(
      strategy=self.strategy.rescored(state.strategy, scores),
      evaluations=state.evaluations + jnp.int32(scored.models),
    )

  def _generation(self, state, proposal, which, scored) -> Generation:
    memory = state.strategy.memory.replace(best=None, worst=None, personal=None)
    memory, alive = jax.device_get((memory, state.strategy.fitness))
    alive = alive[np.isfinite(alive)]
    return Generation(
      number=int(state.generation),
      ids=[int(i) for i in proposal.ids[which]],
      parents=[(int(a), int(b)) for a, b in proposal.parents[which]],
      operators=[int(i) for i in proposal.operator[which]],
      fitness=scored.fitness,
      task_scores=scored.tasks,
      reasons=scored.reasons,
      mean_fitness=np.float32(alive.mean() if alive.size else np.nan),
      best_id=int(memory.best_id),
      best_fitness=np.float32(memory.best_fitness),
      best_task_scores=run_state.oriented(memory.best_tasks, self.maximise),
      evaluations=int(state.evaluations),
      scored=scored.count,
    )


class _Scored(NamedTuple):
  """Scores of M members on the host; as in `Generation`, but for items."""

  fitness: np.ndarray
  tasks: np.ndarray
  items: np.ndarray | None  # (M, I) f32, maximised, where a strategy sees them
  reasons: list[str | None]
  count: int
  own: bool  # by a function that returns plain numbers
  models: int  # of which each counts as one evaluation


def _fitness(found: Any, count: int) -> np.ndarray:
  """Fitness (M,) of what was returned for M members."""
  shape = ''
  if found is not None:
    try:
      fitness = (
        np.asarray(found.fitness)
        if hasattr(found, 'fitness')
        else np.asarray(found, np.float32)
      )
      if fitness.shape == (count,):
        return fitness
      shape = f' of shape {fitness.shape}'
    except (TypeError, ValueError):
      pass
  raise ValueError(
    f'Got {type(found).__name__}{shape} as the fitness of {count} members; '
    'expected one number each. Return a list with one for each index that '
    'score is given, or an Evaluation.'
  )


def _refuse_if_all_failed(scored: _Scored, which: str) -> None:
  if np.isnan(scored.fitness).all():
    reasons = '; '.join(list(dict.fromkeys(map(str, scored.reasons)))[:3])
    raise EvolutionError(
      f'None of the {len(scored.fitness)} {which} could be scored: {reasons}. '
      + (_OWN if scored.own else _ENGINE)
    )


def _pad(values: np.ndarray, missing: int) -> np.ndarray:
  if not missing:
    return values
  width = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
  return np.pad(values, width, constant_values=np.nan)
