"""The table and the pictures of a sweep."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import json
import statistics
from typing import Any

from evojax_llm.runs import plots
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import sweep_changes

SPLITS = {'dev': 'dev', 'test': 'test', 'heldout': 'held out'}
_LEVELS = ('base', 'best expert', 'soup', 'scaled average')
_SPREAD = ('mean', 'sd', 'lowest', 'highest')


def write(folder: Any, pictures: bool = True) -> dict[str, Any]:
  """Writes summary.json, summary.md and pictures of a `sweeps.Folder`.

  Returns:
    The content of summary.json: `trials` with status and error, `settings` with
    the scores of their seeds and their mean, standard deviation, lowest and
    highest, `best`, the setting with the highest mean on dev, and `baselines`,
    where they are those of all trials.
  """
  summaries = {name: folder.summary(name) for name in folder.trials}
  trials, groups = [], {}
  for name, trial in folder.trials.items():
    error = folder.error(name)
    missing = 'failed' if error else 'unfinished'
    status = 'finished' if summaries[name] else missing
    row = {'name': name, 'changes': trial.changes, 'status': status}
    trials.append({**row, 'error': error})
    changes = {f: v for f, v in trial.changes.items() if f != 'seed'}
    key = json.dumps(changes, sort_keys=True)
    groups.setdefault(key, (changes, []))[1].append(name)
  names = sweep_changes.names([changes for changes, _ in groups.values()])
  settings = []
  for name, (changes, members) in zip(names, groups.values(), strict=True):
    done = [summaries[t] for t in members if summaries[t]]
    times = [round(sum(one['seconds'].values()), 3) for one in done]
    setting = {'changes': changes, 'trials': members, 'runs': len(done)}
    setting |= {'name': name, 'seconds': times}
    settings.append(_rows(done).get(report.EVOLVED, {}) | setting)
  means = {one['name']: one['dev']['mean'] for one in settings if one['runs']}
  means = {name: mean for name, mean in means.items() if mean is not None}
  alone = len(settings) == 1
  baselines = [
    row
    for name, row in _rows(filter(None, summaries.values())).items()
    if name in _LEVELS or (alone and name != report.EVOLVED)
  ]
  spreads = (row['dev'] for row in baselines)
  if not alone and any(s['lowest'] != s['highest'] for s in spreads):
    baselines = []  # of several draws or tasks
  summary = record.plain(
    {
      'name': folder.path.name,
      'best': max(means, key=means.__getitem__) if means else None,
      'settings': settings,
      'baselines': baselines,
      'trials': trials,
    }
  )
  if pictures:
    _draw(folder.path, settings, baselines)
  record.write_text(folder.path / 'summary.md', _markdown(summary))
  record.write_json(folder.path / 'summary.json', summary)
  return summary


def table(summary: Mapping[str, Any]) -> str:
  """Returns the settings of a sweep and its baselines as Markdown."""
  settings = summary['settings']
  swept = list(dict.fromkeys(f for one in settings for f in one['changes']))
  splits = [s for s in SPLITS if any(s in one for one in settings)]
  head = ['', *sweep_changes.short_names(swept).values(), 'runs']
  for split in splits:
    head += [SPLITS[split], 'sd'] + ['range'] * (split != 'dev')
  lines = [[*head, 'evaluations', 'seconds']]
  for one in settings:
    best = 'best on dev' if one['name'] == summary['best'] else ''
    labels = [best if len(settings) > 1 else report.EVOLVED]
    labels += [str(one['changes'].get(field, '-')) for field in swept]
    cost = ['-', '-']
    if one['runs']:
      cost = [f'{statistics.mean(one["evaluations"]):.0f}']
      cost += [f'{statistics.median(one["seconds"]):.1f}']
    lines.append([*labels, str(one['runs']), *_cells(one, splits), *cost])
  for row in summary['baselines']:
    blank = [''] * (len(swept) + 1)
    lines.append([row['name'], *blank, *_cells(row, splits), '', ''])
  return report.aligned(lines)


def _cells(row: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
  """Mean, standard deviation and range of each split, '-' where unknown."""
  cells = []
  for split in splits:
    entry = row.get(split, {})
    mean, sd, lowest, highest = (
      '-'
      if entry.get(part) is None
      else report.number(entry[part], entry['percent'])
      for part in _SPREAD
    )
    cells += [mean, sd] + [f'{lowest}-{highest}'] * (split != 'dev')
  return cells


def _markdown(summary: Mapping[str, Any]) -> str:
  parts = [
    f'# {summary["name"]}',
    table(summary),
    'Means over seeds, their standard deviation and range; the best setting is '
    'that with the highest mean on dev.',
  ]
  missing = [
    f'- {row["name"]}: {row["error"] or row["status"]}'
    for row in summary['trials']
    if row['status'] != 'finished'
  ]
  if missing:
    parts += ['Trials without a result:', '\n'.join(missing)]
  return '\n\n'.join(parts) + '\n'


def _draw(
  path: Any,
  settings: Sequence[Mapping[str, Any]],
  baselines: Sequence[Mapping[str, Any]],
) -> None:
  """Draws a line for one swept field, and a heat map for each two of several.

  Scores are those on test, or on dev without test items; where more fields are
  swept than a picture has axes, they are means over the others.
  """
  done = [one for one in settings if one['runs']]
  split = 'test' if all('test' in one for one in done) else 'dev'
  values: dict[str, list[Any]] = {}
  for one in done:
    for field, value in one['changes'].items():
      known = values.setdefault(field, [])
      if value not in known:
        known.append(value)
  values = {
    field: sorted(found)
    if all(isinstance(value, (int, float)) for value in found)
    else found
    for field, found in values.items()
    if len(found) > 1
  }
  if not values:
    return
  short = sweep_changes.short_names(list(values))
  percent = done[0][split]['percent']
  label = f'fitness on {split}' + (' (%)' if percent else '')
  scale = 100 if percent else 1

  def spread(chosen):
    scores = (
      scale * score
      for one in done
      if all(one['changes'].get(f) == v for f, v in chosen.items())
      for score in one[split]['scores']
      if score is not None
    )
    return _spread(list(scores))

  if len(values) == 1:
    ((field, axis),) = values.items()
    levels = {
      row['name']: scale * row[split]['mean']
      for row in baselines
      if split in row and row[split]['mean'] is not None
    }
    cells = [spread({field: value}) for value in axis]
    file = path / f'{short[field]}.png'
    plots.line(file, axis, cells, levels, short[field], label)
  for first, second in itertools.combinations(values, 2):
    grid = [
      [spread({first: x, second: y})['mean'] for x in values[first]]
      for y in values[second]
    ]
    file = path / f'{short[first]}_by_{short[second]}.png'
    axes = (short[first], values[first]), (short[second], values[second])
    plots.heat_map(file, *axes, grid, label)


def _rows(summaries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Rows of tables by name, with the scores of all runs and their spread."""
  rows: dict[str, dict[str, Any]] = {}
  for row in itertools.chain(*(summary['rows'] for summary in summaries)):
    kept = {'name': row['name'], 'evaluations': []}
    kept = rows.setdefault(row['name'], kept)
    kept['evaluations'].append(row['evaluations'])
    for split in filter(row.get, SPLITS):
      fitness = row[split]['fitness']
      new = {'percent': fitness['percent'], 'scores': []}
      kept.setdefault(split, new)['scores'].append(fitness['score'])
  for row in rows.values():
    for split in filter(row.get, SPLITS):
      row[split].update(_spread(row[split]['scores']))
  return rows


def _spread(scores: Sequence[float | None]) -> dict[str, float | None]:
  known = [score for score in scores if score is not None]
  if not known:
    return dict.fromkeys(_SPREAD)
  sd = statistics.stdev(known) if len(known) > 1 else None
  found = statistics.mean(known), sd, min(known), max(known)
  return dict(zip(_SPREAD, found, strict=True))
