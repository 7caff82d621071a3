"""mergekit's recipes: read, checked, and brought to one form.

`models` becomes one slice of all layers. A value of a parameter is a number, a
list of numbers (a gradient over the depth of its slice) or a list of
{'filter': text, 'value': number or gradient}; a switch is a boolean or a list
of {'filter': text, 'value': boolean}. Nothing in a recipe is run.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
import reprlib
from typing import Any

from evojax_llm import lookup
from evojax_llm.files import FileError
from evojax_llm.recipes import yaml_text
from evojax_llm.recipes.methods import METHODS
from evojax_llm.recipes.methods import Method

DTYPES = {
  'float64': 'F64',
  'float32': 'F32',
  'float16': 'F16',
  'bfloat16': 'BF16',
}
_KEYS = (
  'merge_method',
  'models',
  'slices',
  'base_model',
  'parameters',
  'dtype',
  'out_dtype',
  'tokenizer_source',
  'tokenizer',
  'chat_template',
)
_REFUSED = {
  'modules': 'merge the parts of a model by filters, or one folder at a time',
  'architecture': 'names and shapes of the tensors decide',
  'genome': 'that is a search; give the recipe that it found',
  'merge_modules': 'merge one folder at a time',
  'experts': 'mixtures of experts are not made',
}


class RecipeError(FileError):
  """A recipe cannot be carried out; says which key, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Source:
  """A model in a slice.

  Attributes:
    model: its folder, or 'folder+adapter'.
    layers: [first, end); None for all.
    parameters: its own.
    where: its key in the recipe.
  """

  model: str
  layers: tuple[int, int] | None
  parameters: Mapping[str, Any]
  where: str


