"""Tasks: the JSON layouts of published systems, plain JSONL, and Python.

JSON (one object):
  {"dataset" or "name": ..., "dev": [rows], "test": [rows],
   "task_type": ..., "icl_prompt": ..., "format": {...}}  # these are optional
  This is the layout of Model Swarms (arXiv 2410.11163: `dataset`) and of its
  successor toolkit (`name`, `task_type`); files that mix both are read as well.
JSONL (one row a line):
  Each row says {"split": "dev"} or {"split": "test"}; or no row does, and all
  of them are dev. The task is named after the file.
Python:
  'file.py', 'file.py:Name' or 'package.module:Name': a class; see
  evojax_llm.tasks.python_task.
lm-evaluation-harness:
  'lm_eval:name'; see evojax_llm.tasks.lm_eval_task.

A row has a `question` (or `input`, `prompt`), an `answer` (or `output`), and
for multiple choice `choices`, an object {key: text} with the answer as one of
its keys. A list of answers means that any of them is right. It may have an
`id`; what else it has is ignored. Rows without an id get their index; published
files repeat ids, and a repeated one becomes 'id#index', so that ids are unique
within a split.

The kind is a name of `tasks.scorers.registry`, or 'package.module:Class'.
Without `format.kind` it follows from the rows: choices make it multiple_choice,
gold answers that are all numbers numeric_match, anything else exact_match.

`format` may hold `kind`; prompt, instruction, choice, system, shots,
shots_seed, max_new_tokens and stop (see evojax_llm.tasks.task.Format); and
the options of the kind's scorer.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging

from evojax_llm.lookup import did_you_mean
from evojax_llm.tasks import format as format_lib
from evojax_llm.tasks import overlap
from evojax_llm.tasks.rows import read_items
from evojax_llm.tasks.rows import shown
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.task import SPLITS
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import ranked

_TOP_KEYS = tuple('name dataset task_type dev test icl_prompt format'.split())


@dataclasses.dataclass(frozen=True)
class Rules:
  """What is allowed in tasks, and what is set for all of them.

  Attributes:
    allow_overlap: read tasks whose items occur both in dev and in test; the
      fact is then logged as a warning.
    allow_code: read tasks that run generated code.
    shots: worked examples before each question; None for what a task says.
    shots_seed: chooses them; None for what a task says.
    system: text before everything else; None for what a task says.
  """

  allow_overlap: bool = False
  allow_code: bool = False
  shots: int | None = None
  shots_seed: int | None = None
  system: str | None = None

  def set_in(self, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's format with what is set for all tasks."""
    names = ('shots', 'shots_seed', 'system')
    given = {name: getattr(self, name) for name in names}
    return {**options, **{k: v for k, v in given.items() if v is not None}}


