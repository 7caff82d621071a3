r"""EvoGM (arXiv 2605.29295): learned proposals of weights of experts.

  evojax-llm evolve --config=evogm
  evojax-llm evolve --config=evogm_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

The presets are evogm (default), evogm_as_published (elites that begin a round
are scored again), evogm_paper (new generators in every iteration), and two
ablations, evogm_single_generator and evogm_no_cycle. With T iterations in a
round, R rounds are R (T + 1) - 1 generations. The population must be larger
than the number of experts.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import Preset

_START = ('experts', 'average', 'uniform')
_OPTIONS = {
  'evogm': {},
  'evogm_as_published': {'cache': False},
  'evogm_paper': {'mode': 'paper'},
  'evogm_single_generator': {'generators': 'single'},
  'evogm_no_cycle': {'cycle_scale': 0.0},
}
# Two rounds of three iterations.
PRESETS = {
  name: Preset('evogm', options, _START, 20, 7)
  for name, options in _OPTIONS.items()
}


def get_config(name: str = 'evogm') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'gates'
  return config
