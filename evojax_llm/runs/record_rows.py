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
  further: Sequence[str] = (),
  notes: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
  """Returns the lines of members.jsonl that a generation of K tasks adds.

  `origins` has `operator`, `parents` and `experts` of the initial population,
  `recipes` what the first members of the generation are, where that is short,
  and `notes` what else is said of each slot of the ask.
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
    row |= _by_name(tasks, further, generation.task_scores[i])
    row['reason'] = generation.reasons[i]
    row |= {'recipe': recipes[i]} if i < len(recipes) else {}
    if notes and generation.number:
      row |= notes[generation.slots[i]]
    rows.append(row)
  return rows


def metrics_row(
  generation: Generation,
  tasks: Sequence[str],
  seconds: Mapping[str, float],
  tokens: int = 0,
  monitors: Mapping[str, Any] | None = None,
  further: Sequence[str] = (),
  gradient_tokens: int = 0,
) -> dict[str, Any]:
  """Returns the line of metrics.jsonl for a generation of K tasks.

  `seconds` is wall time by part, 'checkpoint' that of the generation before;
  `tokens` were read and generated, `gradient_tokens` among them, which count
  three times what gradient steps read; `monitors` are those of the strategy.
  """
  row = {
    'generation': generation.number,
    'evaluations': generation.evaluations,
    'scored': len(generation.ids),
    'failed': generation.failed,
    'best_id': generation.best_id,
    'best_fitness': generation.best_fitness,
    **_by_name(tasks, further, generation.best_task_scores, 'best_'),
    'mean_fitness': generation.mean_fitness,
    'tokens': tokens,
    'seconds': {part: round(s, 4) for part, s in seconds.items()},
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  row |= {'gradient_tokens': gradient_tokens} if gradient_tokens else {}
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


def _by_name(
  tasks: Sequence[str],
  further: Sequence[str],
  scores: np.ndarray,
  prefix: str = '',
) -> dict[str, Any]:
  """Scores (K + E,) of tasks and, where there are some, further objectives."""
  known = len(tasks)
  found = {f'{prefix}tasks': dict(zip(tasks, scores[:known], strict=True))}
  if further:
    more = dict(zip(further, scores[known:], strict=True))
    found[f'{prefix}objectives'] = more
  return found
