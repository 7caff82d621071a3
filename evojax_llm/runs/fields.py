"""Fields of a configuration by their dotted names, with values from text."""

import ast
from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any

from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm.runs.errors import UserError
from evojax_llm.tasks.task import typed

# A Python file, or an object in one or in a module.
_CODE = re.compile(r'.*\.py(:\w+)?|(?!lm_eval:)[\w.]+:\w+')
# Texts and folders, which are no names of code.
_NO_NAMES = tuple('name model adapters experts system warm_start'.split())
_NO_NAMES += ('format.prompt', 'format.instruction', 'format.stop')
_NO_NAMES += ('merged.groups', 'layer_path.sources', 'pareto.choice')
# A change of a stage: its number, and a field.
_STAGE = re.compile(r'stages\.(\d+)\.(.+)')
_BOOLEANS = {'true': True, 'false': False, '1': True, '0': False}


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of a configuration by their whole names.

  Those of its stages have names such as 'stages.1.strategy.name'.
  """
  found = {}
  for name, value in config.items():
    if name == 'stages' and isinstance(value, (list, tuple)):
      if value and all(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value, 1)}
    if isinstance(value, (config_dict.ConfigDict, Mapping)) and len(value):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


def named(name: str, known: Iterable[str]) -> list[str]:
  """Returns the fields that end in a name, which may have been meant by it.

  Those of the run come first, then those of its search.
  """
  same = [other for other in known if other.split('.')[-1] == name]
  return sorted(same, key=lambda n: (n.count('.'), 'strategy' not in n))


def check_code(config: Mapping[str, Any], where: object) -> None:
  """Refuses code that a configuration which is data names."""
  for name, value in flat(config).items():
    values = value if isinstance(value, list | tuple) else str(value).split(',')
    code = [text for text in map(str, values) if _CODE.fullmatch(text.strip())]
    stage = _STAGE.fullmatch(name)
    if code and (stage[2] if stage else name) not in _NO_NAMES:
      raise UserError(
        f'{where}: config.{name} names code, {code[0]}. Code that data names '
        'is run only where that is allowed: do so if you trust it '
        f'({typed("allow_code")}).'
      )


def find(
  config: config_dict.ConfigDict, field: str
) -> tuple[config_dict.ConfigDict, str]:
  """Returns the part of a configuration that a field is in, and its name there.

  For 'stages.1.NAME' it is that of NAME, which has the same type, or all
  options of the strategy.

  Raises:
    UserError: there is no such field.
  """
  if inner := _STAGE.fullmatch(field):
    # The strategy of a stage may be another one, which checks its options.
    options = inner[2].startswith('strategy.options.')
    field = 'strategy.options' if options else inner[2]
  *groups, name = field.split('.')
  part: Any = config
  for group in groups:
    part = part.get(group) if isinstance(part, config_dict.ConfigDict) else None
  if isinstance(part, config_dict.ConfigDict) and name in part:
    return part, name
  known = flat(config)
  same = named(name, known)
  among = part if isinstance(part, config_dict.ConfigDict) else config
  raise UserError(
    f'Got unknown field {field!r}'
    + lookup.expected(
      same[0] if same else field, known, ', '.join(sorted(among))
    )
  )


def parse(config: config_dict.ConfigDict, field: str, text: str) -> Any:
  """Returns a value of the type that a field has.

  Raises:
    UserError: there is no such field, or the text is no such value.
  """
  group, name = find(config, field)
  if name == 'options' and not field.endswith('.options'):  # one, of a stage
    try:
      return ast.literal_eval(text)
    except (SyntaxError, ValueError):
      return text
  kind = group.get_type(name)
  held = dict(group.items(preserve_field_references=True))[name]
  is_text = kind in (str, object)  # An object may be a sequence as well.
  unset = isinstance(held, config_dict.FieldReference) and kind is not object
  if unset and text == 'None':
    return None
  try:
    if is_text:
      return ast.literal_eval(text) if text[:1] in ('"', "'") else text
    if kind is bool:
      return _BOOLEANS[text.lower()]
    if kind in (int, float):
      return kind(text)
    if kind is tuple:
      return _sequence(text)
    value = ast.literal_eval(text)
    if kind in (dict, list) and isinstance(value, kind):
      return value
    if kind is config_dict.ConfigDict and isinstance(value, dict):
      return kind(value)
  except (KeyError, SyntaxError, ValueError):
    pass
  shown = 'dict' if kind is config_dict.ConfigDict else kind.__name__
  raise UserError(f'Got {field}={text}; expected a value of type {shown}.')


def _sequence(text: str) -> tuple[Any, ...]:
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):  # names, without quotes
    return tuple(part.strip() for part in text.split(',') if part.strip())
  return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def set_text(config: config_dict.ConfigDict, field: str, text: str) -> None:
  """Sets a field from text; see `parse`."""
  set_value(config, field, parse(config, field, text))


def set_value(config: config_dict.ConfigDict, field: str, value: Any) -> None:
  """Sets a field.

  Raises:
    UserError: there is no such field, or the value is not of its type.
  """
  if inner := _STAGE.fullmatch(field):
    number, stages = int(inner[1]), list(config.stages)
    if not 1 <= number <= len(stages):
      raise UserError(f'Got {field}; there are {len(stages)} stages.')
    stages[number - 1] = {**stages[number - 1], inner[2]: value}
    config.stages = tuple(stages)
    return
  group, name = find(config, field)
  if isinstance(value, Mapping):
    value = config_dict.ConfigDict(value)
  try:
    group[name] = value
  except (TypeError, ValueError) as error:
    raise UserError(
      f'Got {field}={value!r}: {" ".join(str(error).split())}'
    ) from error
