"""The state of a run: one pytree that holds all it needs to go on.

Whatever is not in it is lost with the process; see `checkpoint` for how it is
kept, and `evolution` for what makes the next one of it.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Protocol

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies.base import negate


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


def begin(
  strategy: Any,
  params: Any,
  seed: int,
  population: Any,
  fitness: jax.Array,
  task_scores: jax.Array,
  maximise: Sequence[bool] | None = None,
) -> RunState:
  """The state after generation 0: P members and their scores.

  Can be traced; `jax.eval_shape` of it tells what a checkpoint must hold.

  Args:
    strategy: see `evolution.evolve`.
    params: see `evolution.evolve`.
    seed: see `evolution.evolve`.
    population: leaves (P, ...).
    fitness: (P,) f32.
    task_scores: (P, K) f32.
    maximise: see `evolution.evolve`.
  """
  members, tasks = task_scores.shape
  seed = jnp.uint32(seed)
  zero = jnp.int32(0)
  nobody = Best(
    genome=jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), population),
    id=jnp.int32(lineage.NO_MEMBER),
    fitness=jnp.float32(-jnp.inf),
    task_scores=jnp.full((tasks,), jnp.nan, jnp.float32),
    generation=zero,
  )
  ids = jnp.arange(members, dtype=jnp.int32)
  best = succeed(nobody, population, ids, fitness, task_scores, zero)
  key = keys.key_for(jax.random.key(seed), zero, lineage.NO_MEMBER, 'init')
  return RunState(
    strategy=strategy.init(
      key,
      population,
      negate(fitness),
      params,
      objectives_of(task_scores, maximise),
    ),
    best=best,
    seed=seed,
    generation=zero,
    evaluations=jnp.int32(members),
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
def succeed(best, population, ids, fitness, task_scores, generation) -> Best:
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


@dataclasses.dataclass(frozen=True)
class Members:
  """Members picked out of a state.

  Attributes:
    ids: M different ids.
    fitness: (M,) f32, none of them NaN.
    population: their genomes, leaves (M, ...).
  """

  ids: list[int]
  fitness: np.ndarray
  population: Any


def best_members(state: Any, count: int, keep_best: bool = True) -> Members:
  """The best members that a state still holds: alive or remembered.

  Args:
    state: a `RunState`, or one as nested dicts, as checkpoints are read.
    count: M at most; fewer where the state holds fewer that could be scored.
    keep_best: see `strategies.base.Strategy`; without, who is only remembered
      is left out, unless nobody alive could be scored.

  Returns:
    The members by fitness, of equals the elder first.
  """
  tree = flax.serialization.to_state_dict(state)
  inner, best = tree['strategy'], tree['best']
  memory = inner['memory']
  alone = jax.tree.map(lambda leaf: leaf[None], best['genome'])
  alive = (inner['population'], inner['ids'], inner['fitness'])
  sources = [
    (alone, best['id'], best['fitness']),
    alive,
    (
      memory.get('personal'),
      memory.get('personal_ids'),
      memory.get('personal_fitness'),
    ),
  ]
  if not keep_best and np.isfinite(inner['fitness']).any():
    sources = [alive]
  held: dict[int, tuple[np.float32, Any, int]] = {}
  for population, ids, fitness in sources:
    if population is None:
      continue
    ids, fitness = np.atleast_1d(ids), np.atleast_1d(fitness)
    for row in np.flatnonzero(np.isfinite(fitness) & (ids >= 0)):
      held.setdefault(int(ids[row]), (fitness[row], population, int(row)))
  ranked = sorted(held, key=lambda member: (-held[member][0], member))[:count]
  genomes = [
    jax.tree.map(lambda leaf, row=row: leaf[row], population)
    for _, population, row in (held[member] for member in ranked)
  ]
  return Members(
    ids=ranked,
    fitness=np.asarray([held[member][0] for member in ranked], np.float32),
    population=stack.stack(genomes),
  )


def objectives_of(
  task_scores: jax.Array, maximise: Sequence[bool] | None
) -> jax.Array:
  """Task scores (M, K) of which more is better.

  Args:
    task_scores: (M, K) f32.
    maximise: K times whether it is so already; None where it is of all.
  """
  if maximise is None:
    return jnp.asarray(task_scores)
  return jnp.where(np.asarray(maximise, bool), task_scores, -task_scores)


def rescore(
  state: RunState, score: Score, maximise: Sequence[bool] | None = None
) -> RunState:
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
  ids = jnp.concatenate([jnp.atleast_1d(i) for i in ids])
  # A population that grows has places where nobody is yet.
  members = np.flatnonzero(np.asarray(ids) >= 0)
  fitness, task_scores = spread(score(everyone, members), members, ids.shape[0])
  return _rescored(
    state,
    everyone,
    ids,
    jnp.asarray(fitness),
    jnp.asarray(task_scores),
    objectives_of(task_scores, maximise),
    jnp.int32(len(members)),
  )


def spread(
  scored: Scored, members: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
  """Fitness (slots,) and task scores (slots, K); NaN in the slots left empty.

  Args:
    scored: scores of M members.
    members: (M,) their slots.
    slots: number of slots.
  """
  fitness = np.full((slots,), np.nan, np.float32)
  task_scores = np.full(
    (slots, scored.task_scores.shape[1]), np.nan, np.float32
  )
  fitness[members], task_scores[members] = scored.fitness, scored.task_scores
  return fitness, task_scores


@jax.jit
def _rescored(
  state, everyone, ids, fitness, task_scores, objectives, evaluations
) -> RunState:
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
  inner = inner.replace(fitness=fitness[:alive], memory=memory)
  if inner.objectives is not None:
    inner = inner.replace(objectives=objectives[:alive])
  return state.replace(
    strategy=inner,
    best=state.best.replace(
      genome=at(best),
      id=ids[best],
      fitness=jnp.nan_to_num(fitness[best], nan=-jnp.inf),
      task_scores=task_scores[best],
      generation=jnp.where(same, state.best.generation, state.generation),
    ),
    evaluations=state.evaluations + evaluations,
  )
