"""Configurations of presets, with changes behind plus signs."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm.runs import fields
from evojax_llm.runs import run_config
from evojax_llm.strategies import registry

# What a population begins with, where a paper says nothing.
RICH = run_config.RunConfig().initial


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
  """Returns the configuration of a preset of a system.

  Options that are to differ may follow the name, as in
  'genome_plus+rescore=False+draws=run' or
  'genome+merge=ties+merge_parameters.density=0.5'.

  Raises:
    ValueError: there is no such preset or option.
  """
  preset_name, *changes = name.split('+')
  if preset_name not in presets:
    raise ValueError(
      f'Got preset {preset_name!r}{lookup.expected(preset_name, presets)}'
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
    try:
      fields.set_text(config.strategy.options, option, text)
    except ValueError as error:
      raise ValueError(f'the change {change!r} of a preset: {error}') from error
  return config


def strategy(
  name: str,
  population: int,
  generations: int,
  options: Mapping[str, Any] | None = None,
  patience: int | None = None,
) -> config_dict.ConfigDict:
  """Returns the part of a configuration that says which search is run.

  `options` stand in place of the defaults that the strategy declares.
  """
  part = run_config.to_config(
    run_config.StrategyConfig(name, population, generations, patience)
  )
  known = registry.options(name)
  part.options = config_dict.ConfigDict(
    {name: run_config.typed(option) for name, option in known.items()}
  )
  part.options.update(options or {})
  return part
