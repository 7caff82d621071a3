r"""EvoMerge (arXiv 2402.00070): models that are merged, chosen and tuned.

  evojax-llm evolve --config=evomerge
  evojax-llm evolve --config=evomerge_as_published \
      --config.model=gemma-2-2b-it --config.experts=models/code,models/cot \
      --config.strategy.population=2 --config.tasks=hellaswag.json

A member is a whole model. Of each generation the best two stay, and children by
spherical interpolation take the other slots; some of them mutate.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import Preset

_START = ('experts', 'extrapolants')
PRESETS = {
  'evomerge': Preset('evomerge', {'mutation': 'gaussian'}, _START, 10, 24),
}


def get_config(name: str = 'evomerge') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'weights'
  config.strategy.evaluations = 200
  return config
