"""The `format` of a task: its kind, prompt, and options of its scorer."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import string
from typing import Any

from evojax_llm.files import is_text
from evojax_llm.lookup import did_you_mean
from evojax_llm.options import declared
from evojax_llm.tasks.rows import refuse
from evojax_llm.tasks.scorers import numeric
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import shown
from evojax_llm.tasks.task import typed

# What of a format is not the scorer's.
PROMPT_KEYS = ('kind', *declared(Format), 'shots', 'shots_seed')
# A base model that has answered goes on with the next question.
_STOP = ('\nQuestion:', '\nQ:')
# What files of MoCo (github.com/BunsenFeng/model_collaboration) and evaluation
# types of Model Swarms (arXiv 2410.11163) are called here, with options.
_TASK_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
  'f1_match': ('drop', {'score_by': 'f1'}),
  'coding': ('code', {}),
  'reward_model': ('reward', {}),
  'text_generation': ('reward', {}),
  'external_api': ('judge', {}),
  'AbstainQA': ('abstain_qa', {}),
  'rm_default': ('reward', {'mode': 'default'}),
  'rm_verbose': ('reward', {'mode': 'verbose'}),
  'rm_concise': ('reward', {'mode': 'concise'}),
  'rm_reverse': ('reward', {'mode': 'reverse'}),
}
_NO_COUNTERPART = tuple(
  'general_verifier generation_diversity gene_ranking human ifeval kernel_bench'
  ' multitask noncompliance smdd'.split()
)
_DOES = {
  'format.key': 'is a secret that is sent to a server',
  'format.cache': 'is a file that is written',
}


def check_code(options: Mapping[str, Any], task_type: Any, path: str) -> None:
  """Refuses what a file names to be run, sent or written.

  Raises:
    TaskError: names the key, and how it is allowed.
  """
  named = {f'format.{key}': options.get(key) for key in registry.CODE_OPTIONS}
  for key, value in {'task_type': task_type, **named}.items():
    does = _DOES.get(key, 'is code that is run')
    if isinstance(value, str) and value and (key in _DOES or ':' in value):
      raise TaskError(
        f"{path}, '{key}': {shown(value)} {does}, which a task file may ask "
        'for only where that is allowed: do so if you trust it '
        f'({typed("allow_code")}).'
      )


def named_kind(
  options: Mapping[str, Any], task_type: Any, path: str
) -> tuple[str | None, str, dict[str, Any]]:
  """Returns the kind that a file names.

  Returns:
    (kind or None, the key that names it, options that come with it);
    `format.kind` goes before `task_type`.

  Raises:
    TaskError: there is no such kind.
  """
  kind, extra = options.get('kind'), {}
  known = task_type if isinstance(task_type, str) else None
  if known in _NO_COUNTERPART:
    if kind is None:
      raise TaskError(
        f"{path}, 'task_type': {known} has no counterpart here. Say in "
        '"format" how answers are scored, as in {"kind": "judge", ...}; the '
        f'kinds are {", ".join(registry.SCORERS)}.'
      )
    task_type = None
  elif known in _TASK_TYPES:
    task_type, extra = _TASK_TYPES[known]
  for key, name in (('task_type', task_type), ('format.kind', kind)):
    try:
      if name is not None:
        registry.scorer_class(name)
    except TaskError as error:
      raise TaskError(f"{path}, '{key}': {error}") from error
  if kind is None:
    return task_type, 'task_type', extra
  return kind, 'format.kind', {}


def infer_kind(
  items: Sequence[Item], kind: str | None, name: str, path: str
) -> str:
  """Returns the kind of a task: what key `name` says, else what the rows say.

  Raises:
    TaskError: the rows have choices and should not, or the reverse.
  """
  has_choices = items[0].choices is not None
  if kind is not None:
    wanted = registry.scorer_class(kind).choices
    if wanted is not None and wanted != has_choices:
      has = 'have' if has_choices else 'have no'
      raise TaskError(
        f"{path}: '{name}' is {kind}, but its rows {has} choices."
      )
    # Published files call numeric tasks "exact_match" as well.
    if (name, kind) != ('task_type', 'exact_match'):
      return kind
  if has_choices:
    return 'multiple_choice'
  numbers = all(
    numeric.whole_number(gold) is not None
    for item in items
    for gold in item.golds
  )
  return 'numeric_match' if numbers else 'exact_match'


def read_format(
  value: Mapping[str, Any], kind: str, path: str, scorer: Any = None
) -> tuple[Format, tuple[tuple[str, Any], ...], Any]:
  """Checks the format of a task of a kind, or with a scorer of its own.

  Returns:
    (format, options of the scorer, the scorer).

  Raises:
    TaskError: an unknown key, or a value that cannot be right.
  """
  where = f"{path}, 'format'"
  keys = PROMPT_KEYS
  if not scorer:
    fields = dataclasses.fields(registry.scorer_class(kind))
    keys += (*(field.name for field in fields), *registry.GATE_OPTIONS)
  for key in value:
    if key not in keys:
      raise TaskError(
        f"{where}: unknown key '{key}'.{did_you_mean(key, keys)} A task of "
        f'kind {kind} knows {", ".join(keys)}.'
      )
  options = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in value.items()
    if k not in PROMPT_KEYS
  }
  for key in ('prompt', 'instruction', 'system'):
    if isinstance(value.get(key), str) and not is_text(value[key]):
      raise TaskError(f'{where}.{key}: half of a surrogate pair is no text.')
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
  least = 1 if scorer.reads == 'text' else 0
  most = max(least, scorer.max_new_tokens)
  read = Format(
    prompt=prompt,
    instruction=value.get('instruction'),
    choice=choice,
    max_new_tokens=whole(value, 'max_new_tokens', most, least, where),
    stop=_stop(value, scorer, where),
    system=value.get('system') or '',
    limited='max_new_tokens' in value,
  )
  return read, tuple(sorted(options.items())), scorer


def _check_template(
  template: Any, scorer: Any, choice: str, where: str
) -> None:
  if not isinstance(template, str):
    raise TaskError(f'{where}: expected text, got {shown(template)}.')
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise TaskError(f'{where}: {error} in {shown(template)}.') from error
  fields = {name for _, name, _, _ in parts if name is not None}
  formats = any(form or conversion for _, _, form, conversion in parts)
  if formats or not fields <= {'question', 'choices'}:
    raise TaskError(
      f'{where}: expected a template with {{question}} and {{choices}} alone '
      f'(braces that are meant as such are doubled), got {shown(template)}.'
    )
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


def usable(
  items: Sequence[Item], split: str, scorer: Any, path: str, skip: bool
) -> tuple[Item, ...]:
  """Returns the items that can be scored; refuses or skips the others."""
  kept, bad = [], []
  for row, item in enumerate(items):
    try:
      scorer.check(item)
      kept.append(item)
    except TaskError as error:
      bad.append(f"{path}, '{split}' row {row}, item '{item.id}': {error}")
  refuse(bad, len(items), f"{path}, '{split}'", skip)
  return tuple(kept)
