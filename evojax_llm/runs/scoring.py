"""Scores of a model and its adapters, for JSON and as a table."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from evojax_llm.fitness import intervals
from evojax_llm.runs import report
from evojax_llm.tasks.scorers.registry import scorer_of


def results(
  names: Sequence[str], tasks: Sequence[Any], scores: Any, per_item: bool
) -> list[dict[str, Any]]:
  """Returns the scores of M members as JSON types.

  Args:
    names: of the members.
    tasks: K tasks.
    scores: of an evaluator.
    per_item: with what each of them did on each item.
  """
  scorers = [scorer_of(task) for task in tasks]
  failed = np.isnan(scores.task_scores).any(axis=1)
  return [
    {
      'name': name,
      **({'failed': scores.reasons[m]} if failed[m] else {}),
      'tasks': {
        task.name: _result(
          scorers[k], scores.tasks[k], m, scores.task_scores[m, k], per_item
        )
        for k, task in enumerate(tasks)
      },
    }
    for m, name in enumerate(names)
  ]


def _result(
  scorer: Any, result: Any, member: int, score: float, per_item: bool
) -> dict[str, Any]:
  """What a member did on a task."""
  total, values = len(result.ids), result.values[member]
  interval = None
  if math.isfinite(score):
    score = float(score)
    if scorer.binary:
      correct = int(result.correct[member].sum())
      score = correct / total
      interval = intervals.wilson_interval(correct, total)
    elif not scorer.corpus:
      interval = intervals.mean_interval(values)
  summary = {
    'metric': scorer.metric,
    'score': score if math.isfinite(score) else None,
    **({'infinite': True} if math.isinf(score) else {}),
    'interval': interval,
    'n': total,
  }
  if not per_item:
    return summary
  items = []
  for i, name in enumerate(result.ids):
    item = {'id': name, 'prediction': result.predictions[member][i]}
    if scorer.binary:
      item['correct'] = bool(result.correct[member, i])
    else:
      item['value'] = float(values[i]) if math.isfinite(values[i]) else None
    if result.loglikelihoods is not None:
      item['loglikelihoods'] = {
        key: value if math.isfinite(value) else None
        for key, value in result.loglikelihoods[member][i].items()
      }
    items.append(item)
  return summary | {'items': items}


def table(
  results: Sequence[Mapping[str, Any]], percent: Mapping[str, bool]
) -> str:
  """Returns a Markdown table of members by tasks with 95 % intervals.

  Args:
    results: of `results`.
    percent: by task, whether its score is a share, shown in percent; there is
      a mean where all are.
  """
  tasks = results[0]['tasks'].items()
  with_mean = len(tasks) > 1 and all(percent.values())
  lines = [['member', *(f'{name} (n={task["n"]})' for name, task in tasks)]]
  lines[0] += ['mean'] if with_mean else []
  failures = ''
  for result in results:
    cells = [result['name']]
    if 'failed' in result:
      cells += ['failed'] * (len(lines[0]) - 1)
      failures += f'\n{result["name"]} failed: {result["failed"]}'
    else:
      scores = [task['score'] for task in result['tasks'].values()]
      cells += [_cell(t, percent[name]) for name, t in result['tasks'].items()]
      if with_mean:
        cells.append(report.number(sum(scores) / len(scores), percent=True))
    lines.append(cells)
  return report.aligned(lines) + failures


def _cell(task: Mapping[str, Any], percent: bool) -> str:
  score = report.shown({**task, 'percent': percent})
  if task['interval'] is None:
    return score
  low, high = (report.number(end, percent) for end in task['interval'])
  return f'{score} [{low}, {high}]'
