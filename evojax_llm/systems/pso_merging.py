r"""PSO-Merging (arXiv 2508.19839).

  evojax-llm evolve --config=pso_merging
  evojax-llm evolve --config=pso_merging --config.model=gemma-2-2b-it \
      --config.adapters=experts/code,experts/cot,experts/math \
      --config.strategy.population=7 --config.tasks=mmlu.json

The population is the base, N experts and N sparsified ones: give 2 N + 1.
pso_merging takes 5 steps, as with models of 7 to 13 B; pso_merging_long 50, as
with Flan-T5.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import Preset

# The pocket population has ten experts.
_MEMBERS = 21
_ANCHORS = ('zero', 'experts')
PRESETS = {
  'pso_merging': Preset('pso_merging', {}, _ANCHORS, _MEMBERS, 5),
  'pso_merging_long': Preset('pso_merging', {}, _ANCHORS, _MEMBERS, 50),
}


def get_config(name: str = 'pso_merging') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'sparsified_gates'
  return config
