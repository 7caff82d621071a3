"""What is known of an operator: its function, parameters, options and source.

Whatever the signature of the function tells (a key, a base, an axis) is read
from it and declared nowhere else.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
from typing import Any

import jax
import numpy as np

from evojax_llm.options import Option
from evojax_llm.population import stack

KINDS = ('merge', 'mutation', 'succession', 'selection')


@dataclasses.dataclass(frozen=True)
class Parameter(Option):
  """A number that a sweep may vary: traced, so that it recompiles nothing.

  A value below `low` or above `high` is refused where it is known; merges cut
  it where only a running program knows it. `span` is the range that makes sense
  for a search; with `per_model` it may be (k,), one for each parent.
  """

  span: tuple[float, float] = (0.0, 1.0)
  per_model: bool = False

  def check_known(self, value: Any, what: str) -> None:
    """Refuses numbers out of range, in arrays; what is traced passes.

    Raises:
      ValueError: saying what was given and what was expected.
    """
    for one in jax.tree.leaves(value):
      if not isinstance(one, jax.core.Tracer):
        for number in np.unique(np.asarray(one, np.float32)):
          # The shortest decimals that stand for the number in f32.
          self.check(float(str(number)), what)


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
  """An operator on genomes, or one that chooses among members.

  Attributes:
    name: unique.
    kind: one of KINDS.
    function: takes what `takes` declares by name.
    source: paper or system.
    takes: each `Parameter` may be traced; every other option is static.
    text: one line; the first of the function's docstring by default.
  """

  name: str
  kind: str
  function: Callable[..., Any]
  source: str
  takes: tuple[Option, ...] = ()
  text: str = ''

  def __post_init__(self):
    known = self.signature
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
      return
    missing = {option.name for option in self.takes} - set(known)
    if missing:
      raise ValueError(
        f'Got {sorted(missing)} declared for {self.name}; expected names that '
        f'its function takes: {sorted(known)}.'
      )

  @functools.cached_property
  def signature(self) -> Mapping[str, inspect.Parameter]:
    """What the function takes, by name."""
    return inspect.signature(self.function).parameters

  @functools.cached_property
  def parameters(self) -> Mapping[str, Parameter]:
    """Numbers that may be traced, by name."""
    return {o.name: o for o in self.takes if isinstance(o, Parameter)}

  @functools.cached_property
  def options(self) -> Mapping[str, Option]:
    """Static choices, by name."""
    return {o.name: o for o in self.takes if not isinstance(o, Parameter)}

  @property
  def draws(self) -> bool:
    """Whether the function takes a key."""
    return 'key' in self.signature

  @property
  def doc(self) -> str:
    """One line that says what the operator does."""
    return self.text or (self.function.__doc__ or '').split('\n')[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Merge(Operator):
  """A merge of one tensor, function(parents (k, ...), base (...), ...).

  The function takes `base` where it merges deltas, `key` where it draws, and
  `axis` where a matrix's orientation matters (`leaves.row_axis`).

  Attributes:
    parents: how many, at least and at most; None for any number.
    scope: what one draw belongs to, 'tensor', 'matrix' (both factors of an
      adapter), 'layer' or 'genome'.
    whole: the same for whole genomes, taken with the option span='genome'.
    of_deltas: whether parents and base count by their differences alone, where
      there is a base.
  """

  kind: str = dataclasses.field(default='merge', init=False)
  parents: tuple[int, int | None] = (1, None)
  scope: str = 'tensor'
  whole: Callable[..., Any] | None = None
  of_deltas: bool = True

  def __post_init__(self):
    if self.whole is None:
      super().__post_init__()
    object.__setattr__(self, '__doc__', self._documented())

  def _documented(self):
    text = self.text or inspect.getdoc(self.function) or ''
    lines = [f'{text}\n\nTakes parents (k, ...), or a list of them.']
    if self.base != 'none':
      lines[0] = f'{lines[0][:-1]}, and a base (...), {self.base}.'
    for one in self.takes:
      shape = ' () or (k,),' if getattr(one, 'per_model', False) else ''
      allowed = f'; {one.allowed}' if one.allowed else ''
      lines.append(
        f'  {one.name}:{shape} {one.text}{allowed}; {one.default!r} by default.'
      )
    return '\n'.join(lines)

  def __call__(self, parents: Any, base: Any = None, **given: Any) -> Any:
    """Merges parents (k, ...), or k in a list, and a base (...) into one.

    Parameters and options that are not given have their defaults.

    Raises:
      ValueError: a number or numpy array is out of a parameter's range.
    """
    if isinstance(parents, (list, tuple)):
      parents = stack.stack(parents)
    for name, value in given.items():
      # Arrays of a device are left alone: to look at them is to wait for them.
      if name in self.parameters and not isinstance(value, jax.Array):
        self.parameters[name].check_known(value, self.name)
    values = {option.name: option.default for option in self.takes}
    if self.by_row:
      values['axis'] = -1
    if self.whole:
      del values['span']
    bases = () if base is None else (base,)
    return self.function(parents, *bases, **values | given)

  @property
  def least(self) -> int:
    """How many parents there are at least."""
    return self.parents[0]

  @property
  def most(self) -> int | None:
    """How many parents there are at most; None for any number."""
    return self.parents[1]

  @property
  def base(self) -> str:
    """Whether a base is merged with: 'none', 'optional' or 'required'."""
    if 'base' not in self.signature:
      return 'none'
    required = self.signature['base'].default is inspect.Parameter.empty
    return 'required' if required else 'optional'

  @property
  def needs_base(self) -> bool:
    """Whether there must be a base."""
    return self.base == 'required'

  @property
  def by_row(self) -> bool:
    """Whether a matrix's orientation matters."""
    return 'axis' in self.signature
