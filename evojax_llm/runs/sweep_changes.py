"""What the trials of a sweep change of a configuration.

A change is a mapping such as {'strategy.options.sigma': 0.1, 'seed': 3}, and a
sweep is a list of them. A configuration file says so in a function:

    def sweep():
      return changes.product(
        changes.values('strategy.options.sigma', 0.01, 0.1, 1.0),
        changes.values('seed', *range(5)),
      )

and a command line in text: 'strategy.options.sigma=0.01,0.1,1;seed=0..4'.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import math
import random
import re
from typing import Any

from ml_collections import config_dict

from evojax_llm.runs import fields
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig

Change = Mapping[str, Any]
_LONGEST_NAME = 120
# What stands between commas that are outside of brackets and quotes.
_ITEM = re.compile(r'(?:[^,(\["\']|\(.*?\)|\[.*?\]|".*?"|\'.*?\')+')
_FIELDS = {field.name for field in dataclasses.fields(RunConfig)}


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of a sweep."""

  name: str  # of its folder, below that of the sweep
  config: RunConfig
  changes: Mapping[str, Any]  # what tells it from other trials, by field


def values(field: str, *given: Any) -> list[Change]:
  """Returns a change for each value of a field."""
  return [{field: value} for value in given]


def product(*parts: Iterable[Change]) -> list[Change]:
  """Combines each change of a part with each of the others."""
  return [_merged(combined) for combined in itertools.product(*parts)]


def zipped(*parts: Iterable[Change]) -> list[Change]:
  """Combines the first changes of all parts of a length, then the second..."""
  return [_merged(combined) for combined in zip(*parts, strict=True)]


def chain(*parts: Iterable[Change]) -> list[Change]:
  """Returns the changes of one part after those of another."""
  return list(itertools.chain(*parts))


def draws(
  count: int,
  fields: Mapping[str, Sequence[Any] | Callable[[random.Random], Any]],
  seed: int = 0,
) -> list[Change]:
  """Draws changes at random, the first ones whatever their count.

  A value is drawn from a sequence, or by a function such as `uniform(0.1, 1.0)`
  of a `random.Random`.
  """
  chance = random.Random(seed)
  return [
    {
      field: source(chance) if callable(source) else chance.choice(source)
      for field, source in fields.items()
    }
    for _ in range(count)
  ]


def uniform(low: float, high: float) -> Callable[[random.Random], float]:
  """Draws evenly from [low, high], to four digits."""
  return lambda chance: float(f'{chance.uniform(low, high):.4g}')


def log_uniform(low: float, high: float) -> Callable[[random.Random], float]:
  """Draws evenly from the logarithms of [low, high], to four digits."""
  ends = math.log(low), math.log(high)
  return lambda chance: float(f'{math.exp(chance.uniform(*ends)):.4g}')


def integers(low: int, high: int) -> Callable[[random.Random], int]:
  """Draws evenly from low, ..., high."""
  return lambda chance: chance.randint(low, high)


def _merged(combined: Iterable[Change]) -> Change:
  return {field: value for part in combined for field, value in part.items()}


def parse(
  text: str, config: config_dict.ConfigDict, what: str = '--sweep'
) -> list[Change]:
  """Reads 'field=1,2,3;other=0..4' as the product of its fields.

  Values have the types that the fields have in `config`, and are separated by
  commas outside of brackets and quotes; 0..4 is 0, 1, 2, 3, 4. `what` is where
  the text comes from, for messages.

  Raises:
    UserError: there is no such field, or a value is not of its type.
  """
  parts: dict[str, list[Change]] = {}
  for part in filter(None, map(str.strip, text.split(';'))):
    field, equals, listed = part.partition('=')
    field = field.strip()
    if not equals or not listed.strip() or field in parts:
      raise UserError(
        f"Got {what} with {part!r}; expected 'field=value,value' once for each "
        "field, and ';' between them."
      )
    group, name = fields.find(config, field)
    parts[field] = []
    for item in map(str.strip, _ITEM.findall(listed)):
      bounds = re.fullmatch(r'(-?\d+)\.\.(-?\d+)', item)
      if bounds and group.get_type(name) in (int, float):
        given = range(int(bounds[1]), int(bounds[2]) + 1)
      else:
        given = [fields.parse(config, field, item)]
      parts[field] += values(field, *given)
  if not parts or not all(parts.values()):
    raise UserError(f'Got {what}={text!r}; expected values of a field.')
  return product(*parts.values())


