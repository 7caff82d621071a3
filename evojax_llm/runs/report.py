"""Scores with intervals, in words and tables: of runs, and of members alone."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from evojax_llm.fitness import intervals
from evojax_llm.tasks.scorers.registry import scorer_of

EVOLVED = 'evolved'
FINE_TUNED = 'LoRA fine-tuning'
OF_EXPERTS = 'ensemble of experts'
OF_EVOLVED = 'ensemble of evolved'


def of_split(
  evaluator: Any, split: str, task_scores: Sequence[float]
) -> dict[str, Any]:
  """Returns a member's scores on a split and their fitness, with intervals.

  Intervals are Wilson's of 95 %, of tasks whose items are right or wrong and of
  a weighted mean of nothing but these; other scores have none. `task_scores`
  (K,) are NaN for a failed member.

  Returns:
    {'fitness': {'score', 'low', 'high', 'percent'}, 'tasks': {name: the same,
    'items' and 'metric'}}; None in place of NaN and of a missing interval.
  """
  objective, exact, by_task = evaluator.objective, [], {}
  scorers = [scorer_of(task) for task in evaluator.tasks]
  counts = [len(items) for items in evaluator.items(split)]
  for task, score, n, scorer in zip(
    evaluator.tasks, task_scores, counts, scorers, strict=True
  ):
    score = float(score)
    # Shares come in f32; the counts behind them are whole.
    if scorer.binary and not math.isnan(score):
      score = round(score * n) / n
    exact.append(score)
    by_task[task.name] = {
      **_interval(score, n if scorer.binary else None, scorer.percent),
      'items': n,
      'metric': scorer.metric,
    }
  weighted = objective.name in ('weighted_mean', 'pareto')
  weights = [float(w) for w in objective.weights]
  if weighted and objective.percent:
    fitness = sum(w * s for w, s in zip(weights, exact, strict=True))
  else:
    fitness = float(objective(np.asarray([task_scores], np.float32))[0])
    if math.isnan(fitness) and not any(map(math.isnan, task_scores)):
      fitness = -math.inf
  # Items of one task with as wide an interval as those of all tasks. With equal
  # weights and sizes it is the number of all items.
  alike = None
  if weighted and all(scorer.binary for scorer in scorers):
    alike = 1 / sum(w**2 / n for w, n in zip(weights, counts, strict=True))
  return {
    'fitness': _interval(fitness, alike, objective.percent),
    'tasks': by_task,
  }


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
  tasks = [['dev / test', *rows[0]['dev']['tasks']]]
  heldout = []
  if 'heldout' in rows[0]:
    heldout = [['held out', 'mean [95 %]', *rows[0]['heldout']['tasks']]]
  for row in rows:
    name, dev, test = row['name'], row['dev'], row['test']
    label = f'{name} ({row["detail"]})' if row['detail'] else name
    mean = with_interval(test['fitness']) if test else '-'
    means.append([label, shown(dev['fitness']), mean, str(row['evaluations'])])
    cells = (
      f'{shown(entry)} / {shown(test["tasks"][task]) if test else "-"}'
      for task, entry in dev['tasks'].items()
    )
    tasks.append([name, *cells])
    if heldout:
      found = row['heldout']
      cells = map(shown, found['tasks'].values())
      heldout.append([name, with_interval(found['fitness']), *cells])
  return '\n\n'.join(map(aligned, filter(None, (means, tasks, heldout))))


def of_members(
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


def members_table(
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
        cells.append(with_interval(entry))
      if with_mean:
        cells.append(number(sum(scores) / len(scores), percent=True))
    lines.append(cells)
  return aligned(lines) + failures


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table, names to the left, numbers to the right."""
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def text(cells):
    rest = [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
    return '| ' + ' | '.join([cells[0].ljust(widths[0]), *rest]) + ' |'

  rule = ['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])]
  rule = '|' + '|'.join(rule) + '|'
  return '\n'.join([text(lines[0]), rule, *map(text, lines[1:])])


def with_interval(entry: Mapping[str, Any]) -> str:
  """Returns a score as tables show it, with its interval if it has one."""
  if entry['low'] is None:
    return shown(entry)
  low, high = (number(entry[end], entry['percent']) for end in ('low', 'high'))
  return f'{shown(entry)} [{low}, {high}]'


def shown(entry: Mapping[str, Any], unit: str = '') -> str:
  """Returns a score as tables show it, with a unit behind a percentage."""
  if entry['score'] is None:
    return 'inf' if entry.get('infinite') else 'failed'
  return number(entry['score'], entry['percent'], unit)


def off(error: Mapping[str, Any], percent: bool) -> str:
  """Returns what `fitness.estimates.error` says in a few words."""
  if error['mean_absolute'] is None:
    return 'none could be scored'
  text = number(error['mean_absolute'], percent, ' points')
  if error['rank_correlation'] is not None:
    text += f', rank correlation {error["rank_correlation"]:.2f}'
  return text


def number(score: float, percent: bool, unit: str = '') -> str:
  """Returns a score as it is shown everywhere: a share in percent.

  Scores are f32 in the engine and decimals in files: rounded, they are the
  same.
  """
  if not percent:
    return f'{score:.4g}'
  return f'{100 * round(float(score), 6):.1f}{unit}'
