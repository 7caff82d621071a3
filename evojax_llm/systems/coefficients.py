"""Random search and CMA-ES on N expert coefficients: what a system must beat.

  evojax-llm evolve --config=cma_es
  evojax-llm evolve --config=random_search

Give them as many evaluations as the system they stand beside: population x
(generations + 1) members are scored.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

PRESETS = {
  'cma_es': Preset('cma_es', {}, RICH, 20, 12),
  'random_search': Preset('random_search', {}, RICH, 20, 12),
}


def get_config(name: str = 'cma_es') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'gates'
  return config
