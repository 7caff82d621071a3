"""The report of a run: scores on `dev` and `test` with intervals."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from evojax_llm.fitness import intervals
from evojax_llm.tasks.scorers.registry import scorer_of

EVOLVED = 'evolved'
OF_EXPERTS = 'ensemble of experts'
OF_EVOLVED = 'ensemble of evolved'


def summarise(
  tasks: Sequence[str],
  scores: Sequence[float],
  items: Sequence[int],
  metrics: Sequence[Any],
  objective: Any,
) -> dict[str, Any]:
  """Returns scores on each task and their fitness, with 95 % intervals.

  Intervals are Wilson's, of tasks whose items are right or wrong and of a
  weighted mean of nothing but these; other scores have none.

  Args:
    tasks: names of the K tasks.
    scores: (K,) scores; NaN for a failed member.
    items: (K,) number of items.
    metrics: K scorers, of which `metric`, `binary` and `percent` are read.
    objective: the `fitness.objectives.Objective`.

  Returns:
    {'fitness': {'score', 'low', 'high', 'percent'}, 'tasks': {name: the same,
    'items' and 'metric'}}; None in place of NaN and of a missing interval.
  """
  exact, by_task = [], {}
  for task, score, n, metric in zip(tasks, scores, items, metrics, strict=True):
    score = float(score)
    # Shares come in f32; the counts behind them are whole.
    if metric.binary and not math.isnan(score):
      score = round(score * n) / n
    exact.append(score)
    by_task[task] = {
      **_interval(score, n if metric.binary else None, metric.percent),
      'items': n,
      'metric': metric.metric,
    }
  weighted = objective.name in ('weighted_mean', 'pareto')
  weights = [float(w) for w in objective.weights]
  if weighted and objective.percent:
    fitness = sum(w * s for w, s in zip(weights, exact, strict=True))
  else:
    fitness = float(objective(np.asarray([scores], np.float32))[0])
    if math.isnan(fitness) and not any(map(math.isnan, scores)):
      fitness = -math.inf
  # Items of one task with as wide an interval as those of all tasks. With equal
  # weights and sizes it is the number of all items.
  alike = None
  if weighted and all(metric.binary for metric in metrics):
    alike = 1 / sum(w**2 / n for w, n in zip(weights, items, strict=True))
  return {
    'fitness': _interval(fitness, alike, objective.percent),
    'tasks': by_task,
  }


def of_split(
  evaluator: Any, split: str, task_scores: Sequence[float]
) -> dict[str, Any]:
  """Summarises a member's task scores (K,) on a split of an evaluator."""
  return summarise(
    [task.name for task in evaluator.tasks],
    task_scores,
    [len(items) for items in evaluator.items(split)],
    [scorer_of(task) for task in evaluator.tasks],
    evaluator.objective,
  )


def _interval(
  score: float, items: float | None, percent: bool
) -> dict[str, Any]:
  """A score with its interval, where it is a share of so many items."""
  entry = {'score': None, 'low': None, 'high': None, 'percent': percent}
  if not math.isfinite(score):
    # A perplexity beyond a double, which JSON has no number for.
    return entry | ({'infinite': True} if math.isinf(score) else {})
  if items is not None:
    # Rounding of the weighted mean must not lead out of [0, items].
    low, high = intervals.wilson_interval(min(score * items, items), items)
    entry.update(low=round(low, 6), high=round(high, 6))
  return {**entry, 'score': round(score, 6)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the rows of summary.json as Markdown that reads as text, too.

  Tables of fitness, tasks and held-out tasks, if any; shares are in percent.
  `dev` has no interval: what was chosen by it cannot be judged by it.
  """
  means = [['model', 'dev', 'test [95 %]', 'evaluations']]
  for row in rows:
    means.append(
      [
        f'{row["name"]} ({row["detail"]})' if row['detail'] else row['name'],
        shown(row['dev']['fitness']),
        _with_interval(row['test'] and row['test']['fitness']),
        str(row['evaluations']),
      ]
    )
  tasks = [['dev / test', *rows[0]['dev']['tasks']]]
  for row in rows:
    cells = [row['name']]
    for task, dev in row['dev']['tasks'].items():
      test = shown(row['test']['tasks'][task]) if row['test'] else '-'
      cells.append(f'{shown(dev)} / {test}')
    tasks.append(cells)
  tables = [aligned(means), aligned(tasks)]
  if 'heldout' in rows[0]:
    tables.append(aligned(_heldout(rows)))
  return '\n\n'.join(tables)


def _heldout(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Cells of the table of held-out tasks."""
  lines = [['held out', 'mean [95 %]', *rows[0]['heldout']['tasks']]]
  for row in rows:
    found = row['heldout']
    cells = [shown(entry) for entry in found['tasks'].values()]
    lines.append([row['name'], _with_interval(found['fitness']), *cells])
  return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table, names to the left, numbers to the right."""
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def text(cells):
    rest = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    return '| ' + ' | '.join([cells[0].ljust(widths[0]), *rest]) + ' |'

  rule = ['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]
  rule = '|' + '|'.join(rule) + '|'
  return '\n'.join([text(lines[0]), rule, *map(text, lines[1:])])


def _with_interval(entry: Mapping[str, Any] | None) -> str:
  if entry is None:
    return '-'
  if entry['low'] is None:
    return shown(entry)
  low, high = 100 * entry['low'], 100 * entry['high']
  return f'{shown(entry)} [{low:.1f}, {high:.1f}]'


def shown(entry: Mapping[str, Any], unit: str = '') -> str:
  """Returns a score as tables show it, with a unit behind a percentage."""
  if entry['score'] is None:
    return 'inf' if entry.get('infinite') else 'failed'
  return number(entry['score'], entry['percent'], unit)


def number(score: float, percent: bool, unit: str = '') -> str:
  """Returns a score as it is shown everywhere: a share in percent.

  Scores are f32 in the engine and decimals in files: rounded, they are the
  same.
  """
  if not percent:
    return f'{score:.4g}'
  return f'{100 * round(float(score), 6):.1f}{unit}'