@dataclasses.dataclass(frozen=True)
class Slice:
  """Layers of the result, and what they are merged of."""

  sources: tuple[Source, ...]
  parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A checked recipe.

  Attributes:
    path: its file, for messages.
    text: as it was written.
    method: of the table of methods.
    slices: in the order of the result's layers.
    base: folder of base_model, or None.
    parameters: of the whole merge.
    dtype: what tensors are cast to before they are merged; or None.
    out_dtype: what they are stored as; None for that of the merge.
    tokenizer: 'base', 'union', a model; None for the base's.
    chat_template: None, 'auto', 'chatml' or a Jinja text.
    unused: names of given parameters that have no effect.
  """

  path: str
  text: str
  method: Method
  slices: tuple[Slice, ...]
  base: str | None
  parameters: Mapping[str, Any]
  dtype: str | None
  out_dtype: str | None
  tokenizer: str | None
  chat_template: str | None
  unused: tuple[str, ...]

  def fail(self, key: str, what: str) -> RecipeError:
    """Returns an error about a key."""
    return RecipeError(f'{self.path}: {key}: {what}')


def read(path: str | os.PathLike) -> Recipe:
  """Reads a recipe.

  Raises:
    RecipeError: naming the key, what was given and what was expected.
  """
  text, raw = yaml_text.read(path, RecipeError)
  return parse(raw, text, str(path))


def parse(raw: Mapping[str, Any], text: str, path: str) -> Recipe:
  """Returns the recipe of a mapping; see `read`."""
  reader = _Reader(path)
  reader.check_keys(raw)
  name = reader.text(raw, 'merge_method', needed=True)
  if name not in METHODS:
    raise RecipeError(
      f'{path}: merge_method is {name!r}{lookup.expected(name, METHODS)}'
    )
  reader.method = METHODS[name]
  slices = reader.slices(raw)
  parameters = reader.parameters(raw, '', of_model=False)
  return Recipe(
    path=path,
    text=text,
    method=reader.method,
    slices=slices,
    base=reader.model(raw, 'base_model'),
    parameters=parameters,
    dtype=reader.dtype(raw, 'dtype'),
    out_dtype=reader.dtype(raw, 'out_dtype'),
    tokenizer=reader.tokenizer(raw),
    chat_template=reader.text(raw, 'chat_template'),
    unused=tuple(sorted(reader.unused)),
  )


class _Reader:
  """Checks the parts of one file."""

  method: Method

  def __init__(self, path: str):
    self._path = path
    self.unused: set[str] = set()

  def fail(self, key: str, what: str) -> RecipeError:
    return RecipeError(f'{self._path}: {key}: {what}')

  def check_keys(self, raw):
    for key in raw:
      if key in _KEYS:
        continue
      if key in _REFUSED:
        raise self.fail(key, f'not supported: {_REFUSED[key]}.')
      if any(key in method.known for method in METHODS.values()):
        raise self.fail(key, "expected under 'parameters:'.")
      raise self._unknown(key, key, _KEYS)

  def _unknown(self, where, key, known):
    expected = lookup.expected(key, known, some='some of')
    return self.fail(where, f'not known{expected if known else "; has none."}')

  def text(self, raw, key, where='', needed=False):
    value = raw.get(key)
    if value is None and not needed:
      return None
    if isinstance(value, Mapping):
      raise self.fail(
        f'{where}{key}',
        "a mapping; expected a text, for an adapter 'FOLDER+ADAPTER'.",
      )
    if not isinstance(value, str) or not value or '\0' in value:
      given = 'missing' if value is None else reprlib.repr(value)
      raise self.fail(f'{where}{key}', f'{given}; expected a text.')
    return value

  def model(self, raw, key, where='', needed=False):
    """A folder, spelt in one way, so that the base is known among models."""
    value = self.text(raw, key, where, needed)
    return value and os.path.normpath(value)

  def dtype(self, raw, key):
    name = self.text(raw, key)
    if name is None:
      return None
    if name not in DTYPES:
      raise self.fail(key, f'{name!r}{lookup.expected(name, DTYPES)}')
    return DTYPES[name]

  def tokenizer(self, raw):
    part, source = raw.get('tokenizer'), self.model(raw, 'tokenizer_source')
    if part is None:
      return source
    if not isinstance(part, Mapping):
      raise self.fail('tokenizer', 'expected a mapping with source.')
    if source:
      raise self.fail('tokenizer', 'given beside tokenizer_source; drop one.')
    for key in part:
      if key != 'source':
        raise self.fail(
          f'tokenizer.{key}',
          'not supported: tokens are neither added nor moved; resize the '
          'models first.',
        )
    return self.model(part, 'source', 'tokenizer.')

  def slices(self, raw):
    models, slices = raw.get('models'), raw.get('slices')
    if (models is None) == (slices is None):
      both = 'both are' if models is not None else 'neither is'
      raise self.fail('models, slices', f'{both} given; expected one of them.')
    if models is not None:
      sources = self._sources(models, 'models', ranges=False)
      return (Slice(sources, {}),)
    found = []
    for i, part in enumerate(self._list(slices, 'slices')):
      where = f'slices[{i}]'
      self._check_part(part, where, ('sources', 'parameters'))
      found.append(
        Slice(
          self._sources(part.get('sources'), f'{where}.sources', ranges=True),
          self.parameters(part, f'{where}.', of_model=False),
        )
      )
    return tuple(found)

  def _list(self, value, where):
    if not isinstance(value, list) or not value:
      raise self.fail(
        where, f'{yaml_text.kind(value)}; expected a list of one or more.'
      )
    return value

  def _check_part(self, part, where, known):
    if not isinstance(part, Mapping):
      raise self.fail(
        where, f'{yaml_text.kind(part)}; expected {", ".join(known)}.'
      )
    for key in part:
      if key not in known:
        raise self._unknown(f'{where}.{key}', key, known)

  def _sources(self, value, where, ranges):
    found = []
    for i, part in enumerate(self._list(value, where)):
      key = f'{where}[{i}]'
      known = ('model', *(['layer_range'] if ranges else []), 'parameters')
      self._check_part(part, key, known)
      found.append(
        Source(
          self.model(part, 'model', f'{key}.', needed=True),
          self._range(part.get('layer_range'), f'{key}.layer_range'),
          self.parameters(part, f'{key}.', of_model=True),
          key,
        )
      )
    return tuple(found)

  def _range(self, value, where):
    if value is None:
      return None
    whole = isinstance(value, list) and len(value) == 2
    if (
      not whole or {*map(type, value)} != {int} or not 0 <= value[0] < value[1]
    ):
      raise self.fail(
        where,
        f'{reprlib.repr(value)}; expected [first, end], two whole numbers, of '
        'which the end is not part.',
      )
    return tuple(value)

  def parameters(self, part, where, of_model):
    given = part.get('parameters')
    if given is None:
      return {}
    where = f'{where}parameters'
    if not isinstance(given, Mapping):
      raise self.fail(where, f'{yaml_text.kind(given)}; expected a mapping.')
    found = {}
    for name, value in given.items():
      key = f'{where}.{name}'
      if name in self.method.unused:
        self.unused.add(name)
        continue
      if name not in self.method.known:
        raise self._unknown(key, name, self.method.known)
      if name in self.method.switches:
        found[name] = self._read(value, key, _boolean, 'true or false')
      else:
        found[name] = self._read(value, key, _number, 'a number')
      if of_model and not self.method.of_model(name):
        raise self.fail(
          key, 'is of the whole merge; move it to the parameters outside.'
        )
    return found

  def _read(self, value, key, convert, expected):
    """A value in its form, with numbers that stand as texts converted."""
    if isinstance(value, list) and value:
      if all(isinstance(entry, Mapping) for entry in value):
        return [self._entry(e, key, convert, expected) for e in value]
      if convert is _number:
        return [self._read_one(v, key, convert, expected) for v in value]
    return self._read_one(value, key, convert, expected)

  def _read_one(self, value, key, convert, expected):
    found = convert(value)
    if found is None:
      also = ', a list of them' if convert is _number else ''
      raise self.fail(
        key,
        f'{reprlib.repr(value)}; expected {expected}{also}, or a list of '
        f'filter and value.',
      )
    return found

  def _entry(self, entry, key, convert, expected):
    self._check_part(entry, key, ('filter', 'value'))
    value, wanted = entry.get('value'), entry.get('filter')
    if not isinstance(wanted, str | None):
      raise self.fail(f'{key}.filter', f'{wanted!r}; expected a text.')
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
      raise self.fail(key, 'filters within filters; expected a number.')
    value = self._read(value, f'{key}.value', convert, expected)
    return {'filter': wanted, 'value': value}


def _number(value: Any) -> float | None:
  """A finite number, or the one that a text such as '1e-3' is; else None."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  try:
    number = float(value)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


def _boolean(value: Any) -> bool | None:
  if isinstance(value, str):
    return {'true': True, 'false': False}.get(value.lower())
  return bool(value) if value in (True, False, 0, 1) else None
