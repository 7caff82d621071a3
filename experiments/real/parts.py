"""Task files in three parts: what experts learn from, dev and test.

What an item is, up to case, white space and the order of its options, decides
together with a seed which part it is in: an item that occurs twice, in one file
or in two, is in one part alone.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import json
import pathlib
from typing import Any

from evojax_llm import files
from evojax_llm.commands.command import UserError
from evojax_llm.tasks import tables
from evojax_llm.tasks import task_files
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task

PARTS = ('train', 'dev', 'test')
# Of all items: the first fifths are learnt from, one is searched on.
_TRAIN, _DEV = 0.4, 0.6
# Options are scored by their texts, which small models tell apart sooner than
# letters.
_FORMAT = {'choice': 'text', 'norm': 'characters'}


def find(data: str, tasks: Sequence[str]) -> list[pathlib.Path]:
  """Returns task files by their names in a folder, or all of it.

  Raises:
    UserError: there is none of a name, or two have one name.
  """
  folder = pathlib.Path(data).expanduser()
  if tasks:
    found = [
      folder / (name if tables.ending(pathlib.Path(name)) else f'{name}.json')
      for name in tasks
    ]
  else:
    found = sorted(folder.glob('*.json'))
  if not found:
    raise UserError(
      f'--data={data} has no task files (*.json); expected a folder of some.'
    )
  for path in found:
    if not path.is_file():
      tables.read(path)  # Says what there is.
  stems = [tables.stem(path) for path in found]
  if twice := {stem for stem in stems if stems.count(stem) > 1}:
    raise UserError(f'--tasks names {min(twice)} twice.')
  return found


def part(item: Item, seed: int) -> str:
  """Returns the part that an item is in."""
  text = json.dumps([seed, item.identity])
  digest = hashlib.sha256(text.encode()).digest()
  share = int.from_bytes(digest[:8], 'big') / 2**64
  return PARTS[(share >= _TRAIN) + (share >= _DEV)]


def split(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """Returns what a task file holds, with a list of rows for each part.

  Raises:
    TaskError: it cannot be read.
    UserError: a part would be empty.
  """
  top = dict(tables.read(path))
  # Of a file that repeats its dev items in test, one of each is kept.
  task = task_files.load_task(path, task_files.Rules(allow_overlap=True))
  if task.shots:
    raise UserError(
      f'{path}: has shots, which are dev items: leave format.shots out.'
    )
  parts: dict[str, list[Any]] = {name: [] for name in PARTS}
  seen = set()
  for name in ('dev', 'test'):
    rows = zip(top.get(name, ()), getattr(task, name), strict=True)
    for row, item in rows:
      if item.identity not in seen:
        seen.add(item.identity)
        parts[part(item, seed)].append({**row, 'id': f'{name} {item.id}'})
  if empty := [name for name, rows in parts.items() if not rows]:
    raise UserError(
      f'{path}: none of its {len(seen)} items falls to {empty[0]}; expected a '
      'file with more of them, or another --seed.'
    )
  if task.kind == 'multiple_choice':
    top['format'] = {**_FORMAT, **(top.get('format') or {})}
  return {**top, **parts}


def write(
  out: pathlib.Path, paths: Sequence[pathlib.Path], seed: int
) -> dict[str, Task]:
  """Writes tasks/NAME.json with dev and test, and split.json.

  Returns:
    Tasks to learn from by name, in the order of the files: `dev` has the rows.
  """
  tasks, known = {}, {}
  (out / 'tasks').mkdir(parents=True, exist_ok=True)
  for path in paths:
    whole, name = split(path, seed), tables.stem(path)
    train = whole.pop('train')
    write_json(out / 'tasks' / f'{name}.json', whole)
    of_train = {**whole, 'dev': train, 'test': []}
    tasks[name] = task_files.build(
      of_train, str(path), name, task_files.Rules()
    )
    rows = {'train': train, 'dev': whole['dev'], 'test': whole['test']}
    known[name] = {
      'file': str(path.absolute()),
      'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
      **{part: [row['id'] for row in of] for part, of in rows.items()},
    }
  write_json(out / 'split.json', {'seed': seed, 'tasks': known})
  return tasks


def share_out(
  tasks: Mapping[str, Task], count: int
) -> dict[str, tuple[str, tuple[Item, ...]]]:
  """Returns the items of experts by name, with their task: disjoint parts.

  Raises:
    UserError: there are more tasks than experts.
  """
  if count < len(tasks):
    raise UserError(
      f'Got --experts={count} for {len(tasks)} tasks; expected as many at '
      'least, or fewer tasks (--tasks=NAME,NAME).'
    )
  shared = {}
  for number, (name, task) in enumerate(tasks.items()):
    own = len(range(number, count, len(tasks)))
    for i in range(own):
      expert = f'{name}_{i + 1}' if own > 1 else name
      shared[expert] = name, task.dev[i::own]
  return shared


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON that is there whole or not at all."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + '\n')
  partial.replace(path)


def read_experts(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what experts.json says of a folder that was built.

  Raises:
    UserError: it is not there, or is damaged.
  """
  path = folder / 'experts.json'
  if not path.is_file():
    raise UserError(
      f'{path}: no such file; build the experts with python -m '
      f'experiments.real.build --data=FOLDER --out={folder}'
    )
  return files.read_object(path, UserError)
