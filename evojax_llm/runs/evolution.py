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
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.options import Option
from evojax_llm.population import hosts
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import errors
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

# A search that proposes no members any more spends no evaluations; it ends
# after so many generations for each evaluation.
_GENERATIONS = 10
# Tokens and seconds may be spent before a search goes on.
_LEAST = {
  'generations': 0,
  'evaluations': 1,
  'patience': 1,
  'tokens': 0,
  'seconds': 0.0,
}

# Folded in one by one, a key takes longer than a small generation.
_key_for = jax.jit(keys.key_for, static_argnames='purpose')

# score(population, which) returns the fitness of the members at the indices
# `which` into P, (M,), or a fitness.evaluation.Evaluation of them.
Score = Callable[[Any, np.ndarray], Any]


class EvolutionError(errors.UserError):
  """No member could be scored: none to go on with."""


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a generation did, on the host, for records."""

  number: int  # 0 for the initial population
  ids: list[int]  # of the M members that were proposed
  parents: list[tuple[int, int]]  # two ids each, -1 where there is none
  # Indices into the strategy's `operator_names`, -1 in the initial population.
  operators: list[int]
  fitness: np.ndarray  # (M,) f32, NaN where a member failed
  task_scores: np.ndarray  # (M, K) f32, as the tasks have them
  reasons: list[str | None]  # why a member failed
  mean_fitness: float  # of the population that lives on, without failed ones
  best_id: int  # of the best member so far
  best_fitness: float
  best_task_scores: np.ndarray
  evaluations: int  # members scored since the run began
  scored: int  # how many of the M members were scored, the first ones
  slots: Sequence[int] = ()  # of the ask, where they were

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
      generation beyond it count as failed; where the strategy does not keep the
      best, a generation that is more than is left is not begun.
    tokens: by which `count_tokens` grows before the last generation ends.
    count_tokens: returns the tokens that the engine has read and written.
    seconds: that pass before the last generation ends.
    patience: generations without a new best.
    state: where to go on; None to begin. Its evaluations count.
    redraw: called with the number of each generation but the first, it has
      `score` use other items. Members that are alive or remembered are scored
      again before any is proposed (as in EvoMerge, arXiv 2402.00070).
    refine: refine(members, which, key) returns the members (M, ...) of an ask
      with those at `which` improved, as by gradient steps: the ones to score
      that the strategy `refines`. It must leave the buffers of `members` alone.
    maximise: K times whether more of a task's score is better; None for all.
    phase: `with phase('score'):` surrounds each part, to time it.

  Returns:
    The search, which runs as it is iterated over.

  Raises:
    ValueError: no limit is given, one cannot be, tokens are not counted, refine
      is missing, there is nothing to begin with, or score returns no number for
      each member.
    EvolutionError: no member of a population could be scored.
  """
  limits = _Limits(
    generations, evaluations, tokens, count_tokens, seconds, patience
  )
  if strategy.needs_refine and refine is None:
    raise ValueError(
      f'Got no refine for {type(strategy).__name__}, whose mutation is left to '
      "it. Give one, or mutation='gaussian'."
    )
  if state is None and population is None:
    if space is None:
      raise ValueError(
        'Got no space, population or state; expected one to begin with.'
      )
    size, key = strategy.population_size, jax.random.key(seed)
    population = space.initial(RECIPE, size, key).population
  params = strategy.default_params if params is None else base.as_arrays(params)
  parts = strategy, params, score, limits, redraw, refine, maximise, phase
  return Search(_Loop(*parts).rounds(state, population, seed))


