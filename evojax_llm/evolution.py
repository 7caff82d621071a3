"""The loop of every experiment: ask, score, tell, succeed, record.

`evolve` is the whole algorithm. It knows neither the model nor the genome: a
strategy proposes and selects, a function scores, and what must survive the
process is in one pytree, `RunState`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies.base import negate


class EvolutionError(RuntimeError):
  """A run that cannot go on: not one member could be scored."""


class Scored(Protocol):
  """What the loop reads of `fitness.scores.Scores`, for M scored members."""

  fitness: np.ndarray  # (M,) f32, NaN where the member failed
  task_scores: np.ndarray  # (M, K) f32
  reasons: list[str | None]  # why a member failed


# score(population, members): scores the members at these indices into P.
Score = Callable[[Any, np.ndarray], Scored]


@flax.struct.dataclass
class Best:
  """The best member ever scored on `dev`.

  Attributes:
    genome: its genome.
    id: () i32; -1 as long as no member could be scored.
    fitness: () f32; -inf as long as there is none.
    task_scores: (K,) f32.
    generation: () i32, when it was born.
  """

  genome: Any
  id: jax.Array
  fitness: jax.Array
  task_scores: jax.Array
  generation: jax.Array


@flax.struct.dataclass
class RunState:
  """All that a run needs to go on; nothing else matters.

  Attributes:
    strategy: the strategy's state: population, ids, fitness, memory.
    best: the best member so far.
    seed: () u32; every key is folded from it.
    generation: () i32, generations that are over; the initial population is
      generation 0.
    evaluations: () i32, members scored so far.
  """

  strategy: Any
  best: Best
  seed: jax.Array
  generation: jax.Array
  evaluations: jax.Array


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
  score: Score,
  population: Any,
  *,
  seed: int,
  generations: int,
  patience: int | None = None,
  state: RunState | None = None,
  redraw: Callable[[int], None] | None = None,
  phase: Callable[[str], Any] = contextlib.nullcontext,
) -> Iterator[tuple[RunState, Generation]]:
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
      state = begin(
        strategy,
        params,
        seed,
        population,
        jnp.asarray(scored.fitness),
        jnp.asarray(scored.task_scores),
      )
    del population  # the strategy has its own copy
    yield state, _first_generation(state, members, scored)

  seed_key = jax.random.key(state.seed)
  while not _is_over(state, generations, patience):
    number = state.generation + jnp.int32(1)
    if redraw is not None:
      with phase('score'):
        redraw(int(number))
        state = rescore(state, score)
    ask_key = keys.key_for(seed_key, number, lineage.NOBODY, 'ask')
    tell_key = keys.key_for(seed_key, number, lineage.NOBODY, 'tell')

    with phase('operators'):
      proposals, inner = strategy.ask(ask_key, state.strategy, params)
      proposal = jax.device_get(inner.proposal)
    with phase('score'):
      # Slots without a member cost nothing; nobody else is scored twice,
      # because a member that lives on is not proposed again.
      members = np.flatnonzero(proposal.ids >= 0)
      scored = score(proposals, members)
    with phase('operators'):
      fitness, task_scores = _spread(scored, members, proposal.ids.shape[0])
      best = _succeed(
        state.best, proposals, proposal.ids, fitness, task_scores, number
      )
      inner, _ = strategy.tell(
        tell_key, proposals, negate(fitness), inner, params
      )
      state = RunState(
        strategy=inner,
        best=best,
        seed=state.seed,
        generation=number,
        evaluations=state.evaluations + jnp.int32(len(members)),
      )
      generation = _generation(state, proposal, members, scored)
    yield state, generation


def begin(
  strategy: Any,
  params: Any,
  seed: int,
  population: Any,
  fitness: jax.Array,
  task_scores: jax.Array,
) -> RunState:
  """The state after generation 0: P members and their scores.

  Can be traced; `jax.eval_shape` of it tells what a checkpoint must hold.

  Args:
    strategy: see `evolve`.
    params: see `evolve`.
    seed: see `evolve`.
    population: leaves (P, ...).
    fitness: (P,) f32.
    task_scores: (P, K) f32.
  """
  members, tasks = task_scores.shape
  seed = jnp.uint32(seed)
  zero = jnp.int32(0)
  nobody = Best(
    genome=jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), population),
    id=jnp.int32(lineage.NOBODY),
    fitness=jnp.float32(-jnp.inf),
    task_scores=jnp.full((tasks,), jnp.nan, jnp.float32),
    generation=zero,
  )
  ids = jnp.arange(members, dtype=jnp.int32)
  best = _succeed(nobody, population, ids, fitness, task_scores, zero)
  key = keys.key_for(jax.random.key(seed), zero, lineage.NOBODY, 'init')
  return RunState(
    strategy=strategy.init(key, population, negate(fitness), params),
    best=best,
    seed=seed,
    generation=zero,
    evaluations=jnp.int32(members),
  )


def rescore(state: RunState, score: Score) -> RunState:
  """The state with everybody alive or remembered scored again.

  The best and the worst are chosen anew among them, and a member's own best
  between that and what the member is now. All of it counts as evaluations.
  """
  inner, memory = state.strategy, state.strategy.memory
  remembered = [memory.best, memory.worst, state.best.genome]
  groups = [inner.population, stack.stack(remembered)]
  ids = [inner.ids, memory.best_id, memory.worst_id, state.best.id]
  if memory.personal is not None:
    groups.append(memory.personal)
    ids.append(memory.personal_ids)
  everyone = stack.concatenate(*groups)
  scored = score(everyone, np.arange(stack.size(everyone)))
  ids = jnp.concatenate([jnp.atleast_1d(i) for i in ids])
  return _rescored(
    state,
    everyone,
    ids,
    jnp.asarray(scored.fitness),
    jnp.asarray(scored.task_scores),
  )


@jax.jit
def _rescored(state, everyone, ids, fitness, task_scores) -> RunState:
  inner, memory = state.strategy, state.strategy.memory
  alive = inner.ids.shape[0]

  def at(index):
    return jax.tree.map(lambda leaf: leaf[index], everyone)

  best = jnp.argmax(jnp.where(jnp.isnan(fitness), -jnp.inf, fitness))
  worst = jnp.argmin(jnp.where(jnp.isnan(fitness), jnp.inf, fitness))
  memory = memory.replace(
    best=at(best),
    best_fitness=fitness[best],
    best_id=ids[best],
    worst=at(worst),
    worst_fitness=fitness[worst],
    worst_id=ids[worst],
  )
  if memory.personal is not None:
    own = jnp.arange(alive)
    past = own + alive + 3
    chosen = jnp.where(
      jnp.nan_to_num(fitness[own], nan=-jnp.inf)
      > jnp.nan_to_num(fitness[past], nan=-jnp.inf),
      own,
      past,
    )
    memory = memory.replace(
      personal=at(chosen),
      personal_fitness=fitness[chosen],
      personal_ids=ids[chosen],
    )
  same = ids[best] == state.best.id
  return state.replace(
    strategy=inner.replace(fitness=fitness[:alive], memory=memory),
    best=state.best.replace(
      genome=at(best),
      id=ids[best],
      fitness=jnp.nan_to_num(fitness[best], nan=-jnp.inf),
      task_scores=task_scores[best],
      generation=jnp.where(same, state.best.generation, state.generation),
    ),
    evaluations=state.evaluations + jnp.int32(ids.shape[0]),
  )


def abstract_state(
  strategy: Any, params: Any, population: Any, num_tasks: int
) -> RunState:
  """Shapes and dtypes of a run's state, without scoring anybody."""
  members = stack.size(population)
  return jax.eval_shape(
    lambda *scores: begin(strategy, params, 0, *scores),
    population,
    jax.ShapeDtypeStruct((members,), jnp.float32),
    jax.ShapeDtypeStruct((members, num_tasks), jnp.float32),
  )


