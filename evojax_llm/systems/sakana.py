r"""Sakana's evolutionary merging in the parameter space (arXiv 2403.13187).

  evojax-llm evolve --config=parameter_space
  evojax-llm evolve --config=parameter_space --config.model=gemma-2-2b-it \
      --config.adapters=experts/code,experts/cot,experts/math \
      --config.strategy.population=9 --config.tasks=gsm8k.json

A genome is a weight and a density for each expert and group of tensors, and
CMA-ES searches recipes of DARE-TIES. The population is 4 + floor(3 ln n) for n
genes: 12 for the ten experts of the pocket population in one group.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import Preset

_START = ('centre',)
# Members of a generation for 20 genes.
_MEMBERS = 12
_TRIALS = {
  'parameter_space': 200,
  'parameter_space_long': 1000,
  'parameter_space_as_published': 1000,
}
PRESETS = {
  # The first generation is one model, the centre; the last may be cut short.
  name: Preset(
    'cma_es', {'sigma': 1 / 6}, _START, _MEMBERS, -(-(trials - 1) // _MEMBERS)
  )
  for name, trials in _TRIALS.items()
}


def get_config(name: str = 'parameter_space') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.strategy.evaluations = _TRIALS[name.partition('+')[0]]
  config.space = 'merged'
  config.merged.on = 'weights'
  config.merged.method = 'dare_ties'
  config.merged.evolve = 'weights,density'
  config.merged.options = 'normalize=none,rescale=density'
  config.merged.bounds = 'weights=0:1,density=0:1'
  return config
