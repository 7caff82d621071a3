r"""An evolution strategy with low-rank noise (after EGGROLL, arXiv 2511.16652).

  python -m experiments.evolve --config=experiments/low_rank_es/config.py
  python -m experiments.evolve --config=experiments/low_rank_es/config.py \
      --config.strategy.options.members=2048 --config.dev_limit=10

`config.strategy.population` is the number of initial members, whose best is the
first centre; `members` are scored in every generation after that.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets

# What a preset does not say. tests/experiments/test_low_rank_es.py holds them
# against strategies.low_rank_es.
OPTIONS = {
  'rank': 1,
  'mirrored': True,
  'shaping': 'centered_rank',
  'optimizer': 'adam',
  'relative_sigma': True,
  'sigma': 0.3,
  'sigma_decay': 1.0,
  'learning_rate': 0.1,
  'learning_decay': 1.0,
}


def get_config(name: str = 'low_rank_es') -> config_dict.ConfigDict:
  return presets.of_preset(name, ('low_rank_es',), OPTIONS, {'members': int})
