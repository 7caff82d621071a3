"""The loop of every experiment: ask, score, tell, succeed, record.

`evolve` is the whole algorithm. It knows neither the model nor the genome: a
strategy proposes and selects, a function scores, and what must survive the
process is in one pytree, `run_state.RunState`.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.runs import run_state
from evojax_llm.strategies.base import negate


class EvolutionError(RuntimeError):
  """A run that cannot go on: not one member could be scored."""


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a generation did, on the host, for records.

  Attributes:
    number: 0 for the initial population.
    ids: ids of the M members that were scored, in the order of the next four.
    parents: two ids each, -1 where there is none.
    operators: index into the strategy's `operator_names`, -1 for the initial
      population.
    fitness: (M,) f32, NaN where scoring failed.
    task_scores: (M, K) f32.
    reasons: why scoring failed, or None.
    mean_fitness: of the population that lives on, failed members left out.
    best_id, best_fitness, best_task_scores: of the best member so far.
    evaluations: members scored since the run began.
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

  @property
  def failed(self) -> int:
    """How many of the scored members could not be scored."""
    return sum(reason is not None for reason in self.reasons)


def evolve(
  strategy: Any,
  params: Any,
  score: run_state.Score,
  population: Any,
  *,
  seed: int,
  generations: int,
  patience: int | None = None,
  state: run_state.RunState | None = None,
  redraw: Callable[[int], None] | None = None,
  maximise: Sequence[bool] | None = None,
  phase: Callable[[str], Any] = contextlib.nullcontext,
) -> Iterator[tuple[run_state.RunState, Generation]]:
  """Evolves a population; yields after each generation.

  Args:
    strategy: `init`, `ask`, `tell` (see `strategies.base`).
    params: the strategy's parameters.
    score: scores members of a population on `dev`.
    population: the initial population, leaves (P, ...); given up.
    seed: of all randomness.
    generations: G, after the initial population's generation 0.
    patience: generations without a new best after which the run ends; None
      for no such end.
    state: where to go on; None to begin with `population`.
    redraw: called with the number of each generation but the first, it has
      `score` use other items from then on. Who is alive or remembered is scored
      again on these before anybody is proposed, so that fitness compares within
      a generation (as EvoMerge does, arXiv 2402.00070).
    maximise: K times whether more of a task's score is better, for strategies
      that choose by the scores of the tasks; None where it is of all.
    phase: `with phase('score'):` surrounds each part, to time it.

  Yields:
    (state, generation), the state being all that a resumed run needs.

  Raises:
    EvolutionError: no member of the initial population could be scored.
  """
  if state is None:
    members = np.arange(stack.size(population))
    with phase('score'):
      scored = score(population, members)
    _check_alive(scored)
    with phase('operators'):
      state = run_state.begin(
        strategy,
        params,
        seed,
        population,
        jnp.asarray(scored.fitness),
        jnp.asarray(scored.task_scores),
        maximise,
      )
    del population  # the strategy has its own copy
    yield state, _first_generation(state, members, scored)

  seed_key = jax.random.key(state.seed)
  while not _is_over(state, generations, patience):
    number = state.generation + jnp.int32(1)
    if redraw is not None:
      with phase('score'):
        redraw(int(number))
        state = run_state.rescore(state, score, maximise)
    ask_key = keys.key_for(seed_key, number, lineage.NO_MEMBER, 'ask')
    tell_key = keys.key_for(seed_key, number, lineage.NO_MEMBER, 'tell')

    with phase('operators'):
      proposals, inner = strategy.ask(ask_key, state.strategy, params)
      proposal = jax.device_get(inner.proposal)
    with phase('score'):
      # Slots without a member cost nothing; nobody else is scored twice,
      # because a member that lives on is not proposed again.
      members = np.flatnonzero(proposal.ids >= 0)
      scored = score(proposals, members)
    with phase('operators'):
      fitness, task_scores = run_state.spread(
        scored, members, proposal.ids.shape[0]
      )
      best = run_state.succeed(
        state.best, proposals, proposal.ids, fitness, task_scores, number
      )
      inner, _ = strategy.tell(
        tell_key,
        proposals,
        negate(fitness),
        inner,
        params,
        run_state.objectives_of(task_scores, maximise),
      )
      state = run_state.RunState(
        strategy=inner,
        best=best,
        seed=state.seed,
        generation=number,
        evaluations=state.evaluations + jnp.int32(len(members)),
      )
      generation = _generation(state, proposal, members, scored)
    yield state, generation


def _is_over(
  state: run_state.RunState, generations: int, patience: int | None
) -> bool:
  generation = int(state.generation)
  stale = generation - int(state.best.generation)
  return generation >= generations or (
    patience is not None and stale >= patience
  )


def _check_alive(scored: run_state.Scored) -> None:
  if np.isnan(scored.fitness).all():
    raise EvolutionError(
      f'None of the {len(scored.fitness)} members of the initial population '
      f'could be scored; the first because: {scored.reasons[0]}. Check the '
      'model folder, the adapters and the type of the activations.'
    )


def _first_generation(state, members, scored) -> Generation:
  proposal = lineage.Proposal(
    ids=members,
    parents=np.full((len(members), 2), lineage.NO_MEMBER, np.int32),
    operator=np.full((len(members),), lineage.NO_MEMBER, np.int32),
  )
  return _generation(state, proposal, members, scored)


def _generation(state, proposal, members, scored) -> Generation:
  best, alive = jax.device_get(
    (
      state.best.replace(genome=None),
      state.strategy.fitness,
    )
  )
  alive = alive[np.isfinite(alive)]
  return Generation(
    number=int(state.generation),
    ids=[int(i) for i in proposal.ids[members]],
    parents=[(int(a), int(b)) for a, b in proposal.parents[members]],
    operators=[int(i) for i in proposal.operator[members]],
    fitness=np.asarray(scored.fitness),
    task_scores=np.asarray(scored.task_scores),
    reasons=list(scored.reasons),
    mean_fitness=np.float32(alive.mean() if alive.size else np.nan),
    best_id=int(best.id),
    best_fitness=np.float32(best.fitness),
    best_task_scores=np.asarray(best.task_scores),
    evaluations=int(state.evaluations),
  )
