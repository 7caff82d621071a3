r"""Random perturbations: a vote of the best, and their mean (RandOpt, CoRP).

  evojax-llm evolve --config=randopt --config.dev_limit=10
  evojax-llm evolve --config=corp --config.dev_limit=10

The best of the initial population is the centre. `randopt` scores 2000 seeds
around it, the best 50 of which vote; `corp` scores 500, puts the best 50 into
one model, and picks the result by dev items that the search does not see.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

_KEEP = 50
PRESETS = {
  'randopt': Preset(
    'randopt', {'members': 2000, 'keep': _KEEP, 'means': 0}, RICH, 12, 1
  ),
  'corp': Preset(
    'randopt', {'members': 500, 'keep': _KEEP, 'means': 5}, RICH, 12, 6
  ),
}
_PICK_ITEMS = 20


def get_config(name: str = 'randopt') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'seeded'
  # Ranked and voting on the same few items, one would seem to be enough.
  config.ensemble.size, config.ensemble.fixed = _KEEP, True
  if name.startswith('corp'):
    config.pick_items = _PICK_ITEMS
  return config
