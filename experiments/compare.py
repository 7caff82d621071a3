r"""Compares searches with each other and with plain baselines.

  python -m experiments.compare --seeds=5 --draws=3 --out=runs/compare
  python -m experiments.compare --configs=experiments/genome/config.py:genome,\
experiments/coefficients/config.py --evaluations=260 --tasks=mixed --out=DIR

Every search runs once for each seed and each draw of dev items, in one process
that compiles once. A search ends with the first generation in which it has
scored --evaluations members or more. Its best member by dev, and nothing else,
is scored on test. The first configuration gives model, experts and tasks.

Writes comparison.json and comparison.md.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import app
from absl import flags

from experiments import command
from experiments import problem as problem_lib

_CONFIGS = flags.DEFINE_list(
  'configs',
  [
    'experiments/pocket/config.py',
    'experiments/pocket/config.py:adapters',
    'experiments/model_swarms/config.py',
    'experiments/coefficients/config.py:cma_es',
    'experiments/coefficients/config.py:random_search',
  ],
  'Configuration files, each with an argument after a colon or without.',
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of each search.', 1)
_DRAWS = flags.DEFINE_integer('draws', 3, 'Draws of dev items.', 1)
_EVALUATIONS = flags.DEFINE_integer(
  'evaluations', 200, 'Members that a search may score.', 1
)
_TASKS = flags.DEFINE_list('tasks', None, "In place of the configuration's.")
_DEV_LIMIT = flags.DEFINE_integer(
  'dev_limit', None, "Dev items of a task, in place of the configuration's."
)
_TEST_LIMIT = flags.DEFINE_integer('test_limit', None, 'Test items of a task.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write, new.', required=True)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  configs = {}
  for source in _CONFIGS.value:
    config = _read_config(source)
    if config.name in configs:
      raise command.CommandError(f'--configs names {config.name!r} twice.')
    configs[config.name] = config
  first = next(iter(configs.values()))
  files = problem_lib.locate(first)
  out = pathlib.Path(_OUT.value)
  if out.exists() and any(out.iterdir()):
    raise command.CommandError(f'--out={out} is not empty; name a new folder.')

  import jax
  import numpy as np

  from evojax_llm import baselines
  from evojax_llm import evolution
  from evojax_llm import record
  from evojax_llm.gemma import peft
  from evojax_llm.population import stack

  base_problem = problem_lib.load(first, files)
  evaluator = problem_lib.make_evaluator(first, base_problem)
  experts = base_problem.experts
  adapters = peft.load_adapters(files.adapters, base_problem.config)
  out.mkdir(parents=True, exist_ok=True)
  rows: list[dict[str, Any]] = []
  ledger = evaluator.ledger
  start = time.perf_counter()

  def read_test(space: Any, population: Any) -> list[list[float]]:
    scores = evaluator.evaluate(space, population, split='test')
    return scores.task_scores.tolist()

  def add(name, draw, seed, evaluations, dev, test, seconds=None):
    rows.append(
      {
        'name': name,
        'draw': draw,
        'seed': seed,
        'evaluations': evaluations,
        'dev': float(evaluator.objective(np.asarray([dev]))[0]),
        'test': float(evaluator.objective(np.asarray([test]))[0]),
        'test_by_task': dict(zip(base_problem.task_names, test, strict=True)),
        'seconds': seconds,
      }
    )
    row = rows[-1]
    command.say(
      f'{time.perf_counter() - start:6.0f} s  draw {draw} seed {seed} {name}: '
      f'dev {100 * row["dev"]:.1f} test {100 * row["test"]:.1f}'
    )

  for draw in range(_DRAWS.value):
    evaluator = evaluator.redraw(draw)
    if evaluator.objective.needs_experts:
      scores = evaluator.evaluate(experts, experts.experts())
      evaluator.normalise_by(scores.task_scores)

    def score_mixes(mixes, evaluator=evaluator):
      mixed = baselines.mix_experts(experts, mixes)
      return evaluator.evaluate(experts, mixed)

    chosen = baselines.choose_baselines(experts.names, score_mixes)
    tests = read_test(
      experts,
      baselines.mix_experts(experts, [b.mix for b in chosen]),
    )
    for baseline, test in zip(chosen, tests, strict=True):
      dev = baseline.task_scores.tolist()
      add(baseline.name, draw, None, baseline.evaluations, dev, test)

    for name, config in configs.items():
      _, space = problem_lib.make_space(config, adapters, base_problem.params)
      problem = dataclasses.replace(base_problem, space=space)
      strategy = problem_lib.make_strategy(config, problem)
      for seed in range(_SEEDS.value):
        initial = space.initial(
          config.initial, config.strategy.population, jax.random.key(seed)
        )
        before, began = dict(ledger.seconds), time.perf_counter()

        def score(population, members, evaluator=evaluator, space=space):
          return evaluator.evaluate(space, population, members)

        for state, _ in evolution.evolve(
          strategy,
          strategy.default_params,
          score,
          initial.population,
          seed=seed,
          generations=sys.maxsize,
        ):
          if int(state.evaluations) >= _EVALUATIONS.value:
            break
        seconds = {
          part: round(spent - before.get(part, 0.0), 3)
          for part, spent in ledger.seconds.items()
        }
        seconds['all'] = round(time.perf_counter() - began, 3)
        test = read_test(space, stack.stack([state.best.genome]))[0]
        dev = state.best.task_scores.tolist()
        add(name, draw, seed, int(state.evaluations), dev, test, seconds)

  summary = {
    'command': ' '.join(['python -m experiments.compare', *sys.argv[1:]]),
    'tasks': base_problem.task_names,
    'dev_limit': first.dev_limit,
    'rows': rows,
  }
  record.write_json(out / 'comparison.json', summary)
  text = table(rows, base_problem.task_names)
  record.write_text(out / 'comparison.md', text + '\n')
  print(text)


def _read_config(source: str) -> Any:
  """A configuration from 'file' or 'file:argument', with our overrides."""
  path, _, argument = source.partition(':')
  if not pathlib.Path(path).is_file():
    raise command.CommandError(f'--configs names {path}, which is no file.')
  spec = importlib.util.spec_from_file_location('_compared_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    config = module.get_config(*([argument] if argument else []))
  except ValueError as error:
    raise command.CommandError(f'--configs={source}: {error}') from error
  if _TASKS.value:
    config.tasks = ','.join(_TASKS.value)
  if _DEV_LIMIT.value:
    config.dev_limit = _DEV_LIMIT.value
  if _TEST_LIMIT.value:
    config.test_limit = _TEST_LIMIT.value
  return config


def table(rows: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
  """Mean and spread of each search or baseline, as Markdown, in percent.

  `against best expert` and `against scaled average` are means of paired
  differences on test: the same draw, and with it the same choice by dev.
  """
  named: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    named.setdefault(row['name'], []).append(row)
  levels = {
    name: {row['draw']: row['test'] for row in named[name]}
    for name in ('best expert', 'scaled average')
  }
  head = ['', 'runs', 'evaluations', 'dev', 'test', 'sd', 'lowest', 'highest']
  head += [f'against {name}' for name in levels] + [*tasks, 'seconds']
  lines = [head, ['-'] * len(head)]
  for name, found in named.items():
    test = [100 * row['test'] for row in found]
    times = [row['seconds']['all'] for row in found if row['seconds']]
    cells = [
      name,
      str(len(found)),
      f'{statistics.mean(row["evaluations"] for row in found):.0f}',
      f'{100 * statistics.mean(row["dev"] for row in found):.1f}',
      f'**{statistics.mean(test):.1f}**',
      f'{statistics.stdev(test):.1f}' if len(test) > 1 else '-',
      f'{min(test):.1f}',
      f'{max(test):.1f}',
    ]
    for level in levels.values():
      gain = [100 * (row['test'] - level[row['draw']]) for row in found]
      cells.append(f'{statistics.mean(gain):+.1f}')
    for task in tasks:
      shares = [row['test_by_task'][task] for row in found]
      cells.append(f'{100 * statistics.mean(shares):.1f}')
    cells.append(f'{statistics.median(times):.1f}' if times else '-')
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


if __name__ == '__main__':
  app.run(main)
