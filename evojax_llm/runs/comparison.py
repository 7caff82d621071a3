"""The parts of a comparison: what is kept of them, and the table of all."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs.errors import UserError

_LEVELS = ('best expert', 'scaled average')
Row = dict[str, Any]


class Parts:
  """What is done of a comparison, a line a part, so that the rest can follow.

  The folder is this process's alone until `close`.

  Args:
    folder: new, or of a comparison with the same settings.
    settings: JSON types; what must not change between its parts.

  Raises:
    UserError: the folder is in use, cannot be made, or holds something else
      or other settings.
  """

  def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
    self._path = folder / 'parts.jsonl'
    self._known = folder / 'settings.json'
    with errors.as_user_error(
      checkpoint.CheckpointError, OSError, what=f'--out={folder}'
    ):
      if folder.is_dir() and not self._known.exists():
        if any(file.name != 'lock' for file in folder.iterdir()):
          raise UserError(
            f'--out={folder} is not empty and no comparison; name a new folder.'
          )
      folder.mkdir(parents=True, exist_ok=True)
      self._lock = checkpoint.WorkdirLock(folder)
    try:
      self._settings = self._joined(json.loads(json.dumps(settings)))
    except BaseException:
      self.close()
      raise
    self._done: dict[tuple, list[Row]] = {}
    end = 0
    for part, rows, after in self._read():
      self._done[part] = rows
      end = after
    if self._path.exists():
      os.truncate(self._path, end)

  def close(self) -> None:
    """Lets other processes in."""
    self._lock.release()

  def _joined(self, settings: dict[str, Any]) -> dict[str, Any]:
    """These settings, with the arms that are there already."""
    known, folder = self._known, self._known.parent
    if known.exists():
      # More arms may join; what is there stays what it was.
      there = record.read_json(known)
      both = there['arms'].keys() & settings['arms'].keys()
      differences = record.compare(
        {**there, 'arms': {arm: there['arms'][arm] for arm in both}},
        {**settings, 'arms': {arm: settings['arms'][arm] for arm in both}},
      )
      if differences:
        shown = '\n  '.join(differences[:12])
        raise UserError(
          f'--out={folder} is a comparison with other settings:\n  {shown}\n'
          'Name a new folder, or give the same settings to go on.'
        )
      settings['arms'] = {**there['arms'], **settings['arms']}
    return settings

  def __contains__(self, part: tuple) -> bool:
    return part in self._done

  def add(self, part: tuple, rows: Sequence[Row]) -> None:
    """Keeps the rows of a part: all of them, or none if we are killed."""
    # With the first part: what was refused before it leaves no settings.
    record.write_json(self._known, self._settings)
    line = json.dumps({'part': list(part), 'rows': record.plain(list(rows))})
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(line + '\n')
    self._done[part] = json.loads(line)['rows']

  @property
  def rows(self) -> list[Row]:
    """Rows of all parts, in the order in which they were done."""
    return [row for rows in self._done.values() for row in rows]

  def _read(self) -> Iterator[tuple[tuple, list[Row], int]]:
    """(part, its rows, offset behind them) up to a line that was cut off."""
    if not self._path.exists():
      return
    end = 0
    for line in self._path.read_bytes().splitlines(keepends=True):
      end += len(line)
      try:
        found = json.loads(line)
      except ValueError:
        return
      if not line.endswith(b'\n'):
        return
      yield tuple(found['part']), found['rows'], end


def table(rows: Sequence[Row]) -> str:
  """Mean and spread of each search or baseline of a stage, as Markdown.

  `against best expert` and `against scaled average` are means of paired
  differences on test: the same draw, and with it the same choice by dev.

  Args:
    rows: of one stage, with `name`, `draw`, `evaluations`, `items`, `dev`,
      `test`, `test_by_task`, `heldout` and `percent`, which says of the last
      four (of `test_by_task` by task) whether they are shares. Scores are None
      where scoring failed, and `heldout` is where there are no such tasks.
  """
  named: dict[str, list[Row]] = {}
  for row in rows:
    named.setdefault(row['name'], []).append(row)
  percent = rows[0]['percent']
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
  for name, found in named.items():
    times = [row['seconds']['all'] for row in found if row['seconds']]
    test = _numbers(row['test'] for row in found)
    cells = [
      name,
      str(len(found)),
      f'{np.mean([row["evaluations"] for row in found]):.0f}',
      f'{np.mean([row["items"] for row in found]):.0f}',
      shown(np.mean(_numbers(row['dev'] for row in found))),
      f'**{shown(np.mean(test))}**',
      _deviation(test, percent['fitness']),
      shown(np.min(test)),
      shown(np.max(test)),
    ]
    for level in levels.values():
      gain = np.mean(test - _numbers(level[row['draw']] for row in found))
      cells.append(('+' if gain >= 0.0 else '') + shown(gain))
    if with_heldout:
      heldout = _numbers(row['heldout'] for row in found)
      cells += [
        report.number(np.mean(heldout), percent['heldout']),
        _deviation(heldout, percent['heldout']),
      ]
    for task, share in percent['tasks'].items():
      scores = _numbers(row['test_by_task'][task] for row in found)
      cells.append(report.number(np.mean(scores), share))
    cells.append(f'{np.median(times):.1f}' if times else '-')
    lines.append(cells)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def markdown(rows: Sequence[Row]) -> str:
  """The table of every stage."""
  stages: dict[str, list[Row]] = {}
  for row in rows:
    stages.setdefault(row['stage'], []).append(row)
  if len(stages) == 1:
    return table(rows)
  return '\n\n'.join(
    f'## {stage}\n\n{table(found)}' for stage, found in stages.items()
  )


def _numbers(scores: Iterable[float | None]) -> np.ndarray:
  """Scores, NaN where there is none."""
  return np.asarray([np.nan if s is None else s for s in scores])


def _deviation(scores: np.ndarray, percent: bool) -> str:
  if len(scores) < 2:
    return '-'
  return report.number(np.std(scores, ddof=1), percent)
