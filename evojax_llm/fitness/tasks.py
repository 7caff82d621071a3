"""Task files: the JSON layouts of published systems, and plain JSONL.

JSON (one object):
  {"dataset" or "name": ..., "dev": [rows], "test": [rows],
   "task_type": ..., "icl_prompt": ..., "format": {...}}  # these are optional
  This is the layout of Model Swarms (arXiv 2410.11163: `dataset`) and of its
  successor toolkit (`name`, `task_type`); files that mix both are read as well.
JSONL (one row a line):
  Each row says {"split": "dev"} or {"split": "test"}; or no row does, and all
  of them are dev. The task is named after the file.

A row has a `question` (or `input`), an `answer` (or `output`), and for multiple
choice `choices`, an object {key: text} with the answer as one of its keys. It
may have an `id`; what else it has is ignored. Rows without an id get their
index; published files repeat ids, and a repeated one becomes 'id#index', so
that ids are unique within a split.

The kind follows from the rows: choices make it multiple_choice, gold answers
that are all numbers numeric_match, anything else exact_match. `format.kind`
overrides the choice between the latter two (published files call numeric tasks
"exact_match" as well, so `task_type` does not).

`format` may hold: kind, prompt, instruction, choice, match, max_new_tokens,
stop; see evojax_llm.fitness.items.Format.
"""

import collections
from collections.abc import Sequence
import json
import pathlib
import string
from typing import Any

from absl import logging

from evojax_llm.fitness import intervals
from evojax_llm.fitness import numerals
from evojax_llm.fitness import overlap
from evojax_llm.fitness.items import CHOICE_STYLES
from evojax_llm.fitness.items import KINDS
from evojax_llm.fitness.items import MATCHES
from evojax_llm.fitness.items import SPLITS
from evojax_llm.fitness.items import Format
from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.rows import hint
from evojax_llm.fitness.rows import read_items
from evojax_llm.fitness.rows import shown

_TOP_KEYS = (
  'name',
  'dataset',
  'task_type',
  'dev',
  'test',
  'icl_prompt',
  'format',
)
_FORMAT_KEYS = (
  'kind',
  'prompt',
  'instruction',
  'choice',
  'match',
  'max_new_tokens',
  'stop',
)
# A short answer, or a chain of thought that ends in a number.
_MAX_NEW_TOKENS = {
  'multiple_choice': 0,
  'exact_match': 32,
  'numeric_match': 256,
}
# A base model that has answered goes on with the next question.
_STOP = ('\nQuestion:', '\nQ:')
# Below this many items one standard error is over 5.5 points.
_SMALL_DEV = 80


# --- options ----------------------------------------------------------------


def _infer_kind(items: Sequence[Item], task_type: Any, told: Any, path: str):
  """'multiple_choice', 'exact_match' or 'numeric_match'; see the module."""
  for name, kind in (('task_type', task_type), ('format.kind', told)):
    if kind is not None and kind not in KINDS:
      raise TaskError(
        f"{path}, '{name}': expected {', '.join(KINDS)}, got "
        f'{shown(kind)}.{hint(kind, KINDS)}'
      )
  has_choices = items[0].choices is not None
  for name, kind in (('task_type', task_type), ('format.kind', told)):
    if kind is not None and (kind == 'multiple_choice') != has_choices:
      has = 'have' if has_choices else 'have no'
      raise TaskError(
        f"{path}: '{name}' is {kind}, but its rows {has} choices."
      )
  if has_choices:
    return 'multiple_choice'
  other = [item for item in items if numerals.whole_number(item.answer) is None]
  kind = told or ('numeric_match' if not other else 'exact_match')
  if told is None and task_type == 'numeric_match':
    kind = task_type
  if kind == 'numeric_match' and other:
    raise TaskError(
      f"{path}: a numeric_match task, but the answer of item '{other[0].id}' "
      f'is no number: {shown(other[0].answer)}.'
    )
  return kind


