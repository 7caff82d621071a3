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
  """One setting of a run; the limits are those of `run_config`."""

  strategy: str  # name in `strategies.registry`
  options: Mapping[str, Any]  # of the strategy, in place of its defaults
  recipe: tuple[Any, ...]  # of the initial population; see `genomes.initial`
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
  config = run_config.RunConfig().to_config()
  config.name, config.initial = name, preset.recipe
  limits = preset.population, preset.generations, preset.patience
  config.strategy = run_config.StrategyConfig(
    preset.strategy, *limits
  ).to_config()
  options = config.strategy.options = config_dict.ConfigDict(
    {
      option: run_config.typed(known)
      for option, known in registry.options(preset.strategy).items()
    }
  )
  options.update(preset.options)
  for change in changes:
    option, _, text = change.partition('=')
    try:
      fields.set_text(options, option, text)
    except ValueError as error:
      raise ValueError(f'the change {change!r} of a preset: {error}') from error
  return config
