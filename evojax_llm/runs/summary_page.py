"""summary.md: the table of a run, what won and what the words mean."""

from collections.abc import Mapping
from collections.abc import Sequence
import shlex
from typing import Any

from evojax_llm import pocket
from evojax_llm.fitness import intervals
from evojax_llm.runs import report

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
  report.FINE_TUNED: (
    'an adapter trained by gradients on four fifths of the dev items; the '
    'others say when it stops. Tokens are those read, three times in a step '
    'forward and back'
  ),
  report.OF_EXPERTS: _VOTE.format('experts'),
  report.EVOLVED: 'the one member that the search ends with',
  report.OF_EVOLVED: _VOTE.format('members of the search'),
}


def markdown(summary: Mapping[str, Any], folder: str) -> str:
  """Returns summary.md, from the content of summary.json and the folder."""
  search, best = summary['search'], summary['best']
  settings = ', '.join(f'{k} {v}' for k, v in search['changed'].items())
  paragraphs = [
    f'# {summary["name"]}: {search["strategy"]}, population '
    f'{search["population"]}, {summary["evaluations"]} evaluations (baselines '
    'not counted)',
    report.table(summary['rows']),
    *better_lines(summary, folder),
    f'{described(summary)} Everything was chosen on dev; test was read once, '
    'at the end. Evaluations are members scored on dev to choose the row.',
    tasks_foot(summary),
    f'## Member {best["id"]}',
    f'The {_what(summary)} of {summary["generations"]} generations, '
    f'{_made(best)}; `best/` '
    'holds it, its recipe in recipe.json. The search was '
    f'{search["strategy"]} on the space {search["space"]}, with '
    f'{settings or "its default settings"} (all settings are in config.json); '
    f'{summary["failed"]} of its members failed.',
    *_recipe(best['recipe'], search['experts']),
    *_estimated(summary),
    *(
      f'The run had ended after generation {end}, where test was read (see '
      f'summary_{end}.json), and was given more.'
      for end in summary.get('earlier_ends', ())
    ),
    *(f'Warning: {what}' for what in summary.get('lost', ())),
    *(
      f'Left out of {task}: {", ".join(f"{n} {k}" for k, n in counts.items())}.'
      for task, counts in summary.get('left_out', {}).items()
    ),
  ]
  if rows := summary.get('front'):
    paragraphs += _front(rows, summary.get('pareto'))
  known = (row['name'] for row in summary['rows'] if row['name'] in _WORDS)
  words = '\n'.join(f'- {name}: {_WORDS[name]}' for name in known)
  paragraphs += ['## Rows', words, *_oracles(summary)]
  if ledger := summary.get('ledger'):
    saved = ledger['items_saved']
    seconds = ', '.join(f'{k} {v:.1f}' for k, v in ledger['seconds'].items())
    paragraphs.append(
      f'{ledger["prompt_tokens"]:,} tokens read and {ledger["new_tokens"]:,} '
      f'made, {ledger["programs"]} programs compiled'
      + (f', {saved:,} items not asked' if saved else '')
      + f'. Seconds: {seconds}.'
    )
  paragraphs += [
    'Fitness on dev by generation. The band holds the middle half of the '
    'members that were scored in a generation:',
    '![fitness by generation](curve.png)\n',
  ]
  return '\n\n'.join(paragraphs)


def _front(
  rows: Sequence[Mapping[str, Any]], of_rule: Mapping[str, Any] | None
) -> list[str]:
  scores = [{**row['tasks'], **row.get('objectives', {})} for row in rows]
  lines = [
    [str(row['id']), *(f'{score:.4g}' for score in values.values())]
    for row, values in zip(rows, scores, strict=True)
  ]
  paragraphs = ['Members that no other one beats on all tasks:']
  if of_rule:
    point = ', '.join(f'{k} {v:.4g}' for k, v in of_rule['reference'].items())
    volume = of_rule['hypervolume']
    volume = 'not measured' if volume is None else f'{volume:.6g}'
    paragraphs = [
      f'## Front\n\nThe rule `{of_rule["choice"]}` chose member '
      f'{of_rule["chosen"]} of {len(rows)} that no other one beats on all '
      f'objectives. Their hypervolume is {volume}, above {point}. `front/` '
      'holds some of them, front.json says which:'
    ]
  paragraphs.append(report.aligned([['member', *scores[0]], *lines]))
  return paragraphs + ['![the front](front.png)'] * bool(of_rule)


def described(summary: Mapping[str, Any]) -> str:
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
  """Returns a line a task, with an item of it and its answer.

  Before them it says why a row is not there.
  """
  entries = summary['rows'][0]['dev']['tasks']
  note = [f'{summary["note"]}\n'] if summary.get('note') else []
  return '\n'.join(
    note
    + [
      f'- {name}: {one["title"] or entries[name]["metric"]}; '
      f'`{one["question"]}` -> `{one["answer"]}`'
      for name, one in summary['examples'].items()
    ]
  )


