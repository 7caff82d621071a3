"""What a search has to beat: the base, its experts, and plain mixes of them.

Convex merging can only dilute what the experts learnt, so an average whose
second factors B are scaled up is often stronger than the best expert (task
arithmetic, arXiv 2212.04089, scales a sum in the same way). The soup is the
average of the best few experts: as the greedy one of arXiv 2203.05482 it takes
them in the order of their fitness, but all its sizes are scored together. What
is best is chosen on `dev` alone. Beside them stands an adapter that learns the
same items by gradients (see `fine_tuning`).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
import shutil
from typing import Any
from typing import NamedTuple

import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.models.errors import ModelError
from evojax_llm.runs import errors
from evojax_llm.runs import fine_tuning
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.preparation import Prepared

AVERAGE_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0)
EXPERT_FACTORS = (0.5, 1.5, 2.0, 3.0)

_FILE, _ITEMS, _EXPERTS = 'baselines.json', 'baseline_items', 'experts.json'
# What a run with the same baselines takes over.
_SHARED = (_EXPERTS, 'base_dtype.json', _FILE)


@dataclasses.dataclass(frozen=True)
class Mix:
  """A mix of N experts, as `mix` of a genome space makes it."""

  weights: tuple[float, ...]  # (N,) of the experts
  factor: float = 1.0  # scales what they change; 0 gives the base


class Baseline(NamedTuple):
  """A row of the final table."""

  name: str
  detail: str  # what was chosen, in words
  mix: Mix
  task_scores: np.ndarray  # (K,) on `dev`
  evaluations: int  # members scored on `dev` to choose it


class Baselines(NamedTuple):
  """What was scored before the search."""

  rows: list[dict[str, Any]]  # of the table, without their test scores
  expert_scores: np.ndarray  # (N, K) f32 task scores of the experts on `dev`
  note: str = ''  # why there is no row of fine-tuning


def mix_experts(space: Any, mixes: Sequence[Mix]) -> Any:
  """Returns genomes (C, ...) of C mixes of the experts of a space."""
  return space.mix(
    np.asarray([mix.weights for mix in mixes], np.float64),
    np.asarray([mix.factor for mix in mixes], np.float64),
  )


def choose_baselines(
  names: Sequence[str], score: Callable[[Sequence[Mix]], Any]
) -> list[Baseline]:
  """Scores the experts and their plain mixes on `dev`; chooses the baselines.

  `score` scores C mixes on `dev` and returns an `Evaluation` of C members.

  Returns:
    base, best expert, average, soup, scaled average and scaled best expert.
  """
  n = len(names)
  even = (1.0 / n,) * n
  averages = [Mix(even, f) for f in (1.0, *AVERAGE_FACTORS)]
  first = [Mix(even, 0.0), *(single(i, n) for i in range(n)), *averages]
  scores = score(first)
  expert = 1 + _best(scores.fitness[1 : 1 + n])
  average = 1 + n + _best(scores.fitness[1 + n :])
  soups = _soups(scores.fitness[1 : 1 + n])
  scaled = [Mix(first[expert].weights, f) for f in EXPERT_FACTORS]
  second = score(scaled + soups)
  mixes = first + scaled + soups
  fitness = np.concatenate([scores.fitness, second.fitness])
  task_scores = np.concatenate([scores.task_scores, second.task_scores])

  def row(name, detail, index, evaluations):
    return Baseline(name, detail, mixes[index], task_scores[index], evaluations)

  def choose(indices):
    return indices[_best(fitness[indices])]

  # One expert, all of them and a factor of 1 have been scored before.
  behind = len(first) + len(scaled)
  soup = choose([expert, 1 + n, *range(behind, len(mixes))])
  rescaled = choose([expert, *range(len(first), behind)])
  name, size = names[expert - 1], np.count_nonzero(mixes[soup].weights)
  factor, of_expert = first[average].factor, mixes[rescaled].factor
  of_expert = f'{name}, x {of_expert:g}'
  return [
    row('base', '', 0, 1),
    row('best expert', name, expert, n),
    row('average', '', 1 + n, 1),
    row('soup', f'best {size}', soup, n + 1 + len(soups)),
    row('scaled average', f'x {factor:g}', average, len(averages)),
    row('scaled best expert', of_expert, rescaled, n + len(scaled)),
  ]


def mixes_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mix]:
  """Returns the mixes that rows of baselines.json are, by name."""
  return {r['name']: Mix(**r['mix']) for r in rows if 'mix' in r}


def single(index: int, count: int) -> Mix:
  """Returns the mix that is one of `count` experts."""
  return Mix(tuple(float(i == index) for i in range(count)))


def _soups(fitness: np.ndarray) -> list[Mix]:
  """Averages of the best 2, 3, ... experts by fitness (N,), but not of all."""
  n, mixes = len(fitness), []
  alive = np.isfinite(fitness)
  order = np.argsort(np.where(alive, -fitness, np.inf), kind='stable')
  order = order[: alive.sum()]
  for size in range(2, min(len(order), n - 1) + 1):
    weights = np.zeros(n)
    weights[order[:size]] = 1.0 / size
    mixes.append(Mix(tuple(weights.tolist())))
  return mixes


def _best(fitness: np.ndarray) -> int:
  return int(np.argmax(np.where(np.isfinite(fitness), fitness, -np.inf)))


def normalise(run: record.RunFolder, prepared: Prepared) -> None:
  """Scores the experts for an objective that is normalised by them.

  Raises:
    UserError: the objective cannot be normalised by these experts.
  """
  evaluator, space = prepared.evaluator, prepared.setup.experts
  if not evaluator.objective.needs_experts:
    return
  apart = setup_lib.of_experts(evaluator, prepared.setup)

  def read(kept):
    shape = len(space.names), len(evaluator.tasks)
    return np.asarray(kept, np.float64).reshape(shape)

  def make():
    return setup_lib.score_few(apart, space, space.experts()).task_scores

  scores = record.kept(run.path / _EXPERTS, read, make)
  with errors.as_user_error(ValueError, what='config.objective'):
    evaluator.normalise_by(scores)


def score_baselines(
  run: record.RunFolder, prepared: Prepared, bar: progress.Progress
) -> Baselines:
  """Scores base, experts and their plain mixes on `dev`.

  baselines.json keeps the result, baseline_items/ what the base and the experts
  did on every item.
  """
  names = list(prepared.setup.experts.names)

  def read(kept):
    scores = np.asarray([kept['experts'][n] for n in names], np.float32)
    for row in kept['rows']:
      row['name'], row['detail'], row['evaluations']
      report.shown(row['dev']['fitness'])
    mixes_of(kept['rows'])
    try:
      fine_tuning.read_row(run.path, kept['rows'], prepared.setup.experts)
    except ModelError as error:
      raise ValueError(str(error)) from error
    if expert_results(run, range(len(names))) is None:
      raise ValueError(f'{_ITEMS} lacks answers of the experts')
    return Baselines(kept['rows'], scores, kept.get('note', ''))

  make = functools.partial(_scored, run, prepared, bar)
  return record.kept(run.path / _FILE, read, make)


def _scored(run, prepared, bar) -> dict[str, Any]:
  evaluator = setup_lib.of_experts(prepared.evaluator, prepared.setup)
  space = prepared.setup.experts
  results, rows, names = [], [], space.names

  def score(mixes):
    bar.begin(len(mixes), 'baselines')
    mixed = mix_experts(space, mixes)
    results.append(setup_lib.score_few(evaluator, space, mixed, bar.update))
    return results[-1]

  for name, detail, mix, task_scores, count in choose_baselines(names, score):
    dev = report.of_split(evaluator, 'dev', task_scores)
    row = dict(name=name, detail=detail, mix=dataclasses.asdict(mix))
    rows.append(row | dict(evaluations=count, dev=dev))
    detail = f' ({detail})' if detail else ''
    bar.line(f'{name}{detail}: {report.shown(dev["fitness"], " %")} on dev')
  note = ''
  if fine_tuning.wanted(prepared.config):
    steps = prepared.config.fine_tuning.steps
    bar.line(f'{report.FINE_TUNED}: {steps} steps at most')
    found = fine_tuning.tune(run, prepared)
    if isinstance(found, str):
      note = f'{report.FINE_TUNED}: {found}.'
      bar.line(note)
    else:
      genome = fine_tuning.read(run.path, space)
      dev = setup_lib.score_few(evaluator, space, genome).task_scores[0]
      dev = report.of_split(evaluator, 'dev', dev)
      row = dict(name=report.FINE_TUNED, detail=found.detail, evaluations=1)
      rows.append(row | dict(tokens=found.tokens, dev=dev))
      score = report.shown(dev['fitness'], ' %')
      bar.line(f'{report.FINE_TUNED} ({found.detail}): {score} on dev')
  first = results[0]
  _log(run).append(0, range(len(first.fitness)), first)
  experts = slice(1, 1 + len(names))
  return {
    'rows': rows,
    'note': note,
    'experts': dict(zip(names, first.task_scores[experts], strict=True)),
    'fitness': dict(zip(names, first.fitness[experts], strict=True)),
  }


def expert_results(
  run: record.RunFolder, experts: Sequence[int]
) -> list[TaskItems] | None:
  """Returns what these experts did on the dev items, task by task."""
  # The base is the first of those scored.
  return ensembles.gather(_log(run).read(), [1 + n for n in experts])


def item_results(run: record.RunFolder) -> list[TaskItems]:
  """Returns what base, experts and averages of them did, task by task."""
  return next(_log(run).read()).tasks


def share(first: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies what was scored before the search to a run with these baselines."""
  if not (first / _FILE).exists():
    raise errors.UserError(f'{first} has no baselines to share.')
  if (folder / _FILE).exists():
    return
  for name in (_ITEMS, fine_tuning.FOLDER):
    if (first / name).exists():
      shutil.copytree(first / name, folder / name, dirs_exist_ok=True)
  for name in _SHARED:
    if (first / name).exists():
      record.write_bytes(folder / name, (first / name).read_bytes())


def _log(run: record.RunFolder) -> ItemLog:
  return ItemLog(run.path / _ITEMS)
