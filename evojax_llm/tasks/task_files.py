"""Tasks: the JSON layouts of published systems, plain JSONL, and Python.

JSON (one object):
  {"dataset" or "name": ..., "dev": [rows], "test": [rows],
   "task_type": ..., "icl_prompt": ..., "format": {...}}  # these are optional
  This is the layout of Model Swarms (arXiv 2410.11163: `dataset`) and of its
  successor toolkit (`name`, `task_type`); files that mix both are read as well.
JSONL, CSV and TSV (one row a line): see `tables`.
Python: 'file.py', 'file.py:Name' or 'package.module:Name'; see `python_task`.
lm-evaluation-harness: 'lm_eval:name'; see `lm_eval_task`.

Rows and the keys of `format` are those of the README. Rows without an id get
their index; published files repeat ids, and a repeated one becomes 'id#index',
so that ids are unique within a split. Without `format.kind` the kind follows
from the rows: choices make it multiple_choice, gold answers that are all
numbers numeric_match, anything else exact_match.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from absl import logging

from evojax_llm import options as options_lib
from evojax_llm.files import is_text
from evojax_llm.lookup import did_you_mean
from evojax_llm.tasks import format as format_lib
from evojax_llm.tasks import tables
from evojax_llm.tasks.rows import read_items
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.task import SPLITS
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import ranked
from evojax_llm.tasks.task import shown
from evojax_llm.tasks.task import typed

_SHOWN = 20  # keys at most that messages are about
_SHOWN_PAIRS = 3


@dataclasses.dataclass(frozen=True)
class Rules:
  """What is allowed in tasks, and what is set for all of them.

  Attributes:
    allow_overlap: read tasks whose items occur both in dev and in test, with a
      warning.
    drop_overlap: leave such items out of dev instead.
    allow_code: read tasks that run generated code, or whose files name code, a
      secret or a file to write.
    skip_bad_rows: leave out rows that cannot be used.
    shots: worked examples before each question; None for what a task says.
    shots_seed: chooses them; None for what a task says.
    system: text before everything else; None for what a task says.
    format: more keys of `format`, for all tasks; None for what a task says.
  """

  allow_overlap: bool = False
  drop_overlap: bool = False
  allow_code: bool = False
  skip_bad_rows: bool = False
  shots: int | None = None
  shots_seed: int | None = None
  system: str | None = None
  format: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def set_in(self, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's format with what is set for all tasks."""
    names = ('shots', 'shots_seed', 'system')
    given = {**self.format, **{name: getattr(self, name) for name in names}}
    return {**options, **{k: v for k, v in given.items() if v is not None}}


def load_task(name: str | pathlib.Path, rules: Rules | None = None) -> Task:
  """Reads a task; see the module for the layouts and their names.

  Raises:
    TaskError: a file that cannot be read, a row, field or option that cannot
      be right (with file, split, row and field), or dev items in test.
  """
  rules = rules or Rules()
  task = _read(str(name), rules)
  if registry.scorer_of(task).runs_code and not rules.allow_code:
    raise TaskError(
      f'{task.source}: a code task runs what the model writes, in a process '
      'with limits on time, memory, files and network. Allow it on a machine '
      f'where that is fine ({typed("allow_code")}).'
    )
  return _without_overlap(task, task, rules)


def load_tasks(
  names: Sequence[str | pathlib.Path], rules: Rules | None = None
) -> tuple[Task, ...]:
  """Reads several tasks.

  Raises:
    ValueError: `names` is one name and no list.
    TaskError: also where two tasks have one name, or the dev items of one are
      test items of another.
  """
  options_lib.check_list('names', names)
  if not names:
    raise TaskError('No task files given: name at least one.')
  rules = rules or Rules()
  tasks = [load_task(name, rules) for name in names]
  for one, other in itertools.combinations(tasks, 2):
    if one.name == other.name:
      raise TaskError(
        f"{one.source} and {other.source} are both named '{one.name}': "
        'results could not be told apart. Rename one ("name" in the file).'
      )
  for i, other in itertools.product(range(len(tasks)), tasks):
    if other.name != tasks[i].name:
      tasks[i] = _without_overlap(tasks[i], other, rules)
  return tuple(tasks)


def _read(name: str, rules: Rules) -> Task:
  if name.startswith('lm_eval:'):
    from evojax_llm.tasks import lm_eval_task

    return lm_eval_task.load(name.removeprefix('lm_eval:'), rules)
  if not is_text(name):
    raise TaskError(f'{name!a}: the name is not UTF-8; rename the file.')
  path = pathlib.Path(os.path.expanduser(name))
  of_python = path.suffix == '.py' or ':' in name
  if of_python and tables.ending(path) not in tables.ENDINGS:
    from evojax_llm.tasks import python_task

    return python_task.load(str(path), rules)
  top = tables.read(path)
  return build(top, str(path), tables.stem(path), rules)


