"""The report of a run of several searches, made of theirs."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
import shutil
from typing import Any

import evojax_llm
from evojax_llm.models import folders
from evojax_llm.runs import final_table
from evojax_llm.runs import plots
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import stages as stages_lib
from evojax_llm.runs import summary_page

_OF_SEARCH = (report.EVOLVED, report.OF_EVOLVED)


def write(path: pathlib.Path, config: Any) -> None:
  """Writes the report of a run whose stages are finished.

  Its best member is that of the stage with the highest fitness on `dev`, the
  first of them where several have it. Nothing is scored.

  Args:
    path: the run folder, which gets best/, metrics.jsonl, curve.png, summary.md
      and summary.json.
    config: its `RunConfig`.
  """
  searches = stages_lib.split(config)
  found = [
    record.read_json(path / search.folder / 'summary.json', 'rows', 'best')
    for search in searches
  ]
  evolved = [_row(summary, report.EVOLVED) for summary in found]
  scores = [row['dev']['fitness']['score'] for row in evolved]
  scores = [-math.inf if score is None else score for score in scores]
  best = scores.index(max(scores))
  stages, rows, spent = [], [], 0
  for number, (search, summary) in enumerate(
    zip(searches, found, strict=True), 1
  ):
    spent += summary['evaluations']
    one, of = search.config, evolved[number - 1]
    detail = f'{search.label}, {of["detail"]}'
    name = f'stage {number}'
    rows.append({**of, 'name': name, 'detail': detail, 'evaluations': spent})
    stages.append(
      {
        'name': name,
        'folder': search.folder,
        'begin': one.begin,
        'strategy': one.strategy.name,
        'space': one.space,
        **{k: summary[k] for k in ('generations', 'evaluations', 'tokens')},
        'seconds': round(sum(summary['seconds'].values()), 3),
        'fitness': of['dev']['fitness']['score'],
      }
    )
  baselines = [row for row in found[0]['rows'] if row['name'] not in _OF_SEARCH]
  whole = {**rows[best], 'name': report.EVOLVED, 'evaluations': spent}
  whole['detail'] = f'stage {best + 1}, {evolved[best]["detail"]}'
  rows = [*baselines, *rows, whole]
  groups = dict(found[0]['ensembles'])
  groups.pop(report.OF_EVOLVED, None)
  if vote := _row(found[best], report.OF_EVOLVED):
    others = spent - found[best]['evaluations']
    rows.append({**vote, 'evaluations': vote['evaluations'] + others})
    groups[report.OF_EVOLVED] = found[best]['ensembles'][report.OF_EVOLVED]
  first, metrics = found[0], _metrics(path, searches)
  name = config.name or '_then_'.join(search.label for search in searches)
  seconds: dict[str, float] = {}
  for summary in found:
    for part, taken in summary['seconds'].items():
      seconds[part] = round(seconds.get(part, 0.0) + taken, 4)
  summary = {
    'name': name,
    'version': evojax_llm.__version__,
    'stages': stages,
    'objective': first['objective'],
    'rows': rows,
    'better': summary_page.better(rows),
    'examples': first['examples'],
    'best': {'stage': searches[best].folder, **found[best]['best']},
    'ensembles': groups,
    **{
      name: sum(summary[name] for summary in found)
      for name in ('generations', 'evaluations', 'failed', 'tokens')
    },
    'seconds': seconds,
    'left_out': first.get('left_out', {}),
  }
  _copy(path / searches[best].folder / 'best', path / 'best')
  lines = (json.dumps(record.plain(row)) + '\n' for row in metrics)
  record.write_text(path / 'metrics.jsonl', ''.join(lines))
  plots.curve(
    path / 'curve.png',
    metrics,
    final_table.levels([*baselines, whole]),
    whole['dev']['fitness']['percent'],
    starts=[
      row['generation']
      for row, before in zip(metrics[1:], metrics, strict=False)
      if row['stage'] != before['stage']
    ],
  )
  page = _markdown(record.plain(summary), str(path))
  record.write_text(path / 'summary.md', page)
  # Last: a folder with a summary.json is a finished run.
  record.write_json(path / 'summary.json', summary)


def _row(summary: Mapping[str, Any], name: str) -> Any:
  return next((row for row in summary['rows'] if row['name'] == name), None)


def _metrics(
  path: pathlib.Path, searches: Sequence[stages_lib.Search]
) -> list[dict[str, Any]]:
  """Rows of all stages, numbered through; the best so far is that of all."""
  made, best = [], {}
  for number, search in enumerate(searches, 1):
    spent = made[-1]['evaluations'] if made else 0
    for row in record.JsonLines(path / search.folder / 'metrics.jsonl').read():
      evaluations = row['evaluations'] + spent
      known = best.get('best_fitness')
      if known is None or (row['best_fitness'] or -math.inf) > known:
        best = {k: row[k] for k in ('best_id', 'best_fitness', 'best_tasks')}
        best['best_stage'] = number
      row |= {'generation': len(made), 'stage': number, **best}
      made.append(row | {'evaluations': evaluations})
  return made


def _copy(source: pathlib.Path, best: pathlib.Path) -> None:
  shutil.rmtree(best, ignore_errors=True)
  with folders.new_folder(best) as folder:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _markdown(summary: Mapping[str, Any], folder: str) -> str:
  """Returns summary.md."""
  head = 'begins with', 'strategy', 'space', 'evaluations', 'tokens', 'seconds'
  lines = [['stage', 'folder', *head]]
  for one in summary['stages']:
    begin = stages_lib.BEGINNINGS.get(one['begin'], 'its experts')
    lines.append(
      [
        one['name'],
        one['folder'],
        begin,
        one['strategy'],
        one['space'],
        str(one['evaluations']),
        f'{one["tokens"]:,}',
        f'{one["seconds"]:.1f}',
      ]
    )
  best = summary['best']
  return '\n\n'.join(
    [
      f'# {summary["name"]}: {len(summary["stages"])} stages, '
      f'{summary["evaluations"]} evaluations (baselines not counted)',
      report.table(summary['rows']),
      *summary_page.better_lines(summary, folder),
      f'{summary_page.described(summary)} Everything was chosen on dev, the '
      'stage whose best is the result included; each stage reads test once, '
      'at its end, and nothing of it reaches the next one. Evaluations are '
      'members scored on dev to choose the row, earlier stages included.',
      summary_page.tasks_foot(summary),
      '## Stages',
      report.aligned(lines),
      f'`best/` is member {best["id"]} of `{best["stage"]}`, the best on dev '
      'of all stages. Each of their folders is a run of its own, with its '
      'summary, members and lineage. Baselines are those of the first.',
      'Fitness on dev by generation, through all stages:',
      '![fitness by generation](curve.png)\n',
    ]
  )
