"""Random search and CMA-ES on N expert coefficients: what a system must beat.

  python -m experiments.evolve --config=experiments/coefficients/config.py
  python -m experiments.evolve \\
      --config=experiments/coefficients/config.py:random_search

Give them as many evaluations as the system they stand beside: population x
(generations + 1) members are scored.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs import run_config

PRESETS = ('cma_es', 'random_search')


def get_config(name: str = 'cma_es') -> config_dict.ConfigDict:
  if name not in PRESETS:
    raise ValueError(
      f'Got preset {name!r}; expected one of {", ".join(PRESETS)}.'
    )
  config = run_config.make()
  config.name = name
  config.space = 'gates'
  config.strategy = presets.strategy(name, 20, 12)
  return config
