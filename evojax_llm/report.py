"""The final table: who scored what, on `dev` and on `test`, and how surely."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from evojax_llm.fitness.intervals import wilson_interval


def accuracies(
  tasks: Sequence[str],
  shares: Sequence[float],
  items: Sequence[int],
  weights: Sequence[float],
) -> dict[str, Any]:
  """Accuracy of each task and their weighted mean, with 95 % intervals.

  Args:
    tasks: names of the K tasks.
    shares: (K,) share of the items that are right; NaN for a failed member.
    items: (K,) number of items.
    weights: (K,) weights of the tasks in the fitness; sum to one.

  Returns:
    {'mean': {'accuracy', 'low', 'high'}, 'tasks': {name: the same and
    'items'}}; None in place of NaN.
  """
  # Shares come in f32; the counts behind them are whole.
  correct = [
    share if math.isnan(share) else round(float(share) * n)
    for share, n in zip(shares, items, strict=True)
  ]
  by_task = {
    task: {**_interval(c, n), 'items': n}
    for task, c, n in zip(tasks, correct, items, strict=True)
  }
  mean = sum(
    float(w) * c / n for w, c, n in zip(weights, correct, items, strict=True)
  )
  # So many items of one task would be as telling as those of all tasks. With
  # equal weights and sizes it is the number of all items.
  alike = 1 / sum(
    float(w) ** 2 / n for w, n in zip(weights, items, strict=True)
  )
  return {'mean': _interval(mean * alike, alike), 'tasks': by_task}


def _interval(correct: float, items: float) -> dict[str, Any]:
  if math.isnan(correct):
    return {'accuracy': None, 'low': None, 'high': None}
  # Rounding of the weighted mean must not lead out of [0, items].
  low, high = wilson_interval(min(correct, items), items)
  return {
    'accuracy': round(correct / items, 6),
    'low': round(low, 6),
    'high': round(high, 6),
  }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as Markdown that is also readable as text, in percent.

  Args:
    rows: of summary.json: `name`, `detail`, `evaluations`, and `dev` and `test`
      as `accuracies` returns them; `test` may be None.

  Returns:
    A table of the means over the tasks and one of the tasks. `dev` has no
    interval: what was chosen by it cannot be judged by it.
  """
  means = [['model', 'dev', 'test [95 %]', 'evaluations']]
  for row in rows:
    means.append(
      [
        f'{row["name"]} ({row["detail"]})' if row['detail'] else row['name'],
        _percent(row['dev']['mean']),
        _with_interval(row['test'] and row['test']['mean']),
        str(row['evaluations']),
      ]
    )
  tasks = [['dev / test', *rows[0]['dev']['tasks']]]
  for row in rows:
    cells = [row['name']]
    for task, dev in row['dev']['tasks'].items():
      test = _percent(row['test']['tasks'][task]) if row['test'] else '-'
      cells.append(f'{_percent(dev)} / {test}')
    tasks.append(cells)
  return _aligned(means) + '\n\n' + _aligned(tasks)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table, names to the left and numbers to the right."""
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def text(cells):
    rest = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    return '| ' + ' | '.join([cells[0].ljust(widths[0]), *rest]) + ' |'

  rule = ['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]
  rule = '|' + '|'.join(rule) + '|'
  return '\n'.join([text(lines[0]), rule, *map(text, lines[1:])])


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
      *_ledger(summary.get('ledger')),
      '![fitness by generation](curve.png)',
      '',
    ]
  )


def _ledger(ledger: Mapping[str, Any] | None) -> list[str]:
  """Where tokens and seconds went, in a paragraph."""
  if ledger is None:
    return []
  seconds = ', '.join(f'{k} {v:.1f}' for k, v in ledger['seconds'].items())
  saved = ledger['items_saved']
  return [
    f'{ledger["prompt_tokens"]:,} tokens read and {ledger["new_tokens"]:,} '
    f'made, {ledger["programs"]} programs compiled'
    + (f', {saved:,} items saved by racing' if saved else '')
    + f'. Seconds: {seconds}.',
    '',
  ]


def _with_interval(mean: Mapping[str, Any] | None) -> str:
  if mean is None:
    return '-'
  if mean['accuracy'] is None:
    return 'failed'
  return f'{_percent(mean)} [{100 * mean["low"]:.1f}, {100 * mean["high"]:.1f}]'


def _percent(value: Mapping[str, Any]) -> str:
  accuracy = value['accuracy']
  return 'failed' if accuracy is None else f'{100 * accuracy:.1f}'
