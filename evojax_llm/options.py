"""Options that are declared once, as fields of a dataclass.

A field made by `option` has a default, a range or choices, and one line of
text. Checks, configurations, error messages and tables of documentation are
all made from it:

    @dataclasses.dataclass(frozen=True)
    class Tournament:
      entrants: int = option(3, 'members of a tournament', low=1)
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

from evojax_llm.lookup import did_you_mean
from evojax_llm.lookup import expected


@dataclasses.dataclass(frozen=True)
class Option:
  """What is known of an option.

  Attributes:
    name: of the field.
    default: its value where none is given; None for an option that is unset.
    text: one line that says what it does, without a full stop.
    low: least value of a number.
    high: largest value of a number.
    choices: the values that it may have; () for any.
    kind: type of the value, which a default of None does not tell.
    parts: of a mapping, the names that it may have and their types.
  """

  name: str
  default: Any
  text: str
  low: float = -math.inf
  high: float = math.inf
  choices: tuple[Any, ...] = ()
  kind: type = float
  parts: Mapping[str, type] = dataclasses.field(default_factory=dict)

  @property
  def allowed(self) -> str:
    """What values are allowed, in words; '' where anything of the type is."""
    if self.choices:
      return 'one of ' + ', '.join(map(repr, self.choices))
    low, high = math.isfinite(self.low), math.isfinite(self.high)
    if low and high:
      return f'{self.low:g} to {self.high:g}'
    if low:
      return f'{self.low:g} or more'
    return f'{self.high:g} or less' if high else ''

  def check(self, value: Any, what: str = '') -> None:
    """Refuses a value that the option, which is of `what`, cannot have.

    Raises:
      ValueError: saying what was given and what was expected.
    """
    if self.choices:
      fits = value in self.choices
    elif value is None:
      fits = self.default is None
    elif self.kind in (int, float):
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      fits = number and math.isfinite(value) and self.low <= value <= self.high
      fits = fits and (self.kind is float or value == int(value))
    else:
      fits = isinstance(value, self.kind)
    if fits:
      return
    name = 'a finite number' if self.kind is float else self.kind.__name__
    wanted = self.allowed or name
    if self.allowed and not self.choices and isinstance(value, float):
      if not math.isfinite(value):
        wanted += ', finite'
      elif self.kind is int and value != int(value):
        wanted += ', whole'
    of = f' for {what}' if what else ''
    raise ValueError(
      f'Got {self.name} {value!r}{of}; expected {wanted}.'
      f'{did_you_mean(value, map(str, self.choices))}'
    )


def option(
  default: Any,
  text: str,
  *,
  low: float = -math.inf,
  high: float = math.inf,
  choices: tuple[Any, ...] = (),
  kind: type | None = None,
  parts: Mapping[str, type] | None = None,
) -> Any:
  """Makes a dataclass field that declares an option; see `Option`."""
  kind = kind or (float if default is None else type(default))
  known = Option('', default, text, low, high, choices, kind, parts or {})
  metadata = {'option': known}
  if isinstance(default, (dict, list)):
    return dataclasses.field(
      default_factory=lambda: type(default)(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


def option_of(cls: type, name: str, default: Any = None) -> Any:
  """Makes a field like that of another dataclass, with this default if any."""
  known = declared(cls)[name]
  default = known.default if default is None else default
  known = dataclasses.replace(known, default=default)
  return dataclasses.field(default=default, metadata={'option': known})


def declared(*classes: type) -> dict[str, Option]:
  """Returns the options that dataclasses declare, by name, in their order."""
  return {
    field.name: dataclasses.replace(field.metadata['option'], name=field.name)
    for cls in classes
    for field in dataclasses.fields(cls)
    if 'option' in field.metadata
  }


def defaults(*classes: type) -> dict[str, Any]:
  """Returns the default of every option of some dataclasses by name."""
  return {name: known.default for name, known in declared(*classes).items()}


def find(
  name: str, known: Mapping[str, Option], what: str = '', kind: str = 'option'
) -> Option:
  """Returns the option of a name; `kind`s of `what`, in the message.

  Raises:
    ValueError: there is no such option.
  """
  if name in known:
    return known[name]
  of = f' for {what}' if what else ''
  wanted = expected(name, sorted(known), some='some of')
  wanted = wanted if known else '; it has none.'
  raise ValueError(f'Got unknown {kind} {name!r}{of}{wanted}')


def check(values: Mapping[str, Any], *classes: type, what: str = '') -> None:
  """Refuses names that no option has, and values that an option cannot have.

  Dataclasses declare the options of `what`; values are by name.

  Raises:
    ValueError: naming the option, the value and what was expected.
  """
  check_known(values, declared(*classes), what)


def check_known(
  values: Mapping[str, Any], known: Mapping[str, Option], what: str = ''
) -> None:
  """Does what `check` does, with options by name."""
  for name, value in values.items():
    find(name, known, what).check(value, what)


def split(cls: type, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Makes a dataclass of those values, by name, that it declares.

  Returns:
    The instance, with its defaults in place of None, and all other values.
  """
  known = declared(cls)
  own = {k: v for k, v in values.items() if k in known and v is not None}
  return cls(**own), {k: v for k, v in values.items() if k not in known}


def check_list(name: str, given: Any) -> None:
  """Refuses one text or path for several, which reads letter by letter.

  Raises:
    ValueError: saying how to give one.
  """
  if isinstance(given, (str, bytes, os.PathLike)):
    raise ValueError(
      f'Got {name} {given!r}; expected a list, such as [{given!r}].'
    )


def table(known: Mapping[str, Option]) -> str:
  """Returns options, as `declared` returns them, as a Markdown table."""
  lines = ['| option | default | allowed | what it does |', '|---|---|---|---|']
  for one in known.values():
    default = 'unset' if one.default is None else f'`{one.default!r}`'
    if one.parts:
      default, allowed = 'unset', ', '.join(f'`{n}`' for n in one.parts)
    else:
      allowed = one.allowed or one.kind.__name__
    lines.append(f'| `{one.name}` | {default} | {allowed} | {one.text} |')
  return '\n'.join(lines) + '\n'