@jax.jit
def _succeed(best, population, ids, fitness, task_scores, generation) -> Best:
  """The better of the best so far and the best of M members.

  A failed member (NaN) or an empty slot never is; of equals the elder, then
  the one with the lowest index, stays.
  """
  fitness = jnp.where(jnp.isnan(fitness) | (ids < 0), -jnp.inf, fitness)
  winner = jnp.argmax(fitness)
  challenger = Best(
    genome=jax.tree.map(lambda leaf: leaf[winner], population),
    id=ids[winner],
    fitness=fitness[winner],
    task_scores=task_scores[winner],
    generation=generation,
  )
  wins = challenger.fitness > best.fitness
  return jax.tree.map(
    lambda new, old: jnp.where(wins, new, old), challenger, best
  )


def _is_over(state: RunState, generations: int, patience: int | None) -> bool:
  generation = int(state.generation)
  stale = generation - int(state.best.generation)
  return generation >= generations or (
    patience is not None and stale >= patience
  )


def _spread(
  scored: Scored, members: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
  """Scores of the members in their slots; NaN in the slots left empty."""
  fitness = np.full((slots,), np.nan, np.float32)
  task_scores = np.full(
    (slots, scored.task_scores.shape[1]), np.nan, np.float32
  )
  fitness[members], task_scores[members] = scored.fitness, scored.task_scores
  return fitness, task_scores


def _check_alive(scored: Scored) -> None:
  if np.isnan(scored.fitness).all():
    raise EvolutionError(
      f'None of the {len(scored.fitness)} members of the initial population '
      f'could be scored; the first because: {scored.reasons[0]}. Check the '
      'model folder, the adapters and the type of the activations.'
    )


def _first_generation(state, members, scored) -> Generation:
  proposal = lineage.Proposal(
    ids=members,
    parents=np.full((len(members), 2), lineage.NOBODY, np.int32),
    operator=np.full((len(members),), lineage.NOBODY, np.int32),
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
