"""What every experiment configures, and configurations of presets."""

import ast
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from evojax_llm.strategies import presets


def of_preset(
  name: str,
  strategies: Sequence[str],
  options: Mapping[str, Any],
  unset: Mapping[str, Any] | None = None,
) -> config_dict.ConfigDict:
  """The configuration of a preset.

  Args:
    name: one of `presets.PRESETS` with one of the strategies; options that are
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
    for name, preset in presets.PRESETS.items()
    if preset.strategy in strategies
  ]
  if preset_name not in known:
    raise ValueError(
      f'Got preset {preset_name!r}; expected one of {", ".join(known)}.'
    )
  preset = presets.PRESETS[preset_name]
  config = make()
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
      'options': dict(options),
    }
  )
  part.patience = patience
  return part


def make() -> config_dict.ConfigDict:
  """What every experiment configures alike."""
  config = config_dict.ConfigDict()
  # Part of the run folder's name.
  config.name = ''
  config.seed = 0
  # So many runs, of this seed and those that follow, in one launch.
  config.seeds = 1

  # A Hugging Face Gemma folder and PEFT adapter folders of it, the experts,
  # separated by commas. '' is the pocket model and its own experts.
  config.model = ''
  config.adapters = ''
  # Models tuned from it, in the same form; for the space 'weights'.
  config.experts = ''
  # Task files, or names of pocket tasks, or a pocket stage, separated by
  # commas; 'file.py:Name' and 'lm_eval:name' as well.
  config.tasks = 'main'
  # Tasks that the search never sees: their test items are scored at the end.
  config.heldout_tasks = ''
  # Of the tasks in the fitness; () for equal ones.
  config.weights = ()
  # What makes fitness of the tasks' scores: see evojax_llm.fitness.objectives.
  config.objective = 'weighted_mean'
  # Items of each task that the search sees, and a seed that chooses them.
  config.dev_limit = config_dict.placeholder(int)
  config.dev_draw = 0
  # Other dev items in every generation, of which dev_limit says how many; who
  # lives on is scored again on them. Needs a limit to choose by.
  config.resample = False
  config.test_limit = config_dict.placeholder(int)
  # The same, one number for each task; () for those above.
  config.dev_limits = ()
  config.test_limits = ()
  config.allow_overlap = False
  # Run generated code, in a process with limits, where a task asks for it.
  config.allow_code = False
  # Worked examples before each question, from dev items that are then not
  # scored, and a text before everything; as the tasks say where nothing is set.
  config.shots = config_dict.placeholder(int)
  config.shots_seed = config_dict.placeholder(int)
  config.system = config_dict.placeholder(str)
  # Put prompts through the model's chat template.
  config.chat = False

  # 'adapters' evolves LoRA factors, 'coefficients' the weights of experts,
  # 'weights' all parameters of models.
  config.space = 'adapters'
  # Recipes of evojax_llm.genomes.initial, in order; the last one fills up.
  config.initial = ('experts', 'zero', 'scaled_average', 'extrapolants')

  # Folder of a finished run, whose best members then come first.
  config.warm_start = ''

  # The best members vote in the end: at most so many, 0 for no vote. dev says
  # how many; see evojax_llm.fitness.ensembles for rules other than 'auto'.
  config.ensemble = config_dict.ConfigDict({'size': 5, 'rule': 'auto'})
  # Read all experts on test, not only those that are in the table.
  config.test_experts = False

  # Members are stopped when they can no longer matter (see fitness.racing):
  # 'paired' or 'halving', or '' to score all of them on everything.
  config.racing = config_dict.ConfigDict(
    {'rule': '', 'rounds': 3, 'keep': 1, 'z': 2.0}
  )

  # How programs run, which changes no result but for rounding.
  config.execution = config_dict.ConfigDict(
    {
      'dtype': 'float32',
      # 'int8' for eight-bit kernels of the base; what it changes is reported.
      'base_dtype': config_dict.placeholder(str),
      'form': 'auto',
      'members_per_group': config_dict.placeholder(int),
      'prompts_per_batch': config_dict.placeholder(int),
      'memory_budget_gib': config_dict.placeholder(float),
      'max_length': config_dict.placeholder(int),
    }
  )
  return config
