r"""evosax's own algorithms, on the weights of the experts or on adapters.

  python -m experiments.evolve \
      --config=experiments/evosax_algorithms/config.py:SNES
  python -m experiments.evolve \
      --config=experiments/evosax_algorithms/config.py:SimpleGA \
      --config.space=adapters --config.strategy.options.sigma=0.01

The word after the colon is a name of evosax.algorithms. It works on flat f32
vectors: those that hold matrices of their square are refused on adapters.
`sigma` is the first standard deviation, of the algorithms that have one.
"""

from ml_collections import config_dict

from experiments import base_config


def get_config(name: str = 'SimpleGA') -> config_dict.ConfigDict:
  config = base_config.make()
  config.name = name
  config.space = 'coefficients'
  config.strategy = base_config.strategy(name, 20, 9, {'sigma': 0.3})
  return config
