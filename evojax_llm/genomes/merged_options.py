"""What the space `merged` is told: a method, and what of it evolves."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

from evojax_llm import lookup
from evojax_llm.options import option

WEIGHTS = 'weights'


@dataclasses.dataclass(frozen=True)
class MergedOptions:
  """A merge whose parameters are genes.

  Several of a kind are one text, with commas between; see the reference of
  operators for methods, their parameters and options.
  """

  method: str = option(
    'dare_ties', 'the merge; of several, by commas, a gene chooses'
  )
  evolve: str = option('weights,density', 'the parameters of it that are genes')
  values: str = option('', "other parameters, as in 'lambda_=1.2'")
  options: str = option(
    '', "its static choices, as in 'normalize=none,rescale=l1'"
  )
  groups: str = option(
    'model',
    "what has genes of its own: 'model', 'layer', 'layers:4', 'knots:4' and, "
    "behind a comma, 'class' or 'filters:self_attn/mlp'",
  )
  bounds: str = option(
    '',
    "of genes where the span is not wanted, as in 'weights=-1:1', or on a log "
    "scale 'density=0.01:1:log'",
  )
  weights: str = option(
    'bounds',
    "kept in their 'bounds', on the 'simplex', by 'softmax', 'absolute', or "
    "'free'",
    choices=('bounds', 'simplex', 'softmax', 'absolute', 'free'),
  )
  components: str = option(
    '', 'texts, one of which a tensor name has that is merged; the rest stays'
  )
  on: str = option(
    'factors',
    "what is merged: 'factors' of adapters, their changes 'exact'ly by a "
    "linear method, or 'weights' of models",
    choices=('factors', 'exact', 'weights'),
  )
  rank: int | None = option(
    None,
    "that a change is brought to with on='exact'; unset, it is never formed",
    low=1,
    kind=int,
  )
  stream: str = option(
    'auto',
    "whether experts stay in the host's memory with on='weights', and are "
    "merged a few layers at a time; 'auto' where a device has no room for them",
    choices=('auto', 'yes', 'no'),
  )
  mask_seed: int = option(0, 'of the random masks', low=0, high=2**31 - 1)
  evolve_seed: bool = option(False, 'whether that seed is a gene')

  @functools.cached_property
  def methods(self) -> tuple[str, ...]:
    """Names of the merges."""
    return names(self.method)

  @functools.cached_property
  def genes(self) -> tuple[str, ...]:
    """Names of the parameters that evolve."""
    return names(self.evolve)


def names(text: str) -> tuple[str, ...]:
  """Returns the parts of a text that commas separate."""
  return tuple(part.strip() for part in text.split(',') if part.strip())


def pairs(text: str, what: str) -> dict[str, str]:
  """Reads 'name=value,name=value'.

  Raises:
    ValueError: a part has no name or value, or a name comes twice.
  """
  found: dict[str, str] = {}
  for part in names(text):
    name, sign, value = (piece.strip() for piece in part.partition('='))
    if not (name and sign and value) or name in found:
      raise ValueError(
        f'Got {what} {text!r}; expected NAME=VALUE, each name once, with '
        'commas between.'
      )
    found[name] = value
  return found


def numbers(text: str, what: str) -> dict[str, float]:
  """Reads 'name=1.2,name=3'; see `pairs`."""
  return {
    name: number(value, f'{what} {name}={value}')
    for name, value in pairs(text, what).items()
  }


def number(text: str, what: str) -> float:
  """Reads a finite number.

  Raises:
    ValueError: it is none.
  """
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f'Got {what}; expected a finite number.')
  return value


class Range(NamedTuple):
  """What a gene of 0 and one of 1 stand for, in even steps or even ratios."""

  low: float
  high: float
  log: bool = False


def ranges(text: str) -> dict[str, Range]:
  """Reads 'name=LOW:HIGH,name=LOW:HIGH:log'; see `pairs`."""
  found = {}
  for name, value in pairs(text, 'bounds').items():
    low, sign, high = value.removesuffix(':log').partition(':')
    what, log = f'bounds {name}={value}', value.endswith(':log')
    if not sign:
      raise ValueError(f'Got {what}; expected {name}=LOW:HIGH.')
    found[name] = Range(number(low, what), number(high, what), log)
    if not found[name].low < found[name].high:
      raise ValueError(f'Got {what}; expected the lower one first.')
    if log and not found[name].low > 0.0:
      raise ValueError(f'Got {what}; expected more than 0 on a log scale.')
  return found


def check_known(given: Mapping[str, Any], known: Any, what: str) -> None:
  """Refuses names that none of the methods has."""
  for name in given:
    if name not in known:
      raise ValueError(
        f'Got unknown {what} {name!r}'
        + (lookup.expected(name, sorted(known)) if known else '; it has none.')
      )
