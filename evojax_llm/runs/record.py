"""The run folder: what a run leaves on disk, and how it is found again.

  config.json    the configuration, and paths and fingerprints of the inputs
  metrics.jsonl  a line a generation
  members.jsonl  a line a scored member: id, parents, operator, scores
  items/         what each of them did on each item (see `fitness.item_log`)
  checkpoints/   the run state (see `checkpoint`)
  fine_tuned/    the adapter of the baseline that learns
  best/, summary.json, summary.md, curve.png   written at the end, and of a
                 front front/, front.json, front.png

Lines are written before the checkpoint of their generation. A run that goes on
from a checkpoint cuts both files back to it; but for `seconds` and `time` they
then end as they would have without the interruption.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import itertools
import json
import math
import os
import pathlib
from typing import Any
from typing import TypeVar

import numpy as np

from evojax_llm import files as files_lib
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.population import hosts
from evojax_llm.runs import differences
from evojax_llm.runs import errors
from evojax_llm.runs.checkpoint import Checkpoints
from evojax_llm.runs.checkpoint import WorkdirLock
from evojax_llm.runs.errors import CheckpointError

_T = TypeVar('_T')
# What a killed process may have left in a new folder, or a sweep whose trial
# could not begin.
_OURS = ('lock', 'config.json.part', 'error.txt')
_FOLDERS = (
  'checkpoints',
  'items',
  'baseline_items',
  'fine_tuned',
  'test_items',
  'best',
  'front',
)
_PARTS = (*_FOLDERS, 'config.json', 'metrics.jsonl', 'members.jsonl')
_PARTS += ('baselines.json', 'summary.json', 'summary.md', 'curve.png')
_PARTS += ('front.json', 'front.png', 'estimate.json')
_FOLLOWS = {
  'metrics.jsonl': 'tokens, seconds and failures of the summary, and its curve,'
  ' are of the others.',
  'members.jsonl': 'the lineage in the summary lacks their members.',
  'items': 'what their members did on the items is not known any more.',
}
AGAIN = (
  'When the command of the run is given again, with its folder as --workdir, '
  'what can be made again is.'
)
# Settings that a run may be given otherwise when it goes on.
_CHANGES_NOTHING = ('require_signal', 'checkpoint_every')
# Ends of a search, which can be put off. They change nothing before them, but
# that by `evaluations` members of the last generation fail: it is made again.
_ENDS = ('generations', 'evaluations', 'patience', 'tokens', 'seconds')


class RunFolder:
  """The folder of one run, made if need be and held by this process alone.

  Configuration, fingerprints of inputs and the paths of these are JSON types.

  Raises:
    CheckpointError: the folder is in use, or not of such a run.
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
    self.checkpoints = Checkpoints(hosts.shared(self.path / 'checkpoints'))
    self.metrics = JsonLines(
      self.path / 'metrics.jsonl',
      ('scored', 'failed', 'tokens', 'seconds', 'best_fitness', 'mean_fitness'),
    )
    self.members = JsonLines(
      self.path / 'members.jsonl', ('id', 'parents', 'operator', 'tasks')
    )
    self.items = ItemLog(self.path / 'items')

  @property
  def finished(self) -> bool:
    """Whether the run's report has been written, and is not damaged."""
    return read_summary(self.path) is not None

  def rewind(self, generation: int) -> None:
    """Drops the lines and files of later generations; -1 drops all."""
    self.metrics.rewind(generation)
    self.members.rewind(generation)
    self.items.rewind(generation)

  def lost(self, generation: int) -> dict[str, str]:
    """Says by file what is lost of these generations, and what follows."""
    metrics = {row['generation']: row['scored'] for row in self.metrics.read()}
    rows = self.members.read()
    members = collections.Counter(row['generation'] for row in rows)
    items = set(self.items.generations())
    said = {}
    for name, is_gap in (
      ('metrics.jsonl', lambda g: g not in metrics),
      ('members.jsonl', lambda g: members[g] < metrics.get(g, 1)),
      ('items', lambda g: g not in items),
    ):
      if gap := list(filter(is_gap, range(generation + 1))):
        which = ', '.join(map(str, gap[:8])) + ', ...' * (len(gap) > 8)
        said[name] = (
          f'generations {which} of {self.path / name} are lost or damaged: '
          f'{_FOLLOWS[name]}'
        )
    return said

  def close(self) -> None:
    """Waits for the last checkpoint, which may fail; releases the folder."""
    try:
      self.checkpoints.close()
    finally:
      self._lock.release()

  def _claim(self, wanted: dict[str, Any]) -> None:
    for path in self.path.iterdir():
      if path.is_dir() != (path.name in _FOLDERS) and path.name in _PARTS:
        kinds = ('a folder', 'a file')[:: 1 if path.is_dir() else -1]
        raise CheckpointError(
          f'{path} is {kinds[0]}; expected {kinds[1]} of the run. Move it away '
          'and give the same command again.'
        )
    path = self.path / 'config.json'
    if not path.exists():
      if others := sorted({p.name for p in self.path.iterdir()} - {*_OURS}):
        raise CheckpointError(
          f'{self.path} is not empty and not the folder of a run (it holds '
          f'{", ".join(others[:5])}). Name a new or empty workdir.'
        )
      write_json(path, wanted)
      return
    kept = read_config(self.path)
    settings = [differences.filled(half['config']) for half in (kept, wanted)]
    for half, name in itertools.product(settings, _CHANGES_NOTHING):
      del half[name]
    if later := self._later_ends(*settings):
      settings[0]['strategy'] = {**settings[0]['strategy'], **later}
    found = differences.compare(*settings)
    found += differences.inputs(
      kept['inputs'], wanted['inputs'], wanted['files']
    )
    if found:
      shown, hint = '\n  '.join(found[:12]), ''
      fixed = [f'strategy.{name}:' for name in ('population', *_ENDS)]
      if any(line.startswith(tuple(fixed)) for line in found):
        hint = (
          ' A population does not grow or shrink within a run, and a run can '
          f'be given more {", ".join(_ENDS)} but not less: begin another one '
          'from the members of this one with '
          f'--config.warm_start={self.path}.'
        )
      raise CheckpointError(
        f'{self.path} belongs to a run with other settings or inputs:\n  '
        f'{shown}\nGive the same ones to go on with it, or another workdir.'
        f'{hint}'
      )
    if later:
      if summary := read_summary(self.path):
        # What an end has said stays; the settings follow it, so that a process
        # that is killed between the two does the rest.
        kept_as = f'summary_{summary["generations"]}.json'
        os.replace(self.path / 'summary.json', self.path / kept_as)
      write_json(path, {**kept, 'config': wanted['config']})

  def earlier_ends(self) -> list[int]:
    """Returns the generations after which the run had ended and went on."""
    found = self.path.glob('summary_[0-9]*.json')
    return sorted(int(path.stem.split('_')[1]) for path in found)

  def _later_ends(
    self, there: Mapping[str, Any], here: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Ends of the search that are later here; none of a run of stages."""
    if here.get('stages'):  # of which some may have ended
      return {}
    old, new = (dict(half.get('strategy') or {}) for half in (there, here))
    ends = [end for end in _ENDS if old.get(end) is not None and end in new]
    return {
      end: new[end] for end in ends if new[end] is None or new[end] > old[end]
    }


class JsonLines:
  """A file of JSON objects, one a line, with `generation` and other fields."""

  def __init__(self, path: pathlib.Path, fields: Sequence[str] = ()):
    self.path, self._fields = path, {'generation', *fields}

  def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows and hands them to the operating system."""
    text = ''.join(json.dumps(plain(row)) + '\n' for row in rows)
    with open(self.path, 'a', encoding='utf-8') as file:
      file.write(text)

  def read(self) -> list[dict[str, Any]]:
    """All rows that are whole."""
    return [row for row, _ in self._rows()]

  def rewind(self, generation: int) -> None:
    """Drops the rows of later generations, and what is no row."""
    if not self.path.exists():
      return
    rows = self._rows()
    kept = b''.join(
      line for row, line in rows if row['generation'] <= generation
    )
    if self.path.read_bytes().startswith(kept):
      os.truncate(self.path, len(kept))  # Needs no room on a full disk.
    else:
      write_bytes(self.path, kept)

  def _rows(self) -> list[tuple[dict[str, Any], bytes]]:
    """(row, its line), without lines that are damaged or cut off."""
    if not self.path.exists():
      return []
    rows = []
    for line in self.path.read_bytes().splitlines(keepends=True):
      with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        whole = isinstance(row, dict) and self._fields <= row.keys()
        if whole and line.endswith(b'\n') and type(row['generation']) is int:
          rows.append((row, line))
    return rows


def new_workdir(root: str | os.PathLike, name: str) -> pathlib.Path:
  """Makes and returns root/name, or root/name_2, ... where it exists."""
  pathlib.Path(root).mkdir(parents=True, exist_ok=True)
  for number in itertools.count(1):
    path = pathlib.Path(root) / (name if number == 1 else f'{name}_{number}')
    with contextlib.suppress(FileExistsError):
      path.mkdir()
      return path


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file that is either whole or not there."""
  write_text(path, json.dumps(plain(value), indent=2) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either whole or not there."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is either whole or not there."""
  part = path.with_name(path.name + '.part')
  part.write_bytes(data)
  os.replace(part, path)


def read_json(path: pathlib.Path, *keys: str) -> Any:
  """Reads a JSON file of a run folder, an object with some keys at least.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  try:
    value = files_lib.read_json(path)
  except files_lib.FileError as error:
    raise CheckpointError(
      f'{error} Is {path.parent} the folder of a run? {AGAIN}'
    ) from None
  with damaged(path, AGAIN):
    for key in keys:
      value[key]
  return value


def read_summary(run: pathlib.Path) -> dict[str, Any] | None:
  """Returns summary.json of a run; None where there is none that is whole."""
  try:
    if (run / 'summary.json').exists():
      return read_json(run / 'summary.json', 'rows')
  except CheckpointError as error:
    errors.say(str(error))
  return None


def read_config(run: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Reads config.json of a run: `config`, `inputs`, and `files` if it has them.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  kept = read_json(run / 'config.json')
  if isinstance(kept, dict) and not {'config', 'inputs'} & kept.keys():
    raise CheckpointError(
      f'{run / "config.json"} is not that of a run; expected a folder that a '
      'run has made.'
    )
  with damaged(run / 'config.json', 'Begin again in a new workdir.'):
    halves = [kept['config'], kept['inputs'], kept.get('files', {})]
    if not all(isinstance(half, dict) for half in halves):
      raise TypeError('its parts are not objects')
  return kept


def kept(
  path: pathlib.Path, read: Callable[[Any], _T], make: Callable[[], Any]
) -> _T:
  """Reads what a JSON file of a run keeps, made again where it is damaged.

  `read` makes the result of its content, and raises where something is missing;
  `make` makes the content, JSON types or arrays of them.
  """
  if path.exists():
    try:
      content = read_json(path)
      with damaged(path, ''):
        return read(content)
    except CheckpointError as error:
      errors.say(f'{error}\n{path.name} is made again')
  write_json(path, make())
  return read(read_json(path))


@contextlib.contextmanager
def damaged(path: pathlib.Path, advice: str) -> Iterator[None]:
  """Blames what goes wrong with the content of a file on damage to it."""
  try:
    yield
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    if type(error).__module__ != 'builtins':  # Errors of our own say more.
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
    return [plain(v) for v in value] if value.ndim else plain(value[()])
  if isinstance(value, np.floating):
    # The shortest decimal that is this float32 again: 0.775, not 0.77499998.
    value = float(str(value))
  if isinstance(value, (np.integer, np.bool_)):
    return value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
