r"""An evolution strategy with low-rank noise (after EGGROLL, arXiv 2511.16652).

  evojax-llm evolve --config=low_rank_es
  evojax-llm evolve --config=low_rank_es \
      --config.strategy.options.members=2048 --config.dev_limit=10
  evojax-llm evolve --config=seeded_es --config.dev_limit=10

`config.strategy.population` is the number of initial members, whose best is the
first centre; `members` are scored in every generation after that. In
`seeded_es` they are seeds, of which no genome is kept. `seeded_es_1024` and
`seeded_es_8192` score so many on other few items in every generation, and end
with the centre.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

_MANY = {'centring': 'items', 'keep_best': False}
PRESETS = {
  'low_rank_es': Preset('low_rank_es', {'members': 32}, RICH, 12, 6),
  'seeded_es': Preset('low_rank_es', {'members': 256}, RICH, 12, 6),
  'seeded_es_1024': Preset(
    'low_rank_es', _MANY | {'members': 1024}, RICH, 32, 32
  ),
  'seeded_es_8192': Preset(
    'low_rank_es', _MANY | {'members': 8192}, RICH, 32, 8
  ),
}


def get_config(name: str = 'low_rank_es') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  if name.startswith('seeded'):
    config.space = 'seeded'
  if not config.strategy.options.keep_best:
    config.resample, config.dev_limit, config.ensemble.size = True, 2, 0
  return config