# --- files ------------------------------------------------------------------


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; a key given twice would silently lose the first value."""
  result = dict(pairs)
  if len(result) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    key = counts.most_common(1)[0][0]
    raise TaskError(f"an object gives the key '{key}' more than once")
  return result


def _no_constant(name: str) -> None:
  """NaN and Infinity, which JSON does not have."""
  raise TaskError(f'{name} is no JSON value; write text in quotes')


def _parse(text: str, where: str, advice: str) -> Any:
  try:
    return json.loads(
      text, object_pairs_hook=_no_repeats, parse_constant=_no_constant
    )
  except json.JSONDecodeError as error:
    near = text[max(0, error.pos - 20) : error.pos + 10]
    raise TaskError(
      f'{where}: not valid JSON: {error}, near {shown(near)}. {advice}'
    ) from error
  except TaskError as error:
    raise TaskError(f'{where}: not valid JSON: {error}.') from error


def _read_jsonl(text: str, path: str) -> dict[str, Any]:
  """The rows of a JSONL file as the object that a JSON file would hold."""
  # Not splitlines: JSON strings may hold U+2028 and other line separators.
  lines = enumerate(text.split('\n'), start=1)
  lines = [(number, line) for number, line in lines if line.strip()]
  if not lines:
    raise TaskError(f'{path}: the file is empty.')
  splits = {split: [] for split in SPLITS}
  marked = None
  for number, line in lines:
    advice = 'Each line is an object; a file that is one object ends in .json.'
    row = _parse(line, f'{path} line {number}', advice)
    if not isinstance(row, dict):
      raise TaskError(
        f'{path} line {number}: expected an object, got {shown(row)}.'
      )
    split = row.get('split')
    if split not in (None, *SPLITS):
      raise TaskError(
        f"{path} line {number}, field 'split': expected 'dev', which a search "
        f"may see, or 'test', got {shown(split)}."
      )
    if marked is not None and marked != (split is not None):
      raise TaskError(
        f"{path} line {number}: either all rows say their 'split' or none does."
      )
    marked = split is not None
    splits[split or 'dev'].append(row)
  return splits


def load_task(name: str | pathlib.Path, rules: Rules | None = None) -> Task:
  """Reads a task; see the module for the layouts.

  Args:
    name: a .json or .jsonl file, 'file.py', 'file.py:Name',
      'package.module:Name' or 'lm_eval:name'.
    rules: what is allowed.

  Raises:
    TaskError: a file that cannot be read, a row, field or option that cannot
      be right (with file, split, row and field), or dev items in test.
  """
  rules = rules or Rules()
  task = _read(str(name), rules)
  if registry.scorer_of(task).runs_code and not rules.allow_code:
    raise TaskError(
      f'{task.source}: a code task runs what the model writes, in a process '
      'with limits on time, memory, files and network. Allow it (allow_code) '
      'on a machine where that is fine.'
    )
  _check_overlap(task, task, rules.allow_overlap)
  return task


def load_tasks(
  names: Sequence[str | pathlib.Path], rules: Rules | None = None
) -> tuple[Task, ...]:
  """Reads several tasks.

  Raises:
    TaskError: also where two tasks have one name, or the dev items of one are
      test items of another.
  """
  if not names:
    raise TaskError('No task files given: name at least one.')
  tasks = tuple(load_task(name, rules) for name in names)
  seen = {}
  for task in tasks:
    if task.name in seen:
      raise TaskError(
        f"{seen[task.name]} and {task.source} are both named '{task.name}': "
        'results could not be told apart. Rename one ("name" in the file).'
      )
    seen[task.name] = task.source
  for task in tasks:
    for other in tasks:
      if other is not task:
        _check_overlap(task, other, bool(rules and rules.allow_overlap))
  return tasks


def _read(name: str, rules: Rules) -> Task:
  if name.startswith('lm_eval:'):
    from evojax_llm.tasks import lm_eval_task

    return lm_eval_task.load(name.removeprefix('lm_eval:'), rules)
  path = pathlib.Path(name)
  of_python = path.suffix == '.py' or ':' in name
  if of_python and path.suffix not in ('.json', '.jsonl'):
    from evojax_llm.tasks import python_task

    return python_task.load(name, rules)
  try:
    text = path.read_text(encoding='utf-8-sig')
  except OSError as error:
    raise TaskError(
      f'{path}: cannot be read ({error.strerror}). Expected a .json or .jsonl '
      'task file.'
    ) from error
  except UnicodeDecodeError as error:
    raise TaskError(
      f'{path}: not UTF-8 text: {error}. Save it as UTF-8.'
    ) from error
  if path.suffix == '.jsonl':
    top = _read_jsonl(text, str(path))
  elif path.suffix == '.json':
    advice = (
      'Is there a comma too many, or is the file cut off? A file with an '
      'object a line ends in .jsonl.'
    )
    top = _parse(text, str(path), advice)
  else:
    raise TaskError(
      f"{path}: expected a file that ends in '.json' or '.jsonl'. Write the "
      'rows of other tables as an object a line.'
    )
  return build(top, str(path), path.stem, rules)


def build(
  top: Any, path: str, name: str, rules: Rules, scorer: Any = None
) -> Task:
  """Makes the task of a parsed file.

  Args:
    top: what the file holds.
    path: the file, for messages.
    name: of the task, where the file gives none.
    rules: what is set for all tasks.
    scorer: the task's own, in place of one of the table.

  Raises:
    TaskError: as `load_task`.
  """
  if not isinstance(top, dict):
    raise TaskError(
      f'{path}: expected an object with "dev" and "test", got {shown(top)}.'
    )
  unknown = [key for key in top if key not in _TOP_KEYS]
  for key in unknown:
    if meant := did_you_mean(key, _TOP_KEYS):
      raise TaskError(f"{path}: unknown key '{key}'.{meant}")
  if 'dev' not in top:
    raise TaskError(
      f'{path}: no "dev" rows; the file has {", ".join(top) or "nothing"}. '
      'Call the rows that a search may see "dev", and the sealed ones "test".'
    )
  for key in unknown:
    logging.warning("%s: key '%s' is ignored.", path, key)
  options = {} if top.get('format') is None else top['format']
  if not isinstance(options, dict):
    raise TaskError(
      f"{path}, 'format': expected an object, got {shown(options)}."
    )
  options = rules.set_in(options)
  task_type = top.get('task_type')
  named = format_lib.named_kind(options, task_type, path)
  needs = scorer or (registry.scorer_class(named) if named else Scorer)
  splits = {
    split: read_items(top.get(split, []), path, split, needs)
    for split in SPLITS
  }
  items = splits['dev'] + splits['test']
  if not items:
    raise TaskError(f'{path}: there are no rows in "dev" or "test".')
  if len({item.choices is None for item in items}) > 1:
    raise TaskError(f'{path}: only one of "dev" and "test" has choices.')
  kind = 'python'
  if scorer is None:
    kind = format_lib.infer_kind(items, options, task_type, path)
  format_, scorer_options, judge = format_lib.read_format(
    options, kind, path, scorer
  )
  for split in SPLITS:
    format_lib.check_items(splits[split], split, judge, path)
  texts = {}
  for key in ('name', 'dataset', 'icl_prompt'):
    texts[key] = '' if top.get(key) is None else top[key]
    if not isinstance(texts[key], str):
      raise TaskError(f"{path}, '{key}': expected text, got {shown(top[key])}.")
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
  )
  where = f"{path}, 'format'"
  shots = format_lib.whole(options, 'shots', 0, 0, where)
  seed = format_lib.whole(options, 'shots_seed', 0, 0, where)
  return _with_shots(task, shots, seed) if shots else task


def _with_shots(task: Task, count: int, seed: int) -> Task:
  """Returns a task that shows some of its dev items and scores the others.

  Copies of a shot leave dev as well, and what is in test is no shot.
  """
  tested = {overlap.identity(item) for item in task.test}
  shots: dict[Any, Item] = {}
  for index in ranked(task.dev, f'shots\0{seed}\0{task.name}'):
    identity = overlap.identity(task.dev[index])
    if len(shots) < count and identity not in tested:
      shots.setdefault(identity, task.dev[index])
  rest = tuple(i for i in task.dev if overlap.identity(i) not in shots)
  if len(shots) < count or not rest:
    raise TaskError(
      f'{task.source}: {count} shots of {len(task.dev)} dev items, of which '
      'some must be left to score. Ask for fewer shots.'
    )
  if not all(shot.answer for shot in shots.values()):
    raise TaskError(f'{task.source}: shots need items with gold answers.')
  return dataclasses.replace(task, dev=rest, shots=tuple(shots.values()))


def _check_overlap(task: Task, other: Task, allowed: bool) -> None:
  """Refuses dev items of a task that are test items of one."""
  pairs = overlap.find_overlap(task.dev, other.test)
  if not pairs:
    return
  whose = '' if other is task else f' of {other.source}'
  message = (
    f'{task.source}: {len(pairs)} of {len(task.dev)} dev items occur in test'
    f'{whose} as well, so that a search on dev has seen the test:\n'
    f'{overlap.describe_overlap(pairs)}'
  )
  if not allowed:
    raise TaskError(
      f'{message}\nRemove them from one split; or allow the overlap '
      '(allow_overlap), and do not report the test score as unseen.'
    )
  logging.warning('%s', message)
