"""The searches of a run of several: what each changes, and how it begins.

    stages=(
      {'space': 'gates', 'strategy.name': 'cma_es', 'strategy.population': 20},
      {'begin': 'expert', 'strategy.name': 'low_rank_es'},
    )

Each of them has the settings of the run but for its changes, by their dotted
names, and all but the first begin from the best of the one before.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import copy
import dataclasses
import itertools
import re
from typing import Any
from typing import NamedTuple

from evojax_llm.runs import errors

# How a stage begins from the best of the one before it.
BEGINNINGS = {
  'model': 'its best is the model, adapters folded into it',
  'expert': 'its best is the first expert',
  'members': 'its best members come first in the initial population',
}
# Without these all stages are scored on the same items, or nothing is compared.
_COMMON = ('tasks', 'heldout_tasks', 'weights', 'objective', 'format', 'shots')
_COMMON += ('dev_limit', 'dev_draw', 'dev_limits', 'test_limit', 'test_limits')
_COMMON += ('shots_seed', 'system', 'chat', 'allow_overlap', 'drop_overlap')
_COMMON += ('pick_items', 'skip_bad_rows', 'allow_code', 'seeds', 'stages')
_INPUTS = ('model', 'adapters', 'experts')


class Search(NamedTuple):
  """One search of a run."""

  folder: str  # below the run's folder; '' where that is its own
  config: Any  # a `RunConfig` without stages
  inputs: frozenset[str]  # which of model, adapters and experts it names

  @property
  def label(self) -> str:
    """The name of its folder, or of the search."""
    return self.config.name or self.config.strategy.name


def split(config: Any) -> tuple[Search, ...]:
  """Returns the searches of a `RunConfig`: one, where it has no stages.

  Raises:
    UserError: a stage changes what it cannot, or begins in no known way.
  """
  if not config.stages:
    return (Search('', config, frozenset(_INPUTS)),)
  if config.begin or config.warm_start:
    what = 'begin' if config.begin else 'warm_start'
    raise errors.UserError(
      f'config.{what} is of one search, and config.stages names several: set '
      'it in one of these.'
    )
  return tuple(
    _search(config, number, changes)
    for number, changes in enumerate(config.stages, 1)
  )


def _search(config: Any, number: int, changes: Any) -> Search:
  where = f'config.stages, stage {number}'
  if not isinstance(changes, Mapping):
    raise errors.UserError(
      f'{where}: got {changes!r}; expected changes by name, such as '
      "{'strategy.name': 'cma_es'}."
    )
  values = config.to_dict() | {'stages': (), 'seeds': 1, 'name': ''}
  flat = dict(_flat(config, changes))
  if flat.get('strategy.name', config.strategy.name) != config.strategy.name:
    values['strategy']['options'] = {}  # those of another strategy
  if number > 1 and flat.get('begin') != 'members':
    values['fine_tuning']['steps'] = 0  # a baseline of the first alone
  for field, value in flat.items():
    *groups, name = field.split('.')
    if (groups or [name])[0] in _COMMON:
      raise errors.UserError(
        f'{where}: got config.{field}, which is the same in all stages, as '
        'they are compared; set it beside config.stages.'
      )
    part = values
    for group in groups:
      part = part.setdefault(group, {})
      if not isinstance(part, dict):
        raise errors.UserError(f'{where}: got unknown config.{field}.')
    part[name] = copy.deepcopy(value)  # the next change may be inside of it
  try:
    made = type(config).from_config(values)
  except errors.UserError as error:
    raise errors.UserError(f'{where}: {error}') from error
  if bool(made.begin) != (number > 1):
    ways = '; '.join(f'{name!r}: {text}' for name, text in BEGINNINGS.items())
    raise errors.UserError(
      f'{where}: got begin={made.begin!r}; expected '
      + (f'how it begins from the stage before it ({ways}).' * (number > 1))
      + 'none, as there is no stage before it.' * (number == 1)
    )
  label = re.sub(r'[^\w.,+=-]+', '_', made.name or made.strategy.name)
  named = frozenset(_INPUTS).intersection(flat)
  return Search(f'stages/{number}_{label}', made, named)


def divide(
  config: Any, evaluations: int, generations: int
) -> tuple[dict[str, Any], ...]:
  """Returns the stages of a `RunConfig` with other ends.

  Args:
    config: its stages have `strategy.evaluations`.
    evaluations: of all stages, which share them in proportion to theirs.
    generations: each has, at most.

  Raises:
    UserError: a stage has no evaluations, or scores its members unlike others.
  """
  if not config.stages:
    return ()
  shares = []
  for number, search in enumerate(split(config), 1):
    one, where = search.config, f'config.stages, stage {number}'
    if not one.strategy.evaluations:
      raise errors.UserError(
        f'{where}: got no config.strategy.evaluations; expected a number, in '
        'proportion to which all are divided.'
      )
    if one.racing.rule or one.estimate.rule or one.resample:
      raise errors.UserError(
        f'{where}: got config.racing, config.estimate or config.resample, '
        'which have no part in a comparison: all members are scored on the '
        'same items.'
      )
    shares.append(one.strategy.evaluations)
  if evaluations < len(shares):
    raise errors.UserError(
      f'Got {evaluations} evaluations for {len(shares)} stages; expected one '
      'for each at least.'
    )
  cuts = [0]
  for number, planned in enumerate(itertools.accumulate(shares), 1):
    cut = round(evaluations * planned / sum(shares))
    left = len(shares) - number  # for each of these one is kept
    cuts.append(min(max(cut, cuts[-1] + 1), evaluations - left))
  return tuple(
    dict(_flat(config, changes))
    | {
      'strategy.evaluations': high - low,
      'strategy.generations': generations,
      'strategy.patience': None,
    }
    for changes, (low, high) in zip(
      config.stages, itertools.pairwise(cuts), strict=True
    )
  )


def _flat(config: Any, changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Changes by dotted names; a part of a configuration may be a mapping."""
  for name, value in changes.items():
    part = dataclasses.is_dataclass(getattr(config, str(name), None))
    if part and isinstance(value, Mapping):
      for inner, one in value.items():
        yield f'{name}.{inner}', one
    else:
      yield str(name), value
