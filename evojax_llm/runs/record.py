"""The run folder: what a run leaves on disk, and how it is found again.

  config.json    the resolved configuration and fingerprints of the inputs
  metrics.jsonl  a line a generation
  members.jsonl  a line a scored member: id, parents, operator, scores
  items/         what each of them did on each item (see `fitness.item_log`)
  checkpoints/   the run state (see `checkpoint`)
  best/, summary.json, summary.md, curve.png   written at the end

Lines are written before the checkpoint of their generation. A run that goes on
from a checkpoint cuts both files back to it; but for `seconds` and `time` they
then end as they would have without the interruption.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import datetime
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from evojax_llm import files as files_lib
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.runs.checkpoint import Checkpoints
from evojax_llm.runs.checkpoint import WorkdirLock
from evojax_llm.runs.errors import CheckpointError
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.evolution import Generation

# What a killed process may have left in a new folder, or a sweep whose trial
# could not begin.
_OURS = ('lock', 'config.json.part', 'error.txt')
# Settings that a run may be given otherwise when it goes on.
_CHANGES_NOTHING = ('require_signal',)


class RunFolder:
  """The folder of one run, held by this process alone.

  Args:
    path: the folder; made if there is none.
    config: the resolved configuration, JSON types only.
    inputs: fingerprints of what the run reads, JSON types only.
    files: their paths, one for each fingerprint.

  Raises:
    CheckpointError: the folder is in use, holds something else than a run, or
      belongs to a run of another configuration.
    OSError: it cannot be made.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
  ):
    self.path = pathlib.Path(path).absolute()
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = WorkdirLock(self.path)
    wanted = {'config': config, 'inputs': inputs or {}, 'files': files or {}}
    try:
      self._claim(json.loads(json.dumps(wanted)))
    except BaseException:
      self._lock.release()
      raise
    self.checkpoints = Checkpoints(self.path / 'checkpoints')
    self.metrics = JsonLines(self.path / 'metrics.jsonl')
    self.members = JsonLines(self.path / 'members.jsonl')
    self.items = ItemLog(self.path / 'items')

  @property
  def finished(self) -> bool:
    """Whether the run's report has been written."""
    return (self.path / 'summary.json').exists()

  def rewind(self, generation: int) -> None:
    """Drops the lines and files of later generations; -1 drops all."""
    self.metrics.rewind(generation)
    self.members.rewind(generation)
    self.items.rewind(generation)

  def write(
    self, members: Iterable[Mapping[str, Any]], metrics: Mapping[str, Any]
  ) -> None:
    """Adds the lines of a generation; call before its checkpoint is saved."""
    self.members.append(members)
    self.metrics.append([metrics])

  def close(self) -> None:
    """Waits for the last checkpoint and releases the folder.

    Raises:
      OSError: the last checkpoint could not be written.
    """
    try:
      self.checkpoints.close()
    finally:
      self._lock.release()

  def _claim(self, wanted: dict[str, Any]) -> None:
    path = self.path / 'config.json'
    if not path.exists():
      others = sorted(
        p.name for p in self.path.iterdir() if p.name not in _OURS
      )
      if others:
        raise CheckpointError(
          f'{self.path} is not empty and not the folder of a run (it holds '
          f'{", ".join(others[:5])}). Name a new or empty workdir.'
        )
      write_json(path, wanted)
      return
    kept = read_config(self.path)
    settings = [
      {k: v for k, v in half['config'].items() if k not in _CHANGES_NOTHING}
      for half in (kept, wanted)
    ]
    differences = compare(*settings)
    differences += _changed(kept['inputs'], wanted['inputs'], wanted['files'])
    if differences:
      shown = '\n  '.join(differences[:12])
      hint = ''
      if any(line.startswith('strategy.population:') for line in differences):
        hint = (
          ' A population does not grow or shrink within a run: begin another '
          f'one from its members with --config.warm_start={self.path}.'
        )
      raise CheckpointError(
        f'{self.path} belongs to a run with other settings or inputs:\n  '
        f'{shown}\nGive the same ones to go on with it, or another workdir.'
        f'{hint}'
      )


class JsonLines:
  """A file of JSON objects, one a line, each with a field `generation`."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows and hands them to the operating system."""
    text = ''.join(json.dumps(plain(row)) + '\n' for row in rows)
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(text)

  def read(self) -> list[dict[str, Any]]:
    """All complete rows."""
    return [row for row, _ in self._rows()]

  def rewind(self, generation: int) -> None:
    """Cuts the file behind the last row of `generation`."""
    ends = [e for row, e in self._rows() if row['generation'] <= generation]
    if self.path.exists():
      os.truncate(self.path, max(ends, default=0))

  def _rows(self) -> list[tuple[dict[str, Any], int]]:
    """(row, offset behind it), up to a line that was cut off in writing."""
    if not self.path.exists():
      return []
    rows, end = [], 0
    for line in self.path.read_bytes().splitlines(keepends=True):
      end += len(line)
      try:
        row = json.loads(line)
        row['generation']
      except (ValueError, KeyError, TypeError):
        break
      if not line.endswith(b'\n'):
        break
      rows.append((row, end))
    return rows


