"""The final table: who scored what, on `dev` and on `test`, and how surely."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from evojax_llm.fitness.intervals import wilson_interval


def row(
  name: str,
  detail: str,
  dev: Any,
  test: Any,
  weights: Sequence[float],
  evaluations: int,
) -> dict[str, Any]:
  """A row of the table.

  Args:
    name: of the model, 'base' or 'evolved' for example.
    detail: what was chosen, for people.
    dev: `Scores` of one member.
    test: `Scores` of one member, or None where there are no test items.
    weights: (K,) weights of the tasks in the fitness; sum to one.
    evaluations: members scored on `dev` to choose this model.
  """
  return {
    'name': name,
    'detail': detail,
    'evaluations': evaluations,
    'dev': _split(dev, weights),
    'test': None if test is None else _split(test, weights),
  }


def _split(scores: Any, weights: Sequence[float]) -> dict[str, Any]:
  """Accuracy of each task and their weighted mean, with 95 % intervals."""
  if np.isnan(scores.fitness[0]):
    failed = {'accuracy': None, 'low': None, 'high': None}
    tasks = {t.task: dict(failed, items=len(t.ids)) for t in scores.tasks}
    return {'tasks': tasks, 'mean': failed, 'reason': scores.reasons[0]}
  tasks, spread = {}, 0.0
  for task, weight in zip(scores.tasks, weights, strict=True):
    items = len(task.ids)
    tasks[task.task] = _interval(float(task.correct[0].sum()), items)
    tasks[task.task]['items'] = items
    spread += float(weight) ** 2 / items
  mean = sum(
    float(w) * t['accuracy']
    for w, t in zip(weights, tasks.values(), strict=True)
  )
  # So many items of one task would be as telling as those of all tasks. With
  # equal weights and sizes it is the number of all items.
  items = 1.0 / spread
  return {'tasks': tasks, 'mean': _interval(mean * items, items)}


def _interval(correct: float, items: float) -> dict[str, Any]:
  # Rounding of the weighted mean must not lead out of [0, items].
  low, high = wilson_interval(min(correct, items), items)
  return {
    'accuracy': round(correct / items, 6),
    'low': round(low, 6),
    'high': round(high, 6),
  }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as a Markdown table that is also readable as text.

  Percentages; `dev / test` for each task; 95 % Wilson intervals for the mean.
  """
  tasks = list(rows[0]['dev']['tasks'])
  header = ['model', 'dev', 'test', *tasks, 'evaluations']
  lines = [header]
  for r in rows:
    name = f'{r["name"]} ({r["detail"]})' if r['detail'] else r['name']
    cells = [name, _mean(r['dev']), _mean(r['test'])]
    for task in tasks:
      dev = _percent(r['dev']['tasks'][task])
      test = _percent(r['test']['tasks'][task]) if r['test'] else '-'
      cells.append(f'{dev} / {test}')
    lines.append([*cells, str(r['evaluations'])])
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

  def text(cells):
    left = cells[0].ljust(widths[0])
    rest = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    return '| ' + ' | '.join([left, *rest]) + ' |'

  rule = '|' + '|'.join(
    [':' + '-' * (widths[0] + 1), *('-' * (w + 1) + ':' for w in widths[1:])]
  )
  return '\n'.join([text(lines[0]), rule + '|', *map(text, lines[1:])])


def markdown(summary: Mapping[str, Any]) -> str:
  """summary.md, from the content of summary.json."""
  items = summary['rows'][0]
  counts = []
  for split in ('dev', 'test'):
    if items[split]:
      per_task = {t['items'] for t in items[split]['tasks'].values()}
      counts.append(f'{split}: {"/".join(map(str, sorted(per_task)))} items')
  return '\n'.join(
    [
      f'# {summary["name"]}',
      '',
      table(summary['rows']),
      '',
      'Accuracy in percent with 95 % Wilson intervals; `dev / test` for each '
      f'task ({", ".join(counts)} a task). Everything was chosen on dev; test '
      'was read once, at the end. Evaluations are members scored on dev to '
      'choose the row.',
      '',
      f'Best member {summary["best"]["id"]} of generation '
      f'{summary["best"]["generation"]}; {summary["generations"]} generations, '
      f'{summary["evaluations"]} evaluations, {summary["failed"]} failed.',
      '',
      '![fitness by generation](curve.png)',
      '',
    ]
  )


def _mean(split: Mapping[str, Any] | None) -> str:
  if split is None:
    return '-'
  mean = split['mean']
  if mean['accuracy'] is None:
    return 'failed'
  return f'{_percent(mean)} [{100 * mean["low"]:.1f}, {100 * mean["high"]:.1f}]'


def _percent(value: Mapping[str, Any]) -> str:
  accuracy = value['accuracy']
  return 'failed' if accuracy is None else f'{100 * accuracy:.1f}'
