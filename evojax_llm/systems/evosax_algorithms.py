r"""evosax's own algorithms, on the weights of the experts or on adapters.

  evojax-llm evolve --config=SNES
  evojax-llm evolve --config=SimpleGA \
      --config.space=adapters --config.strategy.options.sigma=0.01 \
      --config.strategy.options.crossover_rate=0.5

The word after the colon is a name of evosax.algorithms, whose options are those
of `strategies.evosax_options`. It works on flat f32 vectors: those that
hold matrices of their square are refused on adapters. `sigma` is the first
standard deviation of the algorithms that have one; that of the experts if
unset.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset
from evojax_llm.strategies import registry
from evojax_llm.strategies.evosax_options import ALGORITHMS

PRESETS = {name: Preset(name, {}, RICH, 20, 9) for name in ALGORITHMS}


def get_config(name: str = 'SimpleGA') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  registry.options(name.partition('+')[0])  # says why one is refused
  config = presets.of_preset(name, PRESETS)
  config.space = 'gates'
  return config
