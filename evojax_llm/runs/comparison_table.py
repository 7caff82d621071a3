"""Searches beside plain baselines at equal evaluations, as one table."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import numpy as np

from evojax_llm.runs import report

_LEVELS = ('best expert', 'scaled average')
_EVOLVED = {'evolved': '{}', 'ensemble of evolved': '{}, vote'}
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
    scored: (stage, draw) of baselines that have rows already; added to. They
      are the same for all runs of a stage and draw.
  """
  stage, draw, arm = changes['stage'], changes['draw'], changes['arm']
  with_baselines = (stage, draw) not in scored
  scored.add((stage, draw))
  items = sum(
    task['items'] for task in summary['rows'][0]['dev']['tasks'].values()
  )
  made = []
  for row in summary['rows']:
    name, dev, test = row['name'], row['dev'], row['test']
    group = summary['ensembles'].get(name)
    is_search = name in _EVOLVED
    if not is_search and not with_baselines:
      continue
    seconds = None
    if name == 'evolved':
      seconds = summary['seconds']
      seconds = {**seconds, 'all': round(sum(seconds.values()), 3)}
    heldout = row.get('heldout')
    made.append(
      {
        'stage': stage,
        'draw': draw,
        'name': _EVOLVED[name].format(arm) if is_search else name,
        'seed': changes['seed'] if is_search else None,
        'evaluations': row['evaluations'],
        'items': row['evaluations'] * items,
        'members': len(group['members']) if group else 1,
        'dev': dev['fitness']['score'],
        'test': test['fitness']['score'],
        'test_by_task': {n: t['score'] for n, t in test['tasks'].items()},
        'heldout': heldout and heldout['fitness']['score'],
        'percent': {
          'fitness': dev['fitness']['percent'],
          'heldout': heldout and heldout['fitness']['percent'],
          'tasks': {n: t['percent'] for n, t in test['tasks'].items()},
        },
        'seconds': seconds,
      }
    )
  return made


def table(found: Sequence[Row]) -> str:
  """Mean and spread of each search or baseline of a stage, as Markdown.

  `against best expert` and `against scaled average` are means of paired
  differences on test: the same draw, and with it the same choice by dev.

  Args:
    found: `rows` of one stage. `percent` says which scores are shares. Scores
      are None where scoring failed, and `heldout` where there are no such
      tasks.
  """
  named: dict[str, list[Row]] = {}
  for row in found:
    named.setdefault(row['name'], []).append(row)
  percent = found[0]['percent']
  shown = functools.partial(report.number, percent=percent['fitness'])
  levels = {
    name: {row['draw']: row['test'] for row in named[name]} for name in _LEVELS
  }
  with_heldout = percent['heldout'] is not None
  head = ['', 'runs', 'evaluations', 'items', 'dev', 'test', 'sd', 'lowest']
  head += ['highest', *(f'against {name}' for name in levels)]
  head += ['held out', 'sd'] if with_heldout else []
  head += [*percent['tasks'], 'seconds']
  lines = [head, ['-'] * len(head)]
  for name, same in named.items():
    times = [row['seconds']['all'] for row in same if row['seconds']]
    test = _numbers(row['test'] for row in same)
    cells = [
      name,
      str(len(same)),
      f'{np.mean([row["evaluations"] for row in same]):.0f}',
      f'{np.mean([row["items"] for row in same]):.0f}',
      shown(np.mean(_numbers(row['dev'] for row in same))),
      f'**{shown(np.mean(test))}**',
      _deviation(test, percent['fitness']),
      shown(np.min(test)),
      shown(np.max(test)),
    ]
    for level in levels.values():
      gain = np.mean(test - _numbers(level[row['draw']] for row in same))
      cells.append(('+' if gain >= 0.0 else '') + shown(gain))
    if with_heldout:
      heldout = _numbers(row['heldout'] for row in same)
      cells += [
        report.number(np.mean(heldout), percent['heldout']),
        _deviation(heldout, percent['heldout']),
      ]
    for task, share in percent['tasks'].items():
      scores = _numbers(row['test_by_task'][task] for row in same)
      cells.append(report.number(np.mean(scores), share))
    cells.append(f'{np.median(times):.1f}' if times else '-')
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def markdown(found: Sequence[Row]) -> str:
  """The table of every stage."""
  stages: dict[str, list[Row]] = {}
  for row in found:
    stages.setdefault(row['stage'], []).append(row)
  if len(stages) == 1:
    return table(found)
  return '\n\n'.join(
    f'## {stage}\n\n{table(same)}' for stage, same in stages.items()
  )


def _numbers(scores: Iterable[float | None]) -> np.ndarray:
  """Scores, NaN where there is none."""
  return np.asarray([np.nan if s is None else s for s in scores])


def _deviation(scores: np.ndarray, percent: bool) -> str:
  if len(scores) < 2:
    return '-'
  return report.number(np.std(scores, ddof=1), percent)