def build(
  top: Any, path: str, name: str, rules: Rules, scorer: Any = None
) -> Task:
  """Makes the task of what a file holds.

  It has the given name where the file gives none, and a scorer of its own in
  place of one of the table where there is one.

  Raises:
    TaskError: as `load_task`.
  """
  if not isinstance(top, dict):
    raise TaskError(
      f'{path}: expected an object with "dev" and "test", got {shown(top)}.'
    )
  unknown = [key for key in top if key not in tables.TOP_KEYS][:_SHOWN]
  for key in unknown:
    if meant := did_you_mean(key, tables.TOP_KEYS):
      raise TaskError(f"{path}: unknown key '{key}'.{meant}")
  if 'dev' not in top:
    given = ', '.join(list(map(str, top))[:_SHOWN]) or 'nothing'
    raise TaskError(
      f'{path}: no "dev" rows; the file has {given}. Call the rows that a '
      'search may see "dev", and the sealed ones "test".'
    )
  for key in unknown:
    logging.warning("%s: key '%s' is ignored.", path, key)
  options = {} if top.get('format') is None else top['format']
  if not isinstance(options, dict):
    raise TaskError(
      f"{path}, 'format': expected an object, got {shown(options)}."
    )
  task_type = top.get('task_type')
  if not rules.allow_code:
    format_lib.check_code(options, task_type, path)
  options = rules.set_in(options)
  kind, named_by, extra = format_lib.named_kind(options, task_type, path)
  options = {**extra, **options}
  needs = scorer or (registry.scorer_class(kind) if kind else Scorer)
  skip = rules.skip_bad_rows
  splits = {
    split: read_items(top.get(split, []), path, split, needs, skip)
    for split in SPLITS
  }
  items = splits['dev'] + splits['test']
  if not items:
    raise TaskError(f'{path}: there are no rows in "dev" or "test".')
  if len({item.choices is None for item in items}) > 1:
    raise TaskError(f'{path}: only one of "dev" and "test" has choices.')
  if scorer is None:
    kind = format_lib.infer_kind(items, kind, named_by, path)
  else:
    kind = 'python'
  format_, scorer_options, judge = format_lib.read_format(
    options, kind, path, scorer
  )
  for split, read in splits.items():
    splits[split] = format_lib.usable(read, split, judge, path, skip)
  bad_rows = sum(len(top.get(split, [])) for split in SPLITS)
  bad_rows -= sum(map(len, splits.values()))
  texts = {}
  for key in ('name', 'dataset', 'icl_prompt'):
    texts[key] = '' if top.get(key) is None else top[key]
    line = key == 'icl_prompt' or all(c >= ' ' for c in str(texts[key]))
    if not (is_text(texts[key]) and line):
      what = 'text' if key == 'icl_prompt' else 'text of one line'
      raise TaskError(
        f"{path}, '{key}': expected {what}, got {shown(top[key])}."
      )
  task = Task(
    name=texts['name'] or texts['dataset'] or name,
    kind=kind,
    dev=splits['dev'],
    test=splits['test'],
    format=format_,
    icl_prompt=texts['icl_prompt'],
    source=path,
    options=scorer_options,
    scorer=scorer,
    left_out={'bad rows': bad_rows} if bad_rows else {},
  )
  where = f"{path}, 'format'"
  shots = format_lib.whole(options, 'shots', 0, 0, where)
  seed = format_lib.whole(options, 'shots_seed', 0, 0, where)
  return _with_shots(task, shots, seed) if shots else task


def _with_shots(task: Task, count: int, seed: int) -> Task:
  """Returns a task that shows some of its dev items and scores the others.

  Copies of a shot leave dev as well, and what is in test is no shot.
  """
  tested = {item.identity for item in task.test}
  shots: dict[Any, Item] = {}
  for index in ranked(task.dev, f'shots\0{seed}\0{task.name}'):
    identity = task.dev[index].identity
    if len(shots) < count and identity not in tested:
      shots.setdefault(identity, task.dev[index])
  rest = tuple(item for item in task.dev if item.identity not in shots)
  if len(shots) < count or not rest:
    raise TaskError(
      f'{task.source}: {count} shots of {len(task.dev)} dev items, of which '
      'some must be left to score. Ask for fewer shots.'
    )
  if not all(shot.answer for shot in shots.values()):
    raise TaskError(f'{task.source}: shots need items with gold answers.')
  return dataclasses.replace(task, dev=rest, shots=tuple(shots.values()))


def _without_overlap(task: Task, other: Task, rules: Rules) -> Task:
  """Refuses or drops dev items of a task that are test items of one."""
  pairs = find_overlap(task.dev, other.test)
  if not pairs:
    return task
  whose = '' if other is task else f' of {other.source}'
  message = (
    f'{task.source}: {len(pairs)} of {len(task.dev)} dev items occur in test'
    f'{whose} as well'
  )
  which = '\n'.join(_described(*pair) for pair in pairs[:_SHOWN_PAIRS])
  if len(pairs) > _SHOWN_PAIRS:
    which += f'\n  ... and {len(pairs) - _SHOWN_PAIRS} more'
  if rules.drop_overlap and len(pairs) < len(task.dev):
    logging.warning('%s, and are left out of dev:\n%s', message, which)
    dropped = {item.id for item, _ in pairs}
    dev = tuple(item for item in task.dev if item.id not in dropped)
    count = task.left_out.get('overlapping items', 0) + len(pairs)
    left_out = {**task.left_out, 'overlapping items': count}
    return dataclasses.replace(task, dev=dev, left_out=left_out)
  message += f', so that a search on dev has seen the test:\n{which}'
  if not rules.allow_overlap:
    raise TaskError(
      f'{message}\nLeave them out of dev ({typed("drop_overlap")}); or allow '
      f'the overlap ({typed("allow_overlap")}), and do not report the test '
      'score as unseen.'
    )
  logging.warning('%s', message)
  return task


def find_overlap(
  dev: Sequence[Item], test: Sequence[Item]
) -> list[tuple[Item, Item]]:
  """Returns pairs (dev item, test item) that are the same, in dev order.

  Every dev item occurs at most once, with the first test item that equals it.
  """
  first: dict[Any, Item] = {}
  for item in test:
    first.setdefault(item.identity, item)
  matches = ((item, first.get(item.identity)) for item in dev)
  return [(a, b) for a, b in matches if b is not None]


def _described(a: Item, b: Item) -> str:
  # Questions may share a long preamble; what tells them apart comes last.
  text = ' '.join(a.question.split())
  text = text if len(text) <= 80 else '...' + text[-77:]
  return f"  dev '{a.id}' = test '{b.id}': {text}"
