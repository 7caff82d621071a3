"""YAML from outside as plain values, within limits."""

from collections.abc import Hashable
import math
import os
from typing import Any

import yaml

from evojax_llm import files

# A recipe of hundreds of layers and gradients has a few thousand values.
MAX_BYTES = 1 << 18
MAX_VALUES = 50_000
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
  """As `SafeLoader`, without merges of mappings and keys that stand twice."""

  def construct_mapping(self, node, deep=False):
    seen = set()
    for key, _ in node.value:
      if key.tag == 'tag:yaml.org,2002:merge':
        # Merges of merges grow without bound.
        raise yaml.constructor.ConstructorError(
          None,
          None,
          "'<<' is not supported: write the keys out",
          key.start_mark,
        )
      name = (key.tag, key.value)
      if isinstance(key.value, Hashable) and name in seen:
        raise yaml.constructor.ConstructorError(
          None, None, f'the key {key.value!r} stands twice', key.start_mark
        )
      if isinstance(key.value, Hashable):
        seen.add(name)
    return super().construct_mapping(node, deep)


def parse(
  text: str, where: str | os.PathLike, error: type[ValueError]
) -> dict[str, Any]:
  """Returns the mapping of a YAML text: strings, numbers, booleans, lists.

  Raises:
    error: it is no such YAML, or larger or deeper than any recipe is.
  """
  try:
    value = yaml.load(text, _Loader)
  except yaml.YAMLError as e:
    said = ' '.join(str(e).split()).replace('in "<unicode string>", ', 'in ')
    raise error(f'{where}: not valid YAML: {said}.') from None
  except RecursionError:
    raise error(_too_deep(where)) from None
  except (ValueError, OverflowError) as e:  # Of dates and endless numbers.
    raise error(f'{where}: not valid YAML: {str(e)[:200]}.') from None
  if not isinstance(value, dict):
    raise error(f'{where}: holds {kind(value)}; expected a mapping.')
  _check(value, where, error, '', 0, [0])
  return value


def kind(value: Any) -> str:
  """What a value is called in YAML."""
  names = {dict: 'a mapping', list: 'a list', str: 'a text', type(None): 'null'}
  return names.get(type(value), f'a {type(value).__name__}')


def _too_deep(where):
  return f'{where}: lists and mappings are nested more than {MAX_DEPTH} deep.'


def _check(value, where, error, key, depth, count):
  # Aliases share what they name, so that a few bytes can stand for billions.
  count[0] += 1
  if count[0] > MAX_VALUES:
    raise error(
      f'{where}: stands for more than {MAX_VALUES} values; expected a recipe.'
    )
  if depth > MAX_DEPTH:
    raise error(_too_deep(where))
  if isinstance(value, dict):
    for name, part in value.items():
      if not isinstance(name, str):
        raise error(f'{where}: the key {name!r}{_at(key)}; expected a text.')
      _check(part, where, error, f'{key}.{name}'[:200], depth + 1, count)
  elif isinstance(value, list):
    for i, part in enumerate(value):
      _check(part, where, error, f'{key}[{i}]'[:200], depth + 1, count)
  elif isinstance(value, int) and abs(value) > 2**53:
    raise error(f'{where}: a number beyond 2^53{_at(key)}.')
  elif isinstance(value, float) and not math.isfinite(value):
    raise error(f'{where}: {value}{_at(key)}; expected a finite number.')
  elif not isinstance(value, str | int | float | bool | None):
    raise error(
      f'{where}: {kind(value)}{_at(key)}; expected texts, numbers, lists.'
    )


def _at(key):
  return f' at {key.lstrip(".")}' if key else ''


def read(path: str | os.PathLike, error: type[ValueError]) -> tuple[str, dict]:
  """Returns the text of a YAML file and its mapping.

  Raises:
    error: as `files.read_text` and `parse`.
  """
  text = files.read_text(path, error, MAX_BYTES)
  return text, parse(text, path, error)
