"""The report of a run: scores on `dev` and `test` with intervals."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import shlex
from typing import Any

import numpy as np

from evojax_llm.fitness import intervals
from evojax_llm.tasks.scorers.registry import scorer_of

EVOLVED = 'evolved'
OF_EXPERTS = 'ensemble of experts'
OF_EVOLVED = 'ensemble of evolved'

_VOTE = (
  'to each item stands the answer that most of a few {} give, of free text the '
  'one most like the others, at the price of as many answers; `vote of 3`: dev '
  'chose three'
)
# What the rows of the table are.
_WORDS = {
  'base': 'the model as it was given',
  'best expert': 'the expert that is best on dev',
  'average': 'the mean of all experts',
  'soup': 'the mean of the best experts; `best 3`: dev chose three',
  'scaled average': (
    'the mean of all experts, its change of the base multiplied; `x 1.5`: dev '
    'chose the factor 1.5'
  ),
  'scaled best expert': 'the best expert, its change of the base multiplied',
  OF_EXPERTS: _VOTE.format('experts'),
  EVOLVED: 'the one member that the search ends with',
  OF_EVOLVED: _VOTE.format('members of the search'),
}


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


def markdown(summary: Mapping[str, Any], folder: str) -> str:
  """Returns summary.md, from the content of summary.json and the folder."""
  search, best = summary['search'], summary['best']
  settings = ', '.join(f'{k} {v}' for k, v in search['changed'].items())
  paragraphs = [
    f'# {summary["name"]}: {search["strategy"]}, population '
    f'{search["population"]}, {summary["evaluations"]} evaluations (baselines '
    'not counted)',
    table(summary['rows']),
    *better_lines(summary, folder),
    f'{_described(summary)} Everything was chosen on dev; test was read once, '
    'at the end. Evaluations are members scored on dev to choose the row.',
    tasks_foot(summary),
    f'## Member {best["id"]}',
    f'The best of {summary["generations"]} generations, {_made(best)}; `best/` '
    'holds it, its recipe in recipe.json. The search was '
    f'{search["strategy"]} on the space {search["space"]}, with '
    f'{settings or "its default settings"} (all settings are in config.json); '
    f'{summary["failed"]} of its members failed.',
    *_recipe(best['recipe'], search['experts']),
    *(f'Warning: {what}' for what in summary.get('lost', ())),
    *(
      f'Left out of {task}: {", ".join(f"{n} {k}" for k, n in counts.items())}.'
      for task, counts in summary.get('left_out', {}).items()
    ),
  ]
  if rows := summary.get('front'):
    lines = [['member', *rows[0]['tasks']]]
    for row in rows:
      scores = (f'{score:.4g}' for score in row['tasks'].values())
      lines.append([str(row['id']), *scores])
    paragraphs.append('Members that no other one beats on all tasks:')
    paragraphs.append(aligned(lines))
  paragraphs += ['## Rows', _rows_explained(summary), *_oracles(summary)]
  if ledger := summary.get('ledger'):
    saved = ledger['items_saved']
    seconds = ', '.join(f'{k} {v:.1f}' for k, v in ledger['seconds'].items())
    paragraphs.append(
      f'{ledger["prompt_tokens"]:,} tokens read and {ledger["new_tokens"]:,} '
      f'made, {ledger["programs"]} programs compiled'
      + (f', {saved:,} items saved by racing' if saved else '')
      + f'. Seconds: {seconds}.'
    )
  paragraphs.append(
    'Fitness on dev by generation. The band holds the middle half of the '
    'members that were scored in a generation:'
  )
  paragraphs.append('![fitness by generation](curve.png)\n')
  return '\n\n'.join(paragraphs)


def _described(summary: Mapping[str, Any]) -> str:
  """What the figures are, in a few words."""
  first = summary['rows'][0]
  entries = list(first['dev']['tasks'].values())
  what = 'Accuracy in percent with 95 % Wilson intervals'
  if any(entry['low'] is None for entry in entries):
    metrics = dict.fromkeys(
      entry['metric'] + (' in percent' if entry['percent'] else '')
      for entry in entries
    )
    what = f'Objective {summary["objective"]} over {", ".join(metrics)}'
  counts = []
  for split in ('dev', 'test'):
    if first[split]:
      per_task = {t['items'] for t in first[split]['tasks'].values()}
      counts.append(f'{split}: {"/".join(map(str, sorted(per_task)))} items')
  return f'{what}; `dev / test` for each task ({", ".join(counts)} a task).'


def tasks_foot(summary: Mapping[str, Any]) -> str:
  """Returns a line a task, with an item of it and its answer."""
  entries = summary['rows'][0]['dev']['tasks']
  return '\n'.join(
    f'- {name}: {entries[name]["metric"]}; `{question}` -> `{answer}`'
    for name, (question, answer) in summary['examples'].items()
  )


def example(task: Any) -> tuple[str, str]:
  """Returns the beginnings of a task's first dev question and of its answer."""
  item = task.dev[0]
  answer = dict(item.choices or ()).get(item.answer, item.answer)
  shown = (' '.join(text.split()) for text in (item.question, answer))
  return tuple(t if len(t) <= 60 else f'{t[:57]}...' for t in shown)


