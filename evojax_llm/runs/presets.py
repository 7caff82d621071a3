"""Configurations of presets, with changes behind plus signs."""

import ast
from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import config_dict

from evojax_llm.options import Option
from evojax_llm.runs import run_config
from evojax_llm.strategies import registry


@dataclasses.dataclass(frozen=True)
class Preset:
  """One setting of a run.

  Attributes:
    strategy: name in `strategies.registry`.
    options: of the strategy, in place of its defaults.
    recipe: of the initial population; see `genomes.initial`.
    population: members at first.
    generations: rounds of ask, score and tell.
    patience: rounds without a better member after which the run ends.
  """

  strategy: str
  options: Mapping[str, Any]
  recipe: tuple[Any, ...]
  population: int
  generations: int
  patience: int | None = None


def of_preset(
  name: str, presets: Mapping[str, Preset]
) -> config_dict.ConfigDict:
  """Returns the configuration of a preset.

  Args:
    name: of one of the presets; options that are to differ may follow, as in
      'genome_plus+rescore=False+draws=run' or
      'genome+merge=ties+merge_parameters.density=0.5'.
    presets: those of a system.

  Raises:
    ValueError: if there is no such preset or option.
  """
  preset_name, *changes = name.split('+')
  if preset_name not in presets:
    raise ValueError(
      f'Got preset {preset_name!r}; expected one of {", ".join(presets)}.'
    )
  preset = presets[preset_name]
  config = run_config.make()
  config.name = name
  config.initial = preset.recipe
  config.strategy = strategy(
    preset.strategy,
    preset.population,
    preset.generations,
    preset.options,
    preset.patience,
  )
  for change in changes:
    option, _, text = change.partition('=')
    _change(config.strategy.options, option, text)
  return config


def strategy(
  name: str,
  population: int,
  generations: int,
  options: Mapping[str, Any] | None = None,
  patience: int | None = None,
) -> config_dict.ConfigDict:
  """Returns the part of a configuration that says which search is run.

  Args:
    name: in `strategies.registry`.
    population: see `Preset`.
    generations: see `Preset`.
    options: in place of the defaults that the strategy declares.
    patience: see `Preset`.
  """
  values = {k: _default(o) for k, o in registry.options(name).items()}
  part = config_dict.ConfigDict(
    {
      'name': name,
      'population': population,
      'generations': generations,
      'patience': config_dict.placeholder(int),
      'evaluations': config_dict.placeholder(int),
      'tokens': config_dict.placeholder(int),
      'seconds': config_dict.placeholder(float),
      'options': values,
    }
  )
  part.options.update(options or {})
  part.patience = patience
  return part


def _default(option: Option) -> Any:
  """A value as configurations have it: typed, also where it is unset."""
  if option.parts:
    return {k: config_dict.placeholder(v) for k, v in option.parts.items()}
  if option.default is None:
    return config_dict.placeholder(option.kind)
  return option.default


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
