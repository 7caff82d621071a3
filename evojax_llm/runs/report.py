"""The report of a run: scores on `dev` and `test` with intervals."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from evojax_llm.fitness.intervals import wilson_interval
from evojax_llm.tasks.scorers.registry import scorer_of

EVOLVED = 'evolved'


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
    return entry
  if items is not None:
    # Rounding of the weighted mean must not lead out of [0, items].
    low, high = wilson_interval(min(score * items, items), items)
    entry.update(low=round(low, 6), high=round(high, 6))
  return {**entry, 'score': round(score, 6)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the rows as Markdown that is also readable as text.

  Args:
    rows: of summary.json: `name`, `detail`, `evaluations`, and `dev`, `test`
      and, where there are such tasks, `heldout` as `summarise` returns them;
      `test` may be None.

  Returns:
    Tables of fitness, tasks and held-out tasks, shares in percent. `dev` has no
    interval: what was chosen by it cannot be judged by it.
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


def _described(summary: Mapping[str, Any]) -> str:
  """What the figures are, in a few words."""
  entries = list(summary['rows'][0]['dev']['tasks'].values())
  if all(entry['low'] is not None for entry in entries):
    return 'Accuracy in percent with 95 % Wilson intervals'
  metrics = dict.fromkeys(
    entry['metric'] + (' in percent' if entry['percent'] else '')
    for entry in entries
  )
  return f'Objective {summary["objective"]} over {", ".join(metrics)}'


def markdown(summary: Mapping[str, Any]) -> str:
  """Returns summary.md, from the content of summary.json."""
  first, best = summary['rows'][0], summary['best']
  counts = []
  for split in ('dev', 'test'):
    if first[split]:
      per_task = {t['items'] for t in first[split]['tasks'].values()}
      counts.append(f'{split}: {"/".join(map(str, sorted(per_task)))} items')
  paragraphs = [
    f'# {summary["name"]}',
    table(summary['rows']),
    f'{_described(summary)}; `dev / test` for each task ({", ".join(counts)} a '
    'task). Everything was chosen on dev; test was read once, at the end. '
    'Evaluations are members scored on dev to choose the row.',
    f'Best member {best["id"]} of generation {best["generation"]}; '
    f'{summary["generations"]} generations, {summary["evaluations"]} '
    f'evaluations, {summary["failed"]} failed.',
    *_oracles(summary),
  ]
  if rows := summary.get('front'):
    lines = [['member', *rows[0]['tasks']]]
    for row in rows:
      scores = (f'{score:.4g}' for score in row['tasks'].values())
      lines.append([str(row['id']), *scores])
    paragraphs.append('Members that no other one beats on all tasks:')
    paragraphs.append(aligned(lines))
  if ledger := summary.get('ledger'):
    saved = ledger['items_saved']
    seconds = ', '.join(f'{k} {v:.1f}' for k, v in ledger['seconds'].items())
    paragraphs.append(
      f'{ledger["prompt_tokens"]:,} tokens read and {ledger["new_tokens"]:,} '
      f'made, {ledger["programs"]} programs compiled'
      + (f', {saved:,} items saved by racing' if saved else '')
      + f'. Seconds: {seconds}.'
    )
  paragraphs.append('![fitness by generation](curve.png)\n')
  return '\n\n'.join(paragraphs)


def _oracles(summary: Mapping[str, Any]) -> list[str]:
  """Paragraphs on the ensembles and the bound that no vote can pass."""
  paragraphs = []
  for row in summary['rows']:
    group = (summary.get('ensembles') or {}).get(row['name'])
    if group is None:
      continue
    members = ', '.join(map(str, group['members']))
    whose = 'experts' if row['name'].endswith('experts') else 'members'
    text = (
      f'{row["name"].capitalize()}: {whose} {members}; dev chose how many of '
      f'{len(group["dev_fitness_by_size"])}.'
    )
    bounds = [
      f'{number(score, row[split]["fitness"]["percent"])} on {split}'
      for split, score in group['oracle'].items()
      if score is not None
    ]
    if bounds:
      text += (
        ' An oracle that knows which of them is right would have '
        f'{", ".join(bounds)}: a bound, and no result.'
      )
    paragraphs.append(text)
  return paragraphs


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
    return 'failed'
  return number(entry['score'], entry['percent'], unit)


def number(score: float, percent: bool, unit: str = '') -> str:
  """Returns a score as it is shown everywhere: a share in percent.

  Scores are f32 in the engine and decimals in files; rounded to six digits
  first, one is shown as the other.
  """
  if not percent:
    return f'{score:.4g}'
  return f'{100 * round(float(score), 6):.1f}{unit}'
