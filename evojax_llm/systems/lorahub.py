r"""LoraHub (arXiv 2307.13269), with CMA-ES for nevergrad's optimiser.

  evojax-llm evolve --config=lorahub
  evojax-llm evolve --config=lorahub --config.model=gemma-2-2b-it \
      --config.adapters=experts/code,experts/cot,experts/math \
      --config.tasks=mmlu.json

lorahub_as_published has the penalty of the released code, the mean of |w|.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

PRESETS = {
  'lorahub': Preset('lorahub', {}, RICH, 20, 12),
  'lorahub_as_published': Preset(
    # About the 40 evaluations of the paper.
    'lorahub',
    {'penalty': 'mean'},
    ('zero', 'experts', 'extrapolants'),
    10,
    4,
  ),
}


def get_config(name: str = 'lorahub') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'gates'
  return config
