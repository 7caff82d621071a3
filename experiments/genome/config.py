"""GENOME and GENOME+ (arXiv 2503.01155), and what every experiment configures.

  python -m experiments.evolve --config=experiments/genome/config.py
  python -m experiments.evolve \\
      --config=experiments/genome/config.py:genome_as_published
  python -m experiments.evolve --config=experiments/genome/config.py \\
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \\
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

The word after the colon is one of evojax_llm.strategies.presets.PRESETS:
genome_plus (default), genome, and for the settings of the released code
genome_as_published and genome_plus_as_published (its scripts), or the same with
_cli behind it (its command-line defaults).
"""

from ml_collections import config_dict

from evojax_llm.strategies import presets

# What a preset does not say. tests/experiments/test_evolve.py holds the
# hyperparameters against those of strategies.genome.
OPTIONS = {
  'crossover': 'extrapolate',
  'selection_method': 'roulette',
  'entrants': 3,
  'relative_sigma': True,
  'mask': 'element',
  'least_elites': 1,
  'elite_rounding': 'floor',
  'elite_base': 'population',
  'cross_rate': 0.8,
  'cross_low': 0.0,
  'cross_high': 2.0,
  'mutation_rate': 0.3,
  'gene_rate': 1.0,
  'sigma': 0.1,
  'scale_rate': 0.0,
  'scale_low': 0.8,
  'scale_high': 1.8,
  'elite_share': 0.1,
  'inertia': 0.2,
  'cognitive': 0.2,
  'social': 0.2,
  'repel': 0.1,
  'step_length': 0.5,
  'step_decay': 0.95,
  'step_floor': 0.0,
}


def get_config(name: str = 'genome_plus') -> config_dict.ConfigDict:
  if name not in presets.PRESETS:
    raise ValueError(
      f'Got preset {name!r}; expected one of {", ".join(presets.PRESETS)}.'
    )
  preset = presets.PRESETS[name]
  config = base_config()
  config.name = name
  config.initial = preset.recipe
  config.strategy = config_dict.ConfigDict(
    {
      'name': preset.strategy,
      'population': preset.population_size,
      # Rounds of ask, score, tell: with succession two make a generation as
      # the paper counts.
      'generations': preset.rounds,
      'patience': config_dict.placeholder(int),
      'options': {**OPTIONS, **preset.options},
    }
  )
  return config


def base_config() -> config_dict.ConfigDict:
  """What every experiment configures alike."""
  config = config_dict.ConfigDict()
  # Part of the run folder's name.
  config.name = ''
  config.seed = 0

  # A Hugging Face Gemma folder and PEFT adapter folders of it, the experts,
  # separated by commas. '' is the pocket model and its own experts.
  config.model = ''
  config.adapters = ''
  # Files, or names of pocket tasks, or a pocket stage, separated by commas.
  config.tasks = 'main'
  # Of the tasks in the fitness; () for equal ones.
  config.weights = ()
  # Items of each task that the search sees, and a seed that chooses them.
  config.dev_limit = config_dict.placeholder(int)
  config.dev_draw = 0
  config.test_limit = config_dict.placeholder(int)
  config.allow_overlap = False
  # Put prompts through the model's chat template.
  config.chat = False

  # 'adapters' evolves LoRA factors, 'coefficients' the weights of experts.
  config.space = 'adapters'
  # Recipes of evojax_llm.genomes.initial, in order; the last one fills up.
  config.initial = ('experts', 'zero', 'scaled_average', 'extrapolants')

  # How programs run, which changes no result but for rounding.
  config.execution = config_dict.ConfigDict(
    {
      'dtype': 'float32',
      'form': 'auto',
      'members_per_group': config_dict.placeholder(int),
      'prompts_per_batch': config_dict.placeholder(int),
      'memory_budget_gib': config_dict.placeholder(float),
      'max_length': config_dict.placeholder(int),
    }
  )
  return config
