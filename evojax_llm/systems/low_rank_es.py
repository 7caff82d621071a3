r"""An evolution strategy with low-rank noise (after EGGROLL, arXiv 2511.16652).

  evojax-llm evolve --config=low_rank_es
  evojax-llm evolve --config=low_rank_es \
      --config.strategy.options.members=2048 --config.dev_limit=10
  evojax-llm evolve --config=seeded_es --config.dev_limit=10

`config.strategy.population` is the number of initial members, whose best is the
first centre; `members` are scored in every generation after that. In
`seeded_es` they are seeds, of which no genome is kept.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

PRESETS = {
  'low_rank_es': Preset('low_rank_es', {'members': 32}, RICH, 12, 6),
  'seeded_es': Preset('low_rank_es', {'members': 256}, RICH, 12, 6),
}


def get_config(name: str = 'low_rank_es') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  if name.startswith('seeded'):
    config.space = 'seeded'
  return config