def _check_template(template: Any, kind: str, choice: str, where: str) -> None:
  if not isinstance(template, str):
    raise TaskError(f'{where}: expected text, got {shown(template)}.')
  try:
    fields = {name for _, name, _, _ in string.Formatter().parse(template)}
    fields.discard(None)
    template.format(question='', choices='')
  except (ValueError, LookupError, AttributeError) as error:
    raise TaskError(
      f'{where}: expected a template with {{question}} and {{choices}} alone '
      f'(braces that are meant as such are doubled), got {shown(template)}: '
      f'{error}.'
    ) from error
  needed = {'question'}
  if kind == 'multiple_choice' and choice == 'letter':
    needed.add('choices')
  if kind != 'multiple_choice' and 'choices' in fields:
    raise TaskError(f'{where}: {{choices}} in a task without choices.')
  for name in sorted(needed - fields):
    raise TaskError(f'{where}: {{{name}}} is missing in {shown(template)}.')


def _format(value: Any, kind: str, path: str) -> Format:
  where = f"{path}, 'format'"
  for key in value:
    if key not in _FORMAT_KEYS:
      raise TaskError(
        f"{where}: unknown key '{key}'.{hint(key, _FORMAT_KEYS)} "
        f'Known are {", ".join(_FORMAT_KEYS)}.'
      )

  def one_of(key: str, known: Sequence[str]) -> str:
    given = value.get(key, known[0])
    if given not in known:
      raise TaskError(
        f'{where}.{key}: expected {" or ".join(known)}, got '
        f'{shown(given)}.{hint(given, known)}'
      )
    return given

  choice = one_of('choice', CHOICE_STYLES)
  match = one_of('match', MATCHES)
  if value.get('prompt') is not None:
    _check_template(value['prompt'], kind, choice, f'{where}.prompt')
  instruction = value.get('instruction')
  if instruction is not None and not isinstance(instruction, str):
    raise TaskError(
      f'{where}.instruction: expected text, got {shown(instruction)}.'
    )
  limit = value.get('max_new_tokens', _MAX_NEW_TOKENS[kind])
  least = 0 if kind == 'multiple_choice' else 1
  if not isinstance(limit, int) or isinstance(limit, bool) or limit < least:
    raise TaskError(
      f'{where}.max_new_tokens: expected an integer from {least}, got '
      f'{shown(limit)}.'
    )
  stop = value.get('stop', () if kind == 'multiple_choice' else _STOP)
  stop = (stop,) if isinstance(stop, str) else stop
  if not isinstance(stop, Sequence) or not all(
    isinstance(text, str) and text for text in stop
  ):
    raise TaskError(
      f'{where}.stop: expected a list of texts that are not empty, got '
      f'{shown(stop)}.'
    )
  return Format(
    prompt=value.get('prompt'),
    instruction=instruction,
    choice=choice,
    match=match,
    max_new_tokens=limit,
    stop=tuple(stop),
  )


# --- files ------------------------------------------------------------------


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; a key given twice would silently lose the first value."""
  result = dict(pairs)
  if len(result) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    key = counts.most_common(1)[0][0]
    raise TaskError(f"an object gives the key '{key}' more than once")
  return result


def _parse(text: str, where: str) -> Any:
  try:
    return json.loads(text, object_pairs_hook=_no_repeats)
  except (json.JSONDecodeError, TaskError) as error:
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
    row = _parse(line, f'{path} line {number}')
    if not isinstance(row, dict):
      raise TaskError(
        f'{path} line {number}: expected an object, got {shown(row)}.'
      )
    split = row.get('split')
    if split not in (None, *SPLITS):
      raise TaskError(
        f"{path} line {number}, field 'split': expected 'dev' or 'test', got "
        f'{shown(split)}.'
      )
    if marked is not None and marked != (split is not None):
      raise TaskError(
        f"{path} line {number}: either all rows say their 'split' or none does."
      )
    marked = split is not None
    splits[split or 'dev'].append(row)
  return splits


def load_task(path: str | pathlib.Path, allow_overlap: bool = False) -> Task:
  """Reads a task file; see the module for the layouts.

  Args:
    path: a .json or .jsonl file.
    allow_overlap: read the file even if items occur both in dev and in test;
      the fact is then logged as a warning.

  Returns:
    The task. A small dev split is logged as a warning.

  Raises:
    TaskError: a file that cannot be read, a row, field or option that cannot
      be right (with file, split, row and field), or dev items in test.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding='utf-8-sig')
  except OSError as error:
    raise TaskError(
      f'{path}: cannot be read ({error.strerror}). Expected a .json or .jsonl '
      'task file.'
    ) from error
  except UnicodeDecodeError as error:
    raise TaskError(f'{path}: not UTF-8 text: {error}.') from error
  if path.suffix == '.jsonl':
    top = _read_jsonl(text, str(path))
  elif path.suffix == '.json':
    top = _parse(text, str(path))
  else:
    raise TaskError(
      f"{path}: expected a file that ends in '.json' or '.jsonl'."
    )
  task = _build(top, path)
  _check_overlap(task, allow_overlap)
  if len(task.dev) < _SMALL_DEV:
    logging.warning(
      '%s: only %d dev items; the standard error of an accuracy is up to %.1f '
      'points, and a search fits the luck of the draw.',
      path,
      len(task.dev),
      100 * intervals.standard_error(len(task.dev)),
    )
  return task


