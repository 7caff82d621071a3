r"""Model Swarms (arXiv 2410.11163).

  python -m experiments.evolve --config=experiments/model_swarms/config.py
  python -m experiments.evolve \
      --config=experiments/model_swarms/config.py:model_swarms_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \
      --config.tasks=mmlu.json --config.dev_limit=200

The word after the colon is model_swarms (default), model_swarms_as_published
(the released scripts), model_swarms_as_published_cli (the released command-line
defaults) or moco (what its authors ship in their later toolkit).
"""

from ml_collections import config_dict

from experiments import base_config

# What a preset does not say. tests/experiments/test_evolve.py holds them
# against strategies.model_swarms.
OPTIONS = {
  'restart': 'once',
  'draws': 'particle',
  'velocity_start': 'random',
  'inertia': 0.2,
  'cognitive': 0.3,
  'social': 0.4,
  'repel': 0.05,
  'step_length': 1.0,
  'step_decay': 0.95,
  'step_floor': 0.1,
  'restart_after': 4.0,
  'refractory': 3.0,
  'drop_round': 0.0,
  'drop_member': 0.0,
}


def get_config(name: str = 'model_swarms') -> config_dict.ConfigDict:
  return base_config.of_preset(name, ('model_swarms',), OPTIONS)