def better(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Finds what a search has lost to.

  Args:
    rows: of summary.json, the evolved member among them.

  Returns:
    The row that beats the evolved member on dev by most, and the vote of the
    experts where it beats both: `row`, `difference`, and `low` and `high` of
    its 95 % interval or None. Members are compared as if they had been scored
    on different items (Newcombe 1998, Statist. Med. 17:873, method 10), so
    that the interval is rather too wide.
  """
  scored = {
    row['name']: row['dev']['fitness']
    for row in rows
    if row['dev']['fitness']['score'] is not None
  }
  found, level = [], scored.pop(EVOLVED, None)
  scored.pop(OF_EVOLVED, None)
  vote = scored.pop(OF_EXPERTS, None)
  plain = max(scored.items(), key=lambda row: row[1]['score'], default=None)
  least = level and level['score']
  for name, entry in filter(None, (plain, vote and (OF_EXPERTS, vote))):
    if level is None or entry['score'] <= least:
      continue
    least = entry['score']
    low = high = None
    if level['low'] is not None:
      low, high = intervals.of_difference(
        *(
          [e[part] for part in ('score', 'low', 'high')] for e in (entry, level)
        )
      )
    difference = entry['score'] - level['score']
    found.append(dict(row=name, difference=difference, low=low, high=high))
  return found


def better_lines(summary: Mapping[str, Any], folder: str) -> list[str]:
  """Returns a line for each of `better`, with the way to export it."""
  percent = summary['rows'][0]['dev']['fitness']['percent']
  lines = []
  for one in summary['better']:
    gain = number(one['difference'], percent, ' points')
    if one['low'] is not None:
      low, high = (number(one[end], percent) for end in ('low', 'high'))
      gain += f' [{low}, {high}]'
      gain += ', which may be chance' if one['low'] <= 0.0 else ''
    lines.append(
      f'`{one["row"]}` is better than the evolved member on dev by {gain}: '
      f'`evojax-llm export --run={shlex.quote(folder)} --row="{one["row"]}" '
      '--out=FOLDER` writes it.'
    )
  return lines


def _made(best: Mapping[str, Any]) -> str:
  of = ' and '.join(map(str, dict.fromkeys(best['parents'])))
  how = f'made in generation {best["generation"]}'
  how += f' by {best["operator"]}' if best['operator'] else ''
  return how + (f' of {of}' if of else '')


def _recipe(recipe: Mapping[str, Any], experts: Sequence[str]) -> list[str]:
  """What a member is: numbers in a line, and a table by what they are of."""
  numbers, table_rows = [], {}
  for name, value in recipe.items():
    if not isinstance(value, Mapping):
      numbers.append(f'{name} {_shortest(value)}')
      continue
    for expert, entry in value.items():
      cells = entry if isinstance(entry, Mapping) else {name: entry}
      table_rows.setdefault(expert, {}).update(cells)
  columns = list(dict.fromkeys(c for row in table_rows.values() for c in row))
  lines = [['', *columns]]
  for expert, row in table_rows.items():
    lines.append([expert, *(_shortest(row.get(c, '')) for c in columns)])
  parts = [', '.join(numbers)] if numbers else []
  if not table_rows.keys() >= set(experts):
    parts.append(f'Experts: {", ".join(experts)}.')
  if 'cosine' in columns:
    parts.append(
      'Of what is changed of the base: `change` is the norm, `cosine` that of '
      'it and the member, `distance` theirs, `weight` its own in the nearest '
      'mix of experts, and `unexplained` what this mix lacks of the member.'
    )
  return parts + ([aligned(lines)] if table_rows else [])


def _shortest(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _rows_explained(summary: Mapping[str, Any]) -> str:
  return '\n'.join(
    f'- {row["name"]}: {_WORDS[row["name"]]}'
    for row in summary['rows']
    if row['name'] in _WORDS
  )


def _oracles(summary: Mapping[str, Any]) -> list[str]:
  """Paragraphs on the ensembles and the bound that no vote can pass."""
  paragraphs = []
  for row in summary['rows']:
    group = summary['ensembles'].get(row['name'])
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
    return 'inf' if entry.get('infinite') else 'failed'
  return number(entry['score'], entry['percent'], unit)


def number(score: float, percent: bool, unit: str = '') -> str:
  """Returns a score as it is shown everywhere: a share in percent.

  Scores are f32 in the engine and decimals in files; rounded to six digits
  first, one is shown as the other.
  """
  if not percent:
    return f'{score:.4g}'
  return f'{100 * round(float(score), 6):.1f}{unit}'