def load_tasks(
  paths: Sequence[str | pathlib.Path], allow_overlap: bool = False
) -> tuple[Task, ...]:
  """Reads several task files; two tasks of one name are refused."""
  if not paths:
    raise TaskError('No task files given: name at least one.')
  tasks = tuple(load_task(path, allow_overlap) for path in paths)
  seen = {}
  for task in tasks:
    if task.name in seen:
      raise TaskError(
        f"{seen[task.name]} and {task.source} are both named '{task.name}': "
        'results could not be told apart. Rename one ("name" in the file).'
      )
    seen[task.name] = task.source
  return tasks


def _build(top: Any, path: pathlib.Path) -> Task:
  """The task of a parsed file."""
  if not isinstance(top, dict):
    raise TaskError(
      f'{path}: expected an object with "dev" and "test", got {shown(top)}.'
    )
  for key in top:
    if key not in _TOP_KEYS:
      if hint(key, _TOP_KEYS):
        raise TaskError(f"{path}: unknown key '{key}'.{hint(key, _TOP_KEYS)}")
      logging.warning("%s: key '%s' is ignored.", path, key)
  if 'dev' not in top:
    raise TaskError(
      f'{path}: no "dev" rows; the file has {", ".join(top) or "nothing"}.'
    )
  splits = {
    split: read_items(top.get(split, []), str(path), split) for split in SPLITS
  }
  items = splits['dev'] + splits['test']
  if not items:
    raise TaskError(f'{path}: there are no rows in "dev" or "test".')
  if len({item.choices is None for item in items}) > 1:
    raise TaskError(f'{path}: only one of "dev" and "test" has choices.')
  options = top.get('format') or {}
  if not isinstance(options, dict):
    raise TaskError(
      f"{path}, 'format': expected an object, got {shown(options)}."
    )
  kind = _infer_kind(
    items, top.get('task_type'), options.get('kind'), str(path)
  )
  texts = {}
  for key in ('name', 'dataset', 'icl_prompt'):
    texts[key] = '' if top.get(key) is None else top[key]
    if not isinstance(texts[key], str):
      raise TaskError(f"{path}, '{key}': expected text, got {shown(top[key])}.")
  return Task(
    name=texts['name'] or texts['dataset'] or path.stem,
    kind=kind,
    dev=splits['dev'],
    test=splits['test'],
    format=_format(options, kind, str(path)),
    icl_prompt=texts['icl_prompt'],
    source=str(path),
  )


def _check_overlap(task: Task, allowed: bool) -> None:
  pairs = overlap.find_overlap(task.dev, task.test)
  if not pairs:
    return
  message = (
    f'{task.source}: {len(pairs)} of {len(task.dev)} dev items occur in test '
    'as well, so that a search on dev has seen the test:\n'
    f'{overlap.describe_overlap(pairs)}'
  )
  if not allowed:
    raise TaskError(
      f'{message}\nRemove them from one split; or allow the overlap '
      '(allow_overlap=True), and do not report the test score as unseen.'
    )
  logging.warning('%s', message)
