"""Searches beside plain baselines at equal evaluations, as one table."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from evojax_llm.fitness import intervals
from evojax_llm.runs import plots
from evojax_llm.runs import record
from evojax_llm.runs import report

# Baselines that searches are paired with.
_LEVELS = ('best expert', 'soup', 'scaled average', report.OF_EXPERTS)
_VOTE = ', vote'
_EVOLVED = {report.EVOLVED: '{}', report.OF_EVOLVED: '{}' + _VOTE}
Row = dict[str, Any]


def rows(
  changes: Mapping[str, Any],
  summary: Mapping[str, Any],
  scored: set[tuple[Any, Any]],
) -> list[Row]:
  """Returns the rows of one run: its search, its vote, and its baselines.

  Args:
    changes: `stage`, `draw`, `arm` and `seed` of the run.
    summary: content of its summary.json.
    scored: (stage, draw) of baselines, the same for all runs of one, that have
      rows already; added to.
  """
  stage, draw = changes['stage'], changes['draw']
  with_baselines = (stage, draw) not in scored
  scored.add((stage, draw))
  by_task = summary['rows'][0]['dev']['tasks'].values()
  items = sum(task['items'] for task in by_task)
  seconds = summary['seconds']
  seconds = {**seconds, 'all': round(sum(seconds.values()), 3)}
  stages = [stage['name'] for stage in summary.get('stages', ())]
  made = []
  for row in summary['rows']:
    name, dev, test = row['name'], row['dev'], row['test']
    group = summary['ensembles'].get(name)
    is_search = name in _EVOLVED
    if not is_search and not with_baselines or name in stages:
      continue
    heldout = (row.get('heldout') or {'fitness': None})['fitness']
    made.append(
      {
        'stage': stage,
        'draw': draw,
        'name': _EVOLVED.get(name, name).format(changes['arm']),
        'seed': changes['seed'] if is_search else None,
        'evaluations': row['evaluations'],
        'items': row['evaluations'] * items,
        'members': len(group['members']) if group else 1,
        'dev': dev['fitness']['score'],
        'test': test['fitness']['score'],
        'test_by_task': {n: t['score'] for n, t in test['tasks'].items()},
        'heldout': heldout and heldout['score'],
        'percent': {
          'fitness': dev['fitness']['percent'],
          'heldout': heldout and heldout['percent'],
          'tasks': {n: t['percent'] for n, t in test['tasks'].items()},
        },
        'seconds': seconds if name == report.EVOLVED else None,
        # Of a row that costs more than evaluations.
        **{k: v for k, v in row.items() if k == 'tokens'},
      }
    )
  return made


def table(found: Sequence[Row]) -> str:
  """Mean and spread of each search or baseline of a stage, as Markdown.

  Of its `rows` scores are None where scoring failed, and `heldout` where there
  are no such tasks.
  """
  percent = found[0]['percent']
  share, of_heldout = percent['fitness'], percent['heldout']
  head = ['', 'runs', 'evaluations', 'items', 'dev', 'test', 'sd']
  head += [
    'lowest',
    'highest',
    *(['held out', 'sd'] * (of_heldout is not None)),
  ]
  lines = [[*head, *percent['tasks'], 'seconds']]
  for name, same in _by('name', found).items():
    numbers = {
      field: _numbers(row[field] for row in same)
      for field in ('evaluations', 'items', 'dev', 'test', 'heldout')
    }
    means = {field: np.mean(values) for field, values in numbers.items()}
    test = numbers['test']
    cells = [name, str(len(same))]
    cells += [f'{means["evaluations"]:.0f}', f'{means["items"]:.0f}']
    cells += [report.number(means['dev'], share)]
    cells += [f'**{report.number(means["test"], share)}**']
    cells += [_deviation(test, share)]
    cells += [report.number(end, share) for end in (np.min(test), np.max(test))]
    if of_heldout is not None:
      cells.append(report.number(means['heldout'], of_heldout))
      cells.append(_deviation(numbers['heldout'], of_heldout))
    for task, of_task in percent['tasks'].items():
      scores = _numbers(row['test_by_task'][task] for row in same)
      cells.append(report.number(np.mean(scores), of_task))
    times = [row['seconds']['all'] for row in same if row['seconds']]
    cells.append(f'{np.median(times):.1f}' if times else '-')
    lines.append(cells)
  return report.aligned(lines)


def differences(found: Sequence[Row]) -> str:
  """Mean paired differences on test, line less column, as Markdown.

  Runs are paired by draw of dev items and by seed. Intervals are Student's of
  the mean over pairs; of one pair there is none.
  """
  named, percent = _by('name', found), found[0]['percent']['fitness']
  scores = {
    name: {(row['draw'], row['seed']): row['test'] for row in same}
    for name, same in named.items()
  }
  searches = [n for n, same in named.items() if same[0]['seed'] is not None]
  others = [name for name in named if name in _LEVELS]
  others += [name for name in searches if not name.endswith(_VOTE)]
  lines = [['test, less', *others]]
  for name in searches:
    cells = [name]
    for other in others:
      there = scores[other]
      pairs = [
        (score, there.get((draw, seed), there.get((draw, None))))
        for (draw, seed), score in scores[name].items()
      ]
      gains = [a - b for a, b in pairs if a is not None and b is not None]
      same = name == other or not gains
      cells.append('' if same else _gain(gains, percent))
    lines.append(cells)
  return report.aligned(lines)


def _gain(gains: Sequence[float], percent: bool) -> str:
  values = [np.mean(gains)]
  if len(gains) > 1:
    values += intervals.mean_interval(gains, intervals.t95(len(gains) - 1))
  mean, *ends = (
    '+' * bool(value >= 0.0) + report.number(value, percent) for value in values
  )
  return f'{mean} [{", ".join(ends)}]' if ends else mean


def markdown(found: Sequence[Row]) -> str:
  """Returns the tables of every stage."""
  stages = _by('stage', found)
  parts = []
  for stage, same in stages.items():
    parts += [f'## {stage}'] * (len(stages) > 1)
    tokens = [row['tokens'] for row in same if 'tokens' in row]
    parts += [table(same)]
    if tokens:
      parts.append(
        f'{report.FINE_TUNED} has read {np.mean(tokens):,.0f} tokens, three '
        'times in a step forward and back, beside its evaluation.'
      )
    parts += [
      differences(same),
      'Mean differences on test, line less column, of runs with the same draw '
      "and seed, with Student's 95 % intervals; runs of one draw share its dev "
      'items, and all runs their test items.',
    ]
  return '\n\n'.join(parts)


def draw(
  folder: pathlib.Path,
  found: Sequence[Row],
  finished: Mapping[str, Mapping[str, Any]],
) -> list[str]:
  """Draws the best fitness by evaluations of the searches of every stage.

  Takes the folder of the comparison, `rows` of all stages, and the `changes` of
  finished runs by the name of their folder. Returns the names of the pictures.
  """
  series: dict[str, dict[str, list[Any]]] = {}
  for name, changes in finished.items():
    metrics = record.JsonLines(folder / name / 'metrics.jsonl').read()
    best = [(row['evaluations'], row['best_fitness']) for row in metrics]
    same = series.setdefault(changes['stage'], {})
    known = [(count, fitness) for count, fitness in best if fitness is not None]
    same.setdefault(changes['arm'], []).append(known)
  names = []
  for i, (stage, same) in enumerate(_by('stage', found).items()):
    levels = {
      name: np.mean(_numbers(row['dev'] for row in rows))
      for name, rows in _by('name', same).items()
      if name in _LEVELS
    }
    names.append(f'curves_{i}.png' if len(series) > 1 else 'curves.png')
    percent = same[0]['percent']['fitness']
    plots.curves(folder / names[-1], series[stage], levels, percent)
  return names


def _by(field: str, found: Sequence[Row]) -> dict[str, list[Row]]:
  """Rows by their stage or name."""
  groups: dict[str, list[Row]] = {}
  for row in found:
    groups.setdefault(row[field], []).append(row)
  return groups


def _numbers(scores: Iterable[float | None]) -> np.ndarray:
  """Scores, NaN where there is none."""
  return np.asarray([np.nan if s is None else s for s in scores])


def _deviation(scores: np.ndarray, percent: bool) -> str:
  if len(scores) < 2:
    return '-'
  return report.number(np.std(scores, ddof=1), percent)
