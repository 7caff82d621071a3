r"""evosax's own algorithms, on the weights of the experts or on adapters.

  python -m experiments.evolve \
      --config=experiments/evosax_algorithms/config.py:SNES
  python -m experiments.evolve \
      --config=experiments/evosax_algorithms/config.py:SimpleGA \
      --config.space=adapters --config.strategy.options.sigma=0.01 \
      --config.strategy.options.crossover_rate=0.5

The word after the colon is a name of evosax.algorithms, whose options are those
of `strategies.evosax_options`. It works on flat f32 vectors: those that
hold matrices of their square are refused on adapters. `sigma` is the first
standard deviation, of the algorithms that have one.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs import run_config
from evojax_llm.strategies.evosax_options import ALGORITHMS

PRESETS = tuple(ALGORITHMS)


def get_config(name: str = 'SimpleGA') -> config_dict.ConfigDict:
  config = run_config.make()
  config.name = name
  config.space = 'gates'
  config.strategy = presets.strategy(name, 20, 9)
  if 'sigma' in config.strategy.options:
    config.strategy.options.sigma = 0.3
  return config