def trials(config: Any, changes: Iterable[Change] = ({},)) -> list[Trial]:
  """Makes a trial of each change of a configuration, and of each of its seeds.

  Raises:
    UserError: there is no such field, or a value cannot be.
  """
  if isinstance(config, RunConfig):
    config = config.to_config()
  changes = list(changes)
  if config.seeds > 1 and not any('seed' in change for change in changes):
    changes = product(changes, values('seed', *_seeds(config)))
  made = []
  for name, change in zip(names(changes), changes, strict=True):
    changed = config.copy_and_resolve_references()
    for field, value in ({'seeds': 1} | dict(change)).items():
      fields.set_value(changed, field, value)
    made.append(Trial(name, RunConfig.from_config(changed), dict(change)))
  return made


def as_trials(configs: Any) -> list[Trial]:
  """Returns trials as they are, or those of configurations and their seeds.

  Configurations come by name, or alone, named by what differs among them.
  """
  if isinstance(configs, Mapping):
    return [
      Trial(
        f'{name},{trial.name}', trial.config, {'config': name, **trial.changes}
      )
      for name, config in configs.items()
      for trial in trials(
        RunConfig.from_config(config), values('seed', *_seeds(config))
      )
    ]
  if isinstance(
    configs, (str, RunConfig, config_dict.ConfigDict)
  ) or not hasattr(configs, '__iter__'):
    raise UserError(
      f'Got {configs!r} for the trials of a sweep; expected a list of them, '
      'of configurations, or configurations by name.'
    )
  configs = list(configs)
  if all(isinstance(config, Trial) for config in configs):
    return configs
  read = [
    dataclasses.replace(config, seed=seed, seeds=1)
    for config in map(RunConfig.from_config, configs)
    for seed in _seeds(config)
  ]
  flat = [fields.flat(config.to_dict()) for config in read]
  varied = [
    field
    for field in dict.fromkeys(itertools.chain(*flat))
    if len({repr(one.get(field, '')) for one in flat}) > 1
  ]
  changes = [{f: one[f] for f in varied if f in one} for one in flat]
  return list(map(Trial, names(changes), read, changes))


def _seeds(config: Any) -> range:
  return range(config.seed, config.seed + config.seeds)


def conflicts(first: Trial, other: Trial) -> list[str]:
  """Returns the fields that differ in two trials and that neither changes."""
  changed = first.changes.keys() | other.changes.keys()
  if first.name == other.name:
    changed = set()
  if any(field.split('.')[0] not in _FIELDS for field in changed):
    return []  # named configurations may differ in anything
  there, here = (fields.flat(t.config.to_dict()) for t in (first, other))
  return [
    f'{name}: {there.get(name)!r} there, {here.get(name)!r} here'
    for name in {**there, **here}
    if _plain(there.get(name)) != _plain(here.get(name))
    and (name in there and name in here or name.startswith('stages'))
    and not any(name == f or name.startswith(f'{f}.') for f in changed)
  ]


def names(changes: Sequence[Change]) -> list[str]:
  """Returns a name for each change, of which folders can be made.

  As much of a field is in it as tells the fields of all changes apart:
  'sigma=0.1,seed=3'.

  Raises:
    UserError: two changes differ in nothing that a name shows.
  """
  short = short_names(list(dict.fromkeys(itertools.chain(*changes))))
  made: dict[str, Change] = {}
  for change in changes:
    name = ','.join(f'{short[f]}={_shown(v)}' for f, v in change.items())
    name = name or 'unchanged'
    if len(name) > _LONGEST_NAME:
      digest = hashlib.sha256(repr(change).encode()).hexdigest()[:8]
      name = f'{name[: _LONGEST_NAME - 9]}-{digest}'
    if made.setdefault(name, change) is not change:
      raise UserError(f'Got the trial {name} twice; expected different ones.')
  return list(made)


def short_names(swept: Sequence[str]) -> dict[str, str]:
  """Returns the shortest ends of dotted names that tell them apart."""
  short = {}
  for field in swept:
    parts, length = field.split('.'), 1
    others = [f.split('.') for f in swept if f != field]
    while any(other[-length:] == parts[-length:] for other in others):
      length += 1
    short[field] = '.'.join(parts[-length:])
  return short


def _shown(value: Any) -> str:
  return re.sub(r'[^\w.+-]+', '+', str(value)).strip('+') or 'none'


def _plain(value: Any) -> Any:
  """Sequences as JSON has them."""
  return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value
