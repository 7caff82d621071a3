r"""M2N2 (arXiv 2508.16204): an archive of members that compete for items.

  evojax-llm evolve --config=m2n2
  evojax-llm evolve --config=m2n2 --config.space=weights \
      --config.adapters= --config.experts=pocket
  evojax-llm evolve --config=m2n2 --config.model=gemma-2-2b-it \
      --config.adapters=experts/code,experts/cot --config.tasks=mmlu.json

A round makes and scores one child, so that a run scores P members and then one
a generation: 200 in all of m2n2 and of m2n2_ga, the plain genetic algorithm
(alpha = 0 and no matchmaker). m2n2_as_published begins with two experts, has an
archive of 20, and scores 1000 members.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

_ARCHIVE = {'archive': 20}
PRESETS = {
  'm2n2': Preset('m2n2', _ARCHIVE, RICH, 10, 190),
  'm2n2_ga': Preset(
    'm2n2', _ARCHIVE | {'alpha': 0.0, 'matchmaker': False}, RICH, 10, 190
  ),
  'm2n2_as_published': Preset('m2n2', _ARCHIVE, ('experts',), 2, 998),
}


def get_config(name: str = 'm2n2') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  # A generation is one child: writing the archive may take longer than it.
  config.checkpoint_every = 10
  return config
