"""The `format` of a task: its kind, prompt, and options of its scorer."""

from collections.abc import Mapping
from collections.abc import Sequence
import string
from typing import Any

from evojax_llm.lookup import did_you_mean
from evojax_llm.options import declared
from evojax_llm.tasks.rows import shown
from evojax_llm.tasks.scorers import numerals
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

# What of a format is not the scorer's.
PROMPT_KEYS = ('kind', *declared(Format), 'shots', 'shots_seed')
# A base model that has answered goes on with the next question.
_STOP = ('\nQuestion:', '\nQ:')


def named_kind(
  options: Mapping[str, Any], task_type: Any, path: str
) -> str | None:
  """Returns the kind that a file names, or None where its rows decide.

  Published files call numeric tasks "exact_match" as well: that `task_type`
  says nothing. `format.kind` comes first.

  Raises:
    TaskError: there is no such kind.
  """
  named = options.get('kind')
  for name, kind in (('task_type', task_type), ('format.kind', named)):
    if kind is not None:
      try:
        registry.scorer_class(kind)
      except TaskError as error:
        raise TaskError(f"{path}, '{name}': {error}") from error
  return named or (None if task_type == 'exact_match' else task_type)


def infer_kind(
  items: Sequence[Item], options: Mapping[str, Any], task_type: Any, path: str
) -> str:
  """Returns the kind of a task: what is named, else what the rows say.

  Raises:
    TaskError: the rows have choices and should not, or the reverse.
  """
  has_choices = items[0].choices is not None
  name = 'format.kind' if options.get('kind') else 'task_type'
  kind = options.get('kind') or task_type
  wanted = None if kind is None else registry.scorer_class(kind).choices
  if wanted is not None and wanted != has_choices:
    has = 'have' if has_choices else 'have no'
    raise TaskError(f"{path}: '{name}' is {kind}, but its rows {has} choices.")
  named = named_kind(options, task_type, path)
  if named is not None:
    return named
  if has_choices:
    return 'multiple_choice'
  numbers = all(
    numerals.whole_number(gold) is not None
    for item in items
    for gold in item.golds
  )
  return 'numeric_match' if numbers else 'exact_match'


def read_format(
  value: Mapping[str, Any], kind: str, path: str, scorer: Any = None
) -> tuple[Format, tuple[tuple[str, Any], ...], Any]:
  """Checks a format.

  Args:
    value: the object in the file.
    kind: of the task.
    path: the file, for messages.
    scorer: a task's own; made from the table by default.

  Returns:
    (format, options of the scorer, the scorer).

  Raises:
    TaskError: an unknown key, or a value that cannot be right.
  """
  where = f"{path}, 'format'"
  keys = PROMPT_KEYS
  if scorer is None:
    keys += registry.option_names(kind)
  for key in value:
    if key not in keys:
      raise TaskError(
        f"{where}: unknown key '{key}'.{did_you_mean(key, keys)} A task of "
        f'kind {kind} knows {", ".join(keys)}.'
      )
  options = {k: v for k, v in value.items() if k not in PROMPT_KEYS}
  options = {
    k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
  }
  try:
    scorer = scorer or registry.make_scorer(kind, options)
    for name in ('instruction', 'choice', 'system'):
      if value.get(name) is not None:
        declared(Format)[name].check(value[name])
  except ValueError as error:
    raise TaskError(f'{where}: {error}') from error
  choice = value.get('choice') or 'letter'
  if choice == 'letter' and options.get('norm') in ('characters', 'bytes'):
    raise TaskError(
      f"{where}.norm: {options['norm']} are those of an option's text, and the "
      'options are scored by their keys. Set "choice" to "text" as well.'
    )
  prompt = value.get('prompt')
  if prompt is not None:
    _check_template(prompt, scorer, choice, f'{where}.prompt')
  read = Format(
    prompt=prompt,
    instruction=value.get('instruction'),
    choice=choice,
    max_new_tokens=_limit(value, scorer, where),
    stop=_stop(value, scorer, where),
    system=value.get('system') or '',
  )
  return read, tuple(sorted(options.items())), scorer


def _check_template(
  template: Any, scorer: Any, choice: str, where: str
) -> None:
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
  needed = {'question'} if scorer.question else set()
  if scorer.choices and choice == 'letter':
    needed.add('choices')
  if scorer.choices is False and 'choices' in fields:
    raise TaskError(f'{where}: {{choices}} in a task without choices.')
  for name in sorted(needed - fields):
    raise TaskError(f'{where}: {{{name}}} is missing in {shown(template)}.')


def whole(
  value: Mapping[str, Any], key: str, default: int, least: int, where: str
) -> int:
  """Returns an integer of a format; raises TaskError where it is none."""
  number = value.get(key, default)
  if not isinstance(number, int) or isinstance(number, bool) or number < least:
    raise TaskError(
      f'{where}.{key}: expected an integer from {least}, got {shown(number)}.'
    )
  return number


def _limit(value: Mapping[str, Any], scorer: Any, where: str) -> int:
  least = 1 if scorer.reads == 'text' else 0
  default = max(least, scorer.max_new_tokens)
  return whole(value, 'max_new_tokens', default, least, where)


def _stop(value: Mapping[str, Any], scorer: Any, where: str) -> tuple[str, ...]:
  ends = scorer.stop and scorer.reads == 'text'
  stop = value.get('stop', _STOP if ends else ())
  stop = (stop,) if isinstance(stop, str) else stop
  if not isinstance(stop, Sequence) or not all(
    isinstance(text, str) and text for text in stop
  ):
    raise TaskError(
      f'{where}.stop: expected a list of texts that are not empty, got '
      f'{shown(stop)}.'
    )
  return tuple(stop)


def check_items(
  items: Sequence[Item], split: str, scorer: Any, path: str
) -> None:
  """Refuses items that the scorer cannot score, by file and row."""
  for row, item in enumerate(items):
    try:
      scorer.check(item)
    except TaskError as error:
      raise TaskError(
        f"{path}, '{split}' row {row}, item '{item.id}': {error}"
      ) from error
