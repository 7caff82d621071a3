"""Random search and CMA-ES on N expert coefficients: what a system must beat.

  python -m experiments.evolve --config=experiments/coefficients/config.py
  python -m experiments.evolve \\
      --config=experiments/coefficients/config.py:random_search

Give them as many evaluations as the system they stand beside: population x
(generations + 1) members are scored.
"""

from ml_collections import config_dict

from experiments.genome import config as genome_config

_OPTIONS = {
  'cma_es': {'sigma': 0.3},
  'random_search': {'concentration': 1.0, 'low': 0.0, 'high': 4.0},
}


def get_config(name: str = 'cma_es') -> config_dict.ConfigDict:
  if name not in _OPTIONS:
    raise ValueError(
      f'Got search {name!r}; expected one of {", ".join(_OPTIONS)}.'
    )
  config = genome_config.base_config()
  config.name = name
  config.space = 'coefficients'
  config.strategy = config_dict.ConfigDict(
    {
      'name': name,
      'population': 20,
      'generations': 12,
      'patience': config_dict.placeholder(int),
      'options': dict(_OPTIONS[name]),
    }
  )
  return config