def example(task: Any) -> dict[str, str]:
  """Returns a task's title, if any, and its first dev item, shortened."""
  item = task.dev[0]
  answer = dict(item.choices or ()).get(item.answer, item.answer)
  ours = task.name in pocket.task_names()
  ours = ours and task.source == str(pocket.task_file(task.name))
  shown = {'title': pocket.title(task.name) if ours else ''}
  for name, text in (('question', item.question), ('answer', answer)):
    text = ' '.join(text.split())
    shown[name] = text if len(text) <= 60 else f'{text[:57]}...'
  return shown


def better(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Finds what a search has lost to, among the rows of summary.json.

  Returns:
    The row that beats the evolved member on dev by most, and the vote of the
    experts where it beats both: `row`, `difference`, and `low` and `high` of
    its 95 % interval or None. Members are compared as if they had been scored
    on different items (Newcombe 1998, Statist. Med. 17:873, method 10), so that
    the interval is rather too wide.
  """
  scored = {
    row['name']: row['dev']['fitness']
    for row in rows
    if row['dev']['fitness']['score'] is not None
  }
  found, level = [], scored.pop(report.EVOLVED, None)
  scored.pop(report.OF_EVOLVED, None)
  vote = scored.pop(report.OF_EXPERTS, None)
  plain = max(scored.items(), key=lambda row: row[1]['score'], default=None)
  least = level and level['score']
  for name, entry in filter(None, (plain, vote and (report.OF_EXPERTS, vote))):
    if level is None or entry['score'] <= least:
      continue
    least, ends = entry['score'], (None, None)
    if level['low'] is not None:
      parts = 'score', 'low', 'high'
      both = ([scores[part] for part in parts] for scores in (entry, level))
      ends = intervals.of_difference(*both)
    made = {'row': name, 'difference': entry['score'] - level['score']}
    found.append(made | dict(zip(('low', 'high'), ends, strict=True)))
  return found


def better_lines(summary: Mapping[str, Any], folder: str) -> list[str]:
  """Returns a line for each of `better`, with the way to export it."""
  percent = summary['rows'][0]['dev']['fitness']['percent']
  lines = []
  for one in summary['better']:
    gain = report.number(one['difference'], percent, ' points')
    if one['low'] is not None:
      low, high = (report.number(one[end], percent) for end in ('low', 'high'))
      gain += f' [{low}, {high}]'
      gain += ', which may be chance' if one['low'] <= 0.0 else ''
    lines.append(
      f'`{one["row"]}` is better than the evolved member on dev by {gain}: '
      f'`evojax-llm export --run={shlex.quote(folder)} --row="{one["row"]}" '
      '--out=FOLDER` writes it.'
    )
  return lines


def _what(summary: Mapping[str, Any]) -> str:
  return 'choice of the front' if summary.get('pareto') else 'best'


def _made(best: Mapping[str, Any]) -> str:
  of = ' and '.join(map(str, dict.fromkeys(best['parents'])))
  how = f'made in generation {best["generation"]}'
  how += f' by {best["operator"]}' if best['operator'] else ''
  return how + (f' of {of}' if of else '')


def _recipe(recipe: Mapping[str, Any], experts: Sequence[str]) -> list[str]:
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
  return parts + ([report.aligned(lines)] if table_rows else [])


def _shortest(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _estimated(summary: Mapping[str, Any]) -> list[str]:
  """A paragraph on estimates of fitness, where there were some."""
  if not (found := summary.get('estimate')):
    return []
  percent = summary['rows'][0]['dev']['fitness']['percent']
  count = len(found['finalists']['members'])
  said = (
    f'{name} by {report.off(error, percent)}'
    for name, error in found['error'].items()
  )
  return [
    f'Fitness was estimated by {found["rule"]} from {found["anchors"]} of '
    f'{found["items"]} dev items a member. The {count} best were scored on all '
    'at the end, and the best of these is the evolved member: '
    f'{found["asked"]:,} answers in place of {found["of"]:,}, '
    f'{100 * found["saving"]:.1f} % saved. Estimates were off, on average: '
    f'{"; ".join(said)}. The experts were left out of what was fitted; the '
    'finalists were chosen by their estimates, which may be high for that.'
  ]


def _oracles(summary: Mapping[str, Any]) -> list[str]:
  paragraphs = []
  for row in summary['rows']:
    if group := summary['ensembles'].get(row['name']):
      members = ', '.join(map(str, group['members']))
      whose = 'experts' if row['name'].endswith('experts') else 'members'
      bounds = ', '.join(
        f'{report.number(score, row[split]["fitness"]["percent"])} on {split}'
        for split, score in group['oracle'].items()
        if score is not None
      )
      paragraphs.append(
        f'{row["name"].capitalize()}: {whose} {members}; dev chose how many of '
        f'{len(group["dev_fitness_by_size"])}.'
      )
      if bounds:
        paragraphs[-1] += (
          ' An oracle that knows which of them is right would have '
          f'{bounds}: a bound, and no result.'
        )
  return paragraphs
