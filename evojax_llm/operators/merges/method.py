"""What is known of a merge: its function, arity, parameters and properties."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A number that a sweep may vary: traced, so that it recompiles nothing.

  Attributes:
    default: what it is when not given.
    low, high: the range that makes sense, for a search; nothing is refused.
    doc: what it is.
    per_model: whether it may be (k,), one for each parent, instead of ().
    least, most: what it can be at all. A value outside is refused where it is
      known, and cut where it is known to a running program only.
  """

  default: float
  low: float
  high: float
  doc: str
  per_model: bool = False
  least: float = -math.inf
  most: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Merge:
  """A merge of one tensor, function(parents (k, ...), base, ...) -> (...).

  Attributes:
    name: unique.
    function: takes parents, then base (...) where `base` says so, and by name
      `key` where it draws, `axis` where it works `by_row`, the parameters and
      the options.
    least, most: how many parents; None for any number.
    base: 'none', 'optional' or 'required'.
    source: paper or system.
    parameters: by name.
    options: choices by name, the default first; static. Where they are whole
      numbers, any other positive one will do.
    draws: what one draw belongs to, 'tensor', 'matrix' (both factors of an
      adapter), 'layer' or 'genome'; empty if nothing is drawn.
    by_row: whether a matrix's orientation matters; see `leaves.row_axis`.
    linear_in_parents: whether, all else fixed, the child is linear in parents
      and base together.
    chooses: whether weights (1, 0, ...) give parent one.
    idempotent: whether equal parents give that parent, with defaults.
    whole: the same for whole genomes, taken with option span='genome'.
  """

  name: str
  function: Callable[..., Any]
  least: int
  most: int | None
  source: str
  parameters: Mapping[str, Parameter]
  options: Mapping[str, tuple[Any, ...]]
  base: str
  draws: str = ''
  by_row: bool = False
  linear_in_parents: bool = False
  chooses: bool = False
  idempotent: bool = False
  whole: Callable[..., Any] | None = None

  @property
  def needs_base(self) -> bool:
    """Whether there must be a base."""
    return self.base == 'required'
