"""What a run has to beat: the base, its experts, and plain mixes of them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import setup as problem_lib
from evojax_llm.tasks.scorers.registry import scorer_of

_FILE, _ITEMS = 'baselines.json', 'baseline_items'


def normalise(
  run: record.RunFolder, evaluator: Any, problem: problem_lib.Problem
) -> None:
  """Scores the experts for an objective that is normalised by them.

  Their scores are kept in experts.json, which a resumed run reads.

  Raises:
    UserError: the objective cannot be normalised by these experts.
  """
  if not evaluator.objective.needs_experts:
    return
  path = run.path / 'experts.json'
  if path.exists():
    found = record.read_json(path)
  else:
    experts = problem.experts.experts()
    slots = max(stack.size(experts), evaluator.plan.members_per_group)
    members = np.arange(stack.size(experts))
    scores = evaluator.evaluate(
      problem.experts, stack.pad(experts, slots), members, 'dev'
    )
    record.write_json(path, scores.task_scores)
    found = record.read_json(path)
  with errors.asked_for(ValueError, what='config.objective'):
    evaluator.normalise_by(np.asarray(found, np.float64))


@dataclasses.dataclass(frozen=True)
class Rivals:
  """What was scored before the search.

  Attributes:
    rows: the baselines as rows of the table, without their test scores.
    expert_scores: (N, K) f32 task scores of the experts on `dev`.
  """

  rows: list[dict[str, Any]]
  expert_scores: np.ndarray


def score_baselines(
  run: record.RunFolder,
  evaluator: Any,
  problem: problem_lib.Problem,
  bar: progress.Progress,
) -> Rivals:
  """Scores base, experts and their plain mixes on `dev`.

  The result is kept in baselines.json, which a resumed run reads, and what the
  base and the experts did on every item in baseline_items/.
  """
  path = run.path / _FILE
  if not path.exists():
    record.write_json(path, _scored(run, evaluator, problem, bar))
  found = record.read_json(path)
  scores = np.asarray(list(found['experts'].values()), np.float32)
  return Rivals(found['rows'], scores)


def _scored(run, evaluator, problem, bar) -> dict[str, Any]:
  asked = []

  def score(mixes):
    mixed = baselines_lib.mix_experts(problem.experts, mixes)
    # As many slots as a group of the search has, for which there is a program.
    slots = max(len(mixes), evaluator.plan.members_per_group)
    bar.begin(len(mixes), 'baselines')
    scores = evaluator.evaluate(
      problem.experts,
      stack.pad(mixed, slots),
      np.arange(len(mixes)),
      'dev',
      progress=bar.update,
    )
    asked.append(scores)
    return scores

  rows = []
  for baseline in baselines_lib.choose_baselines(problem.experts.names, score):
    dev = summary(evaluator, problem, 'dev', baseline.task_scores)
    rows.append(
      {
        'name': baseline.name,
        'detail': baseline.detail,
        'mix': dataclasses.asdict(baseline.mix),
        'evaluations': baseline.evaluations,
        'dev': dev,
      }
    )
    shown = _shown(dev['fitness'])
    detail = f' ({baseline.detail})' if baseline.detail else ''
    bar.line(f'{baseline.name}{detail}: {shown} on dev')
  first = asked[0]
  _log(run).append(0, range(len(first.fitness)), first)
  names = problem.experts.names
  these = slice(1, 1 + len(names))
  return {
    'rows': rows,
    'experts': dict(zip(names, first.task_scores[these], strict=True)),
    'fitness': dict(zip(names, first.fitness[these], strict=True)),
  }


def expert_results(
  run: record.RunFolder, experts: Sequence[int]
) -> list[TaskItems] | None:
  """What these experts did on the dev items, task by task."""
  # The base is the first of those scored.
  return ensembles.gather(_log(run).read(), [1 + n for n in experts])


def share(first: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies what `score_baselines` found to a run with the same rivals."""
  folder.mkdir(parents=True, exist_ok=True)
  shutil.copytree(first / _ITEMS, folder / _ITEMS, dirs_exist_ok=True)
  shutil.copy(first / _FILE, folder / f'{_FILE}.part')
  os.replace(folder / f'{_FILE}.part', folder / _FILE)


def _log(run: record.RunFolder) -> ItemLog:
  return ItemLog(run.path / _ITEMS)


def _shown(entry: Mapping[str, Any]) -> str:
  if entry['score'] is None:
    return 'failed'
  sign = ' %' if entry['percent'] else ''
  return report.number(entry['score'], entry['percent']) + sign


def summary(
  evaluator: Any,
  problem: problem_lib.Problem,
  split: str,
  task_scores: Any,
) -> dict[str, Any]:
  """Task scores (K,) on a split as the report has them."""
  return report.summarise(
    problem.task_names,
    np.asarray(task_scores),
    [len(items) for items in evaluator.items(split)],
    [scorer_of(task) for task in problem.tasks],
    evaluator.objective,
  )
