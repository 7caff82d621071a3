"""The state of a run: one pytree that holds all it needs to go on.

Whatever is not in it is lost with the process; see `checkpoint` for how it is
kept, and `evolution` for what makes the next one of it.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.strategies import base


@flax.struct.dataclass
class RunState:
  """All that a run needs to go on; nothing else matters."""

  strategy: Any  # the strategy's state: population, ids, fitness, memory
  seed: jax.Array  # () u32; every key is folded from it
  # () i32, generations that are over; the initial population is generation 0.
  generation: jax.Array
  evaluations: jax.Array  # () i32, members scored so far


@dataclasses.dataclass(frozen=True)
class Member:
  """A member, such as the best of a search; on the host but for its genome."""

  genome: Any
  id: int
  fitness: np.ndarray  # f32
  task_scores: np.ndarray  # (K,) f32, as the tasks have them
  generation: int  # when it was born


def best_of(state: RunState, maximise: Sequence[bool] | None = None) -> Member:
  """Returns the best member of all time; `maximise` as in `evolve`."""
  memory = state.strategy.memory
  known = sharding.to_host(memory.replace(best=None, worst=None, personal=None))
  return Member(
    genome=memory.best,
    id=int(known.best_id),
    fitness=known.best_fitness,
    task_scores=oriented(known.best_tasks, maximise),
    generation=int(known.best_generation),
  )


def oriented(
  task_scores: np.ndarray, maximise: Sequence[bool] | None
) -> np.ndarray:
  """Turns task scores (..., K) into fitness on each task, and back.

  `maximise` says K times whether more of it is better; None where it is of all.
  """
  if maximise is None:
    return task_scores
  return np.where(np.asarray(maximise, bool), task_scores, -task_scores)


def begin(
  strategy: base.Strategy,
  params: Any,
  seed: int,
  population: Any,
  scores: base.Scores,
  evaluations: int,
) -> RunState:
  """Makes the state after generation 0 of P members and their scores.

  Can be traced; `jax.eval_shape` of it tells what a checkpoint must hold.
  """
  seed, zero = jnp.uint32(seed), jnp.int32(0)
  key = keys.key_for(jax.random.key(seed), zero, lineage.NO_MEMBER, 'init')
  return RunState(
    strategy=strategy.init(key, population, scores, params),
    seed=seed,
    generation=zero,
    evaluations=jnp.int32(evaluations),
  )


def abstract_state(
  strategy: base.Strategy,
  params: Any,
  population: Any,
  num_tasks: int,
  num_items: int = 1,
) -> RunState:
  """Returns shapes and dtypes of a run's state with K tasks and I items in all.

  Takes a population (P, ...), or its shapes; scores no member.
  """

  def scores(*shape):
    shape = stack.size(population), *shape
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  items = scores(num_items) if strategy.sees == 'items' else None
  return jax.eval_shape(
    lambda *args: begin(strategy, params, 0, *args, 0),
    population,
    base.Scores(scores(), scores(num_tasks), items),
  )


@dataclasses.dataclass(frozen=True)
class Members:
  """Members picked out of a state."""

  ids: list[int]  # M different ids
  fitness: np.ndarray  # (M,) f32, none of them NaN
  population: Any  # their genomes, leaves (M, ...)


def best_members(
  state: Any,
  count: int,
  keep_best: bool = True,
  chosen: int | None = None,
) -> Members:
  """Returns the best members that a state holds, alive or remembered.

  Args:
    state: a `RunState`, or one as nested dicts, as checkpoints are read.
    count: M at most; fewer where the state holds fewer that could be scored.
    keep_best: see `strategies.base.Strategy`; without, members that are only
      remembered are left out, unless all that are alive failed.
    chosen: id of a member that comes first, whatever its fitness.

  Returns:
    The members by fitness, of equals the elder first.
  """
  tree = flax.serialization.to_state_dict(state)['strategy']
  memory = tree['memory']
  best = jax.tree.map(lambda leaf: leaf[None], memory['best'])
  alive = tree['population'], tree['ids'], tree['fitness']
  sources = [(best, memory['best_id'], memory['best_fitness']), alive]
  if memory.get('personal') is not None:
    names = 'personal', 'personal_ids', 'personal_fitness'
    sources.append(tuple(memory[name] for name in names))
  if not keep_best and np.isfinite(tree['fitness']).any():
    sources = [alive]
  held: dict[int, tuple[np.float32, Any]] = {}
  for population, ids, fitness in sources:
    ids, fitness = np.atleast_1d(ids), np.atleast_1d(fitness)
    for row in np.flatnonzero(np.isfinite(fitness) & (ids >= 0)):
      where = population, int(row)
      held.setdefault(int(ids[row]), (fitness[row], where))
  ranked = sorted(held, key=lambda id_: (id_ != chosen, -held[id_][0], id_))
  ranked = ranked[:count]
  genomes = [
    stack.pick(population, row)
    for population, row in (held[member][1] for member in ranked)
  ]
  fitness = np.asarray([held[member][0] for member in ranked], np.float32)
  return Members(ranked, fitness, stack.stack(genomes))
