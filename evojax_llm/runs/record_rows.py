"""The rows of metrics.jsonl and members.jsonl."""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
from typing import Any

import numpy as np

from evojax_llm.runs.evolution import Generation


def member_rows(
  generation: Generation,
  operator_names: Sequence[str],
  tasks: Sequence[str],
  origins: Sequence[Mapping[str, Any]],
  recipes: Sequence[Any] = (),
  models: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
  """Returns the lines of members.jsonl that a generation of K tasks adds.

  `origins` has `operator`, `parents` and `experts` of the initial population,
  `recipes` what the first members of the generation are, where that is short,
  and `models` the names of those that they are, where they are known.
  """
  rows = []
  for i, member in enumerate(generation.ids):
    row = {'generation': generation.number, 'id': member}
    if generation.number == 0:
      row.update(origins[i])
    else:
      row['operator'] = operator_names[generation.operators[i]]
      row['parents'] = [p for p in generation.parents[i] if p >= 0]
    row['fitness'] = generation.fitness[i]
    row['tasks'] = _by_task(tasks, generation.task_scores[i])
    row['reason'] = generation.reasons[i]
    row |= {'recipe': recipes[i]} if i < len(recipes) else {}
    row |= {'model': models[i]} if i < len(models or ()) else {}
    rows.append(row)
  return rows


def metrics_row(
  generation: Generation,
  tasks: Sequence[str],
  seconds: Mapping[str, float],
  tokens: int = 0,
  monitors: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the line of metrics.jsonl for a generation of K tasks.

  `seconds` is wall time by part, 'checkpoint' that of the generation before;
  `tokens` were read and generated; `monitors` are those of the strategy.
  """
  row = {
    'generation': generation.number,
    'evaluations': generation.evaluations,
    'scored': len(generation.ids),
    'failed': generation.failed,
    'best_id': generation.best_id,
    'best_fitness': generation.best_fitness,
    'best_tasks': _by_task(tasks, generation.best_task_scores),
    'mean_fitness': generation.mean_fitness,
    'tokens': tokens,
    'seconds': {part: round(s, 4) for part, s in seconds.items()},
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  return row | ({'monitors': monitors} if monitors else {})


def lineage_of(
  member: int, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns a member and its ancestors, eldest first, from members.jsonl."""
  by_id = {row['id']: row for row in rows}
  ids, queue = set(), [member]
  while queue:
    current = queue.pop()
    if current not in ids and current in by_id:
      ids.add(current)
      queue += by_id[current]['parents']
  kept = ('id', 'generation', 'operator', 'parents', 'experts', 'fitness')
  return [
    {name: by_id[i][name] for name in kept if name in by_id[i]}
    for i in sorted(ids)
  ]


def _by_task(tasks: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
  return dict(zip(tasks, scores, strict=True))
