"""One process of `benchmark_scale`: a population on the devices it has."""

import pathlib
import tempfile
import time
from typing import Any

import jax

from evojax_llm import systems
from evojax_llm.engine import groups
from evojax_llm.engine.collectives import collectives
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.population import stack
from evojax_llm.runs import checkpoint
from evojax_llm.runs import evolution
from evojax_llm.runs import preparation
from evojax_llm.strategies import base
from evojax_llm.strategies import lowered


def measure(
  population: int,
  repeats: int,
  dev_limit: int,
  *,
  preset: str,
  tasks: str,
  where: str = 'auto',
) -> dict[str, Any]:
  """Times generations of GENOME+ on the pocket model.

  Args:
    population: P.
    repeats: timed generations of each kind, succession and variation.
    dev_limit: dev items of each task.
    preset: configuration.
    tasks: in place of its own.
    where: execution.population of the configuration.

  Returns:
    devices; members that a generation scores, and seconds of one, the best of
      the repeats; seconds and bytes of a checkpoint; and by program what it
      sends: {kind: (number, bytes)}, without those that send nothing.
  """
  config = systems.load(preset)
  config.strategy.population = population
  config.dev_limit, config.tasks = dev_limit, tasks
  config.execution.population = where
  prepared = preparation.prepare(config)
  space, seen = prepared.setup.space, []

  def score(members: Any, which: Any) -> Evaluation:
    seen.append(len(which))
    return prepared.evaluator.evaluate(space, members, which)

  with prepared.at_home():
    search = evolution.evolve(
      prepared.strategy,
      space,
      score,
      population=prepared.initial().population,
      params=prepared.params,
      generations=2 + 2 * repeats,
    )
    seconds, state = [], None
    before = time.perf_counter()
    for last, _ in search:
      state = last
      now = time.perf_counter()
      seconds.append(now - before)
      before = now
    # The initial population, and two that compile.
    timed, counts = seconds[3:], seen[3:]
    best = [min(timed[kind::2]) for kind in range(2)]
    with tempfile.TemporaryDirectory() as folder:
      kept = checkpoint.Checkpoints(folder)
      before = time.perf_counter()
      kept.save(0, state)
      kept.close()
      saved = time.perf_counter() - before
      files = [f for f in pathlib.Path(folder).rglob('*') if f.is_file()]
      size = sum(file.stat().st_size for file in files)
    sent = _sent(prepared, state.strategy)
  return {
    'devices': jax.device_count(),
    'population': population,
    'members': max(counts[:2]),
    'seconds': sum(best) / 2,
    'checkpoint_seconds': saved,
    'checkpoint_bytes': size,
    'state_bytes': groups.num_bytes(state),
    'genome_bytes': groups.num_bytes(state.strategy.population) // population,
    'sent': sent,
  }


def _sent(prepared: Any, state: Any) -> dict[str, Any]:
  """Returns what programs send, of scoring and of the strategy."""
  strategy, params = prepared.strategy, prepared.params
  members, state = strategy.ask(jax.random.key(0), state, params)
  count = stack.size(members)
  tasks = jax.numpy.zeros((count, len(prepared.setup.tasks)))
  given = strategy, state, members, base.Scores(tasks[:, 0], tasks), params
  programs = [
    *prepared.evaluator.runtime.programs,
    *((name, low.compile()) for name, low in lowered.lowered(*given).items()),
  ]
  found: dict[str, Any] = {}
  for name, program in programs:
    sends = collectives(program)
    # Of length buckets the one that sends the most.
    known = found.get(name, {})
    if sum(size for _, size in sends.values()) > sum(
      size for _, size in known.values()
    ):
      found[name] = sends
  return found