class _Limits:
  """When a search ends; see `evolve`."""

  def __init__(
    self, generations, evaluations, tokens, count_tokens, seconds, patience
  ):
    limits = (generations, evaluations, patience, tokens, seconds)
    self._most = dict(zip(_LEAST, limits, strict=True))
    if all(limit is None for limit in limits):
      raise ValueError(
        'Got no limit of the search; expected one of generations, '
        'evaluations, tokens, seconds or patience.'
      )
    for name, limit in self._most.items():
      limit = limit.item() if isinstance(limit, np.generic) else limit
      least = _LEAST[name]
      Option(name, None, '', low=least, kind=type(least)).check(limit)
    if tokens is not None and count_tokens is None:
      raise ValueError(
        f'Got tokens {tokens} without count_tokens; expected a function that '
        'returns how many there were so far.'
      )
    if generations is None and evaluations is not None:
      self._most['generations'] = _GENERATIONS * evaluations
    self._count = count_tokens or (lambda: 0)

  def begin(self) -> None:
    """Notes the time and the tokens so far."""
    self._began, self._before = time.monotonic(), self._count()

  def left(self, state) -> int | None:
    """How many members may still be scored; None for no limit."""
    most = self._most['evaluations']
    done = 0 if state is None else int(state.evaluations)
    return None if most is None else max(0, most - done)

  def reached(self, state) -> str | None:
    """The limit that a state has reached, if any."""
    generation = int(state.generation)
    now = {
      'generations': generation,
      'evaluations': int(state.evaluations),
      'patience': generation - int(state.strategy.memory.best_generation),
      'tokens': self._count() - self._before,
      'seconds': time.monotonic() - self._began,
    }
    for name, most in self._most.items():
      if most is not None and now[name] >= most:
        return hosts.agreed(name)
    return hosts.agreed(None)


