"""Configurations of presets, with changes behind plus signs."""

import ast
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from evojax_llm.runs import run_config
from evojax_llm.strategies import presets as strategy_presets


def of_preset(
  name: str,
  strategies: Sequence[str],
  options: Mapping[str, Any],
  unset: Mapping[str, Any] | None = None,
) -> config_dict.ConfigDict:
  """The configuration of a preset.

  Args:
    name: one of `PRESETS` with one of the strategies; options that are
      to differ may follow, as in 'genome_plus+rescore=False+draws=run' or
      'genome+merge=ties+merge_parameters.density=0.5'.
    strategies: names in `registry` that belong to the system.
    options: all options of the strategy's constructor, with defaults.
    unset: types of those, or of more of them by name, that have none.

  Raises:
    ValueError: if there is no such preset or option.
  """
  preset_name, *changes = name.split('+')
  known = [
    name
    for name, preset in strategy_presets.PRESETS.items()
    if preset.strategy in strategies
  ]
  if preset_name not in known:
    raise ValueError(
      f'Got preset {preset_name!r}; expected one of {", ".join(known)}.'
    )
  preset = strategy_presets.PRESETS[preset_name]
  config = run_config.make()
  config.name = name
  config.initial = preset.recipe
  config.strategy = strategy(
    preset.strategy,
    preset.population_size,
    # Rounds of ask, score, tell: in GENOME+ two make a generation as the paper
    # counts.
    preset.rounds,
    {**options, **placeholders(unset or {}), **preset.options},
    preset.patience,
  )
  for change in changes:
    option, _, text = change.partition('=')
    _change(config.strategy.options, option, text)
  return config


def _change(options: config_dict.ConfigDict, name: str, text: str) -> None:
  """Sets one option from text, of the type it has; 'group.option' nests."""
  *groups, last = name.split('.')
  part = options
  for group in groups:
    part = part.get(group) if isinstance(part, config_dict.ConfigDict) else {}
  known = part or {}
  if last not in known or not text:
    among = sorted(known if groups and known else options)
    raise ValueError(
      f"Got the change '{name}={text}' of a preset; expected 'option=value' "
      f'with one of {", ".join(among)}.'
    )
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    value = text  # a name, without quotes
  try:
    if value is None and known[last] is not None:
      raise TypeError('it cannot be left unset.')
    known[last] = value
  except TypeError as error:
    raise ValueError(f"Got the change '{name}={text}': {error}") from error


def placeholders(types: Mapping[str, Any]) -> dict[str, Any]:
  """Options of these types that are not set, by name; mappings nest."""
  return {
    name: placeholders(kind)
    if isinstance(kind, Mapping)
    else config_dict.placeholder(kind)
    for name, kind in types.items()
  }


def strategy(
  name: str,
  population: int,
  generations: int,
  options: Mapping[str, Any],
  patience: int | None = None,
) -> config_dict.ConfigDict:
  """The part of a configuration that says which search is run."""
  part = config_dict.ConfigDict(
    {
      'name': name,
      'population': population,
      'generations': generations,
      'patience': config_dict.placeholder(int),
      'evaluations': config_dict.placeholder(int),
      'tokens': config_dict.placeholder(int),
      'seconds': config_dict.placeholder(float),
      'options': dict(options),
    }
  )
  part.patience = patience
  return part
