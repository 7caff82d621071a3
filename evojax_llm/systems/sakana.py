"""Sakana's evolutionary model merging (arXiv 2403.13187).

  evojax-llm evolve --config=parameter_space
  evojax-llm evolve --config=parameter_space_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/math \
      --config.tasks=gsm8k.json
  evojax-llm evolve --config=data_flow --config.layer_path.sources=code,math \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/math \
      --config.tasks=gsm8k.json

In the parameter space a genome is a weight and a density for each expert and
group of tensors, and CMA-ES searches recipes of DARE-TIES. The population is
4 + floor(3 ln n) for n genes: 12 for the ten experts of the pocket population
in one group. In the data-flow space it is a path through the layers of models,
and `hybrid` searches both, one after another.
"""

from typing import Any

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
# The deviation of which the first indicators are multiples.
_SIGMA = {'sigma': 0.1}
_PATHS = {
  # The first generation is one model, A; the last may be cut short.
  'data_flow': Preset('mixed_cma_es', _SIGMA, _START, 20, 10),
  'data_flow_unscaled': Preset('mixed_cma_es', _SIGMA, _START, 20, 10),
  'data_flow_as_published': Preset('cma_es', _SIGMA, _START, 128, 100),
  'hybrid': Preset('mixed_cma_es', _SIGMA, _START, 20, 5),
}
PRESETS = {
  # The first generation is one model, the centre; the last may be cut short.
  name: Preset(
    'cma_es', {'sigma': 1 / 6}, _START, _MEMBERS, -(-(trials - 1) // _MEMBERS)
  )
  for name, trials in _TRIALS.items()
} | _PATHS


def get_config(name: str = 'parameter_space') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  preset = name.partition('+')[0]
  if preset in _PATHS:
    config.space = 'layer_path'
    if preset == 'hybrid':
      config.layer_path.scales = 'hop'
      config.stages = _hybrid()
    elif preset != 'data_flow_as_published':
      config.strategy.evaluations = 200
      unscaled = preset == 'data_flow_unscaled'
      config.layer_path.scales = 'none' if unscaled else 'hop'
    else:
      config.layer_path.off = 0.0
      config.dev_limit = config.pick_items = 200
    return config
  config.strategy.evaluations = _TRIALS[preset]
  config.space = 'merged'
  config.merged.on = 'weights'
  config.merged.method = 'dare_ties'
  config.merged.evolve = 'weights,density'
  config.merged.options = 'normalize=none,rescale=density'
  config.merged.bounds = 'weights=0:1,density=0:1'
  return config


def _hybrid() -> tuple[dict[str, Any], ...]:
  """Returns the stages: recipes, then paths whose A is the merged model."""
  merge = get_config('parameter_space')
  merge.strategy.evaluations = 100
  first = {name: merge[name].to_dict() for name in ('strategy', 'merged')} | {
    'space': merge.space,
    'initial': merge.initial,
  }
  return (
    {'name': 'parameter_space', **first},
    {'name': 'data_flow', 'begin': 'model', 'strategy.evaluations': 100},
  )