def member_rows(
  generation: Generation,
  operator_names: Sequence[str],
  tasks: Sequence[str],
  origins: Sequence[Mapping[str, Any]],
  recipes: Sequence[Any] = (),
) -> list[dict[str, Any]]:
  """Returns the lines of members.jsonl that a generation of K tasks adds.

  `origins` has `operator`, `parents` and `experts` of the initial population,
  `recipes` what the first members of the generation are, where that is short.
  """
  rows = []
  for i, member in enumerate(generation.ids):
    row = {'generation': generation.number, 'id': member}
    if generation.number == 0:
      row.update(origins[i])
    else:
      row['operator'] = operator_names[generation.operators[i]]
      row['parents'] = [p for p in generation.parents[i] if p >= 0]
    row['fitness'] = generation.fitness[i]
    row['tasks'] = _by_task(tasks, generation.task_scores[i])
    row['reason'] = generation.reasons[i]
    row |= {'recipe': recipes[i]} if i < len(recipes) else {}
    rows.append(row)
  return rows


def metrics_row(
  generation: Generation,
  tasks: Sequence[str],
  seconds: Mapping[str, float],
  tokens: int = 0,
) -> dict[str, Any]:
  """Returns the line of metrics.jsonl for a generation of K tasks.

  `seconds` is wall time by part, 'checkpoint' that of the generation before;
  `tokens` were read and generated.
  """
  return {
    'generation': generation.number,
    'evaluations': generation.evaluations,
    'scored': len(generation.ids),
    'failed': generation.failed,
    'best_id': generation.best_id,
    'best_fitness': generation.best_fitness,
    'best_tasks': _by_task(tasks, generation.best_task_scores),
    'mean_fitness': generation.mean_fitness,
    'tokens': tokens,
    'seconds': {part: round(s, 4) for part, s in seconds.items()},
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def lineage_of(
  member: int, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns a member and its ancestors, eldest first, from members.jsonl."""
  by_id = {row['id']: row for row in rows}
  ids, queue = set(), [member]
  while queue:
    current = queue.pop()
    if current not in ids and current in by_id:
      ids.add(current)
      queue += by_id[current]['parents']
  kept = ('id', 'generation', 'operator', 'parents', 'experts', 'fitness')
  return [
    {name: by_id[i][name] for name in kept if name in by_id[i]}
    for i in sorted(ids)
  ]


def compare(old: Any, new: Any, name: str = '') -> list[str]:
  """Lists 'strategy.population: 10 there, 20 here' for all that differs."""
  if isinstance(old, dict) and isinstance(new, dict):
    differences = []
    for key in sorted(old.keys() | new.keys()):
      inner = f'{name}.{key}' if name else key
      differences += compare(old.get(key), new.get(key), inner)
    return differences
  return [] if old == new else [f'{name}: {old!r} there, {new!r} here']


def _changed(
  old: Mapping[str, Any], new: Mapping[str, Any], files: Mapping[str, Any]
) -> list[str]:
  """Lists the inputs whose fingerprints differ, by path where it is known."""
  lines = []
  for kind in sorted(old.keys() | new.keys()):
    there, here, path = old.get(kind), new.get(kind), files.get(kind)
    if there == here:
      continue
    if isinstance(here, str) and isinstance(path, str):
      there, here, path = [there], [here], [path]
    if not path or not there or len(there) != len(here):
      lines += compare(there, here, f'inputs.{kind}')
      continue
    lines += [
      f'{name}: not what the run has read of it ({kind})'
      for a, b, name in zip(there, here, path, strict=True)
      if a != b
    ]
  return lines


def new_workdir(root: str | os.PathLike, name: str) -> pathlib.Path:
  """Makes and returns root/name, or root/name_2, ... where it exists."""
  root = pathlib.Path(root)
  root.mkdir(parents=True, exist_ok=True)
  number = 1
  while True:
    path = root / (name if number == 1 else f'{name}_{number}')
    try:
      path.mkdir()
      return path
    except FileExistsError:
      number += 1


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file that is either whole or not there."""
  write_text(path, json.dumps(plain(value), indent=2) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either whole or not there."""
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file of a run folder.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  try:
    return files_lib.read_json(path)
  except files_lib.FileError as error:
    raise CheckpointError(
      f'{error} Is {path.parent} the folder of a run? If so it is damaged; '
      'start again in a new workdir.'
    ) from None


def read_config(run: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Reads config.json of a run: `config`, `inputs`, and `files` if it has them.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  path = run / 'config.json'
  kept = read_json(path)
  with damaged(path, 'Start again in a new workdir.'):
    halves = [kept['config'], kept['inputs'], kept.get('files', {})]
    if not all(isinstance(half, dict) for half in halves):
      raise TypeError('its parts are not objects')
  return kept


@contextlib.contextmanager
def damaged(path: pathlib.Path, advice: str) -> Iterator[None]:
  """Blames what goes wrong with the content of a file on damage to it."""
  try:
    yield
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    if isinstance(error, UserError):
      raise
    what = f'no {error}' if isinstance(error, KeyError) else str(error)
    raise CheckpointError(f'{path} is damaged: {what}. {advice}') from error


def plain(value: Any) -> Any:
  """Returns JSON types: arrays become lists, NaN and infinity null."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return [plain(v) for v in value]
  if isinstance(value, np.floating):
    # The shortest decimal that is this float32 again: 0.775, not 0.77499998.
    value = float(str(value))
  if isinstance(value, (np.integer, np.bool_)):
    return value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _by_task(tasks: Sequence[str], scores: np.ndarray) -> dict[str, Any]:
  return dict(zip(tasks, scores, strict=True))
