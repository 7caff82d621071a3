"""Scores of a model and its adapters, for JSON and as a table."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness import intervals
from evojax_llm.runs import finalists
from evojax_llm.runs import report
from evojax_llm.tasks.scorers.registry import scorer_of


def results(
  names: Sequence[str], tasks: Sequence[Any], scores: Any, per_item: bool
) -> list[dict[str, Any]]:
  """Returns the scores of M members as JSON types, of each item on demand."""
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


def with_vote(
  scores: Any,
  members: Sequence[int],
  rule: str,
  fitness: np.ndarray,
  tasks: Sequence[Any],
) -> Any:
  """Returns an `Evaluation` with what a vote decides as one member more.

  Args:
    scores: of M members, on the dev items of the tasks.
    members: indices of the k members that vote, the best first.
    rule: of `fitness.ensembles`.
    fitness: (k,) f32 of the members that vote.
    tasks: K tasks.
  """
  group = finalists.group_of(scores, members, fitness)
  scorers = [scorer_of(task) for task in tasks]
  decided = ensembles.decide(rule, group, scorers, [t.dev for t in tasks])
  results = []
  for result, stands in zip(
    scores.tasks, ensembles.standing(rule, group, scorers), strict=True
  ):
    columns = range(len(result.ids))
    # Without answers the best member stands.
    slots = [members[0 if stands is None else stands[i]] for i in columns]
    values = result.values[slots, columns]
    added = {'values': np.concatenate([result.values, values[None]])}
    for name in ('predictions', 'loglikelihoods'):
      if (kept := getattr(result, name)) is not None:
        of_member = {slot: kept[slot] for slot in set(slots)}
        stood = [of_member[slot][i] for i, slot in enumerate(slots)]
        added[name] = [*kept, stood]
    results.append(dataclasses.replace(result, **added))
  failed = None if np.isfinite(decided).all() else 'its members failed'
  return dataclasses.replace(
    scores,
    task_scores=np.concatenate([scores.task_scores, decided[None]]),
    tasks=results,
    reasons=[*scores.reasons, failed],
  )


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

  `percent` says by task whether its score is a share; there is a mean where all
  are.
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
      for name, task in result['tasks'].items():
        low, high = task['interval'] or (None, None)
        entry = {**task, 'low': low, 'high': high, 'percent': percent[name]}
        cells.append(report.with_interval(entry))
      if with_mean:
        cells.append(report.number(sum(scores) / len(scores), percent=True))
    lines.append(cells)
  return report.aligned(lines) + failures