class _Loop(NamedTuple):
  """The parts of a search; see `evolve`."""

  strategy: base.Strategy
  params: Any
  score: Score
  limits: _Limits
  redraw: Any
  refine: Any
  maximise: Sequence[bool] | None
  phase: Any

  def rounds(self, state, population, seed):
    """Yields (state, generation); returns the limit that was reached."""
    self.limits.begin()
    if state is None:
      which = np.arange(stack.size(population))
      with self.phase('score'):
        scored = self._scored(
          population,
          which,
          len(which),
          self.limits.left(None),
          'members of the initial population',
        )
      with self.phase('operators'):
        state = run_state.begin(
          self.strategy,
          self.params,
          seed,
          population,
          scored.scores,
          scored.models,
        )
      del population  # the strategy has its own copy
      first = sharding.to_host(lineage.empty_proposal(len(which)))
      first = first.replace(ids=which)
      yield state, self._generation(state, first, which, scored)

    seed_key = jax.random.key(state.seed)
    while not (stop := self.limits.reached(state)):
      number = state.generation + np.int32(1)
      key = functools.partial(_key_for, seed_key, number, lineage.NO_MEMBER)
      if self.redraw is not None:
        with self.phase('score'):
          state = self._rescored(state, int(number))
        if state is None:
          return 'evaluations'
      with self.phase('operators'):
        members, inner = self.strategy.ask(
          key('ask'), state.strategy, self.params
        )
        proposal = sharding.to_host(inner.proposal)
        # Empty slots cost nothing; what lives on is not proposed again.
        which = np.flatnonzero(proposal.ids >= 0)
        left = self.limits.left(state)
        if not (self.strategy.keep_best or left is None or len(which) <= left):
          return 'evaluations'
      if self.refine is not None:
        wanted, chosen = self.strategy.refines(inner), which[:left]
        if wanted is not None:
          chosen = chosen[np.asarray(wanted)[chosen]]
        if len(chosen):
          with self.phase('refine'):
            members = self.refine(members, chosen, key('refine'))
      with self.phase('score'):
        scored = self._scored(members, which, len(proposal.ids), left)
      with self.phase('operators'):
        inner = self.strategy.tell(
          key('tell'), members, scored.scores, inner, self.params
        )
        state = run_state.RunState(
          strategy=inner,
          seed=state.seed,
          generation=number,
          evaluations=state.evaluations + np.int32(scored.models),
        )
        generation = self._generation(state, proposal, which, scored)
      yield state, generation
    return stop

  def _scored(self, population, which, slots, left, alive='') -> '_Scored':
    """Scores the members at `which`, as many as are left, for all slots.

    Raises:
      EvolutionError: all failed, of members that are `alive`.
    """
    chosen = which[:left]
    found = _evaluation(self.score(population, chosen), len(chosen))
    # What is infinite cannot be compared: a member has failed by it.
    failed = ~np.isfinite(found.fitness)
    reasons = [
      (reason or 'its fitness is not finite') if bad else reason
      for reason, bad in zip(found.reasons, failed, strict=True)
    ]
    reasons += [SPENT] * (len(which) - len(chosen))
    if alive and failed.all():
      said = '; '.join(list(dict.fromkeys(map(str, reasons)))[:3])
      raise EvolutionError(
        f'None of the {len(which)} {alive} could be scored: {said}. '
        + (_ENGINE if found.tasks else _OWN)
      )

    def spread(values):
      full = np.full((slots, *values.shape[1:]), np.nan, np.float32)
      full[chosen] = values
      return full

    nan, items = np.float32(np.nan), None
    if self.strategy.sees == 'items' and found.tasks:
      items = spread(np.where(failed[:, None], nan, found.items))
    fitness = spread(np.where(failed, nan, found.fitness))
    tasks = run_state.oriented(spread(found.task_scores), self.maximise)
    scores = base.Scores(fitness, tasks, items)
    models = len(chosen) if found.distinct is None else found.distinct
    return _Scored(scores, reasons, len(chosen), models)

  def _rescored(self, state, number):
    """The state with scores on other items; None where they cost too much."""
    genomes, ids = self.strategy.held(state.strategy)
    which = np.flatnonzero(np.asarray(ids) >= 0)
    left = self.limits.left(state)
    if left is not None and len(which) >= left:
      return None
    self.redraw(number)
    alive = f'members that live in generation {number}, on other items,'
    scored = self._scored(genomes, which, len(ids), None, alive)
    return state.replace(
      strategy=self.strategy.rescored(state.strategy, scored.scores),
      evaluations=state.evaluations + jnp.int32(scored.models),
    )

  def _generation(self, state, proposal, which, scored) -> Generation:
    memory = state.strategy.memory.replace(best=None, worst=None, personal=None)
    memory, alive = sharding.to_host((memory, state.strategy.fitness))
    alive = alive[np.isfinite(alive)]
    return Generation(
      number=int(state.generation),
      ids=[int(i) for i in proposal.ids[which]],
      slots=which.tolist(),
      parents=[(int(a), int(b)) for a, b in proposal.parents[which]],
      operators=[int(i) for i in proposal.operator[which]],
      fitness=scored.scores.fitness[which],
      task_scores=run_state.oriented(scored.scores.tasks[which], self.maximise),
      reasons=scored.reasons,
      mean_fitness=np.float32(alive.mean() if alive.size else np.nan),
      best_id=int(memory.best_id),
      best_fitness=np.float32(memory.best_fitness),
      best_task_scores=run_state.oriented(memory.best_tasks, self.maximise),
      evaluations=int(state.evaluations),
      scored=scored.count,
    )


class _Scored(NamedTuple):
  """Scores of members on the host, of the first `count` that were proposed."""

  scores: base.Scores  # of all slots, NaN in the empty ones
  reasons: list[str | None]
  count: int
  models: int  # of which each counts as one evaluation


def _evaluation(found: Any, count: int) -> Evaluation:
  """Scores of M members; where they are fitness alone, it is their one task."""
  shape, whole = '', found if isinstance(found, Evaluation) else None
  with contextlib.suppress(TypeError, ValueError):
    if found is not None:
      if whole is None:
        fitness = np.asarray(found, np.float32)
        whole = Evaluation(fitness, fitness[..., None], [], [None] * count)
      if np.shape(whole.fitness) == (count,):
        return whole
      shape = f' of shape {np.shape(whole.fitness)}'
  raise ValueError(
    f'Got {type(found).__name__}{shape} as the fitness of {count} members; '
    'expected one number each. Return a list with one for each index that '
    'score is given, or an Evaluation.'
  )
