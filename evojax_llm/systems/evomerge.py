r"""EvoMerge (arXiv 2402.00070): models that are merged, chosen and tuned.

  evojax-llm evolve --config=evomerge
  evojax-llm evolve --config=evomerge_as_published \
      --config.model=gemma-2-2b-it --config.experts=models/code,models/cot \
      --config.strategy.population=2 --config.tasks=hellaswag.json \
      --config.refine.data=preferences.jsonl

A member is a whole model. Of each generation the best two stay, and children by
spherical interpolation take the other slots; some of them mutate by a few steps
of gradient descent: on the dev items that the search scores (evomerge), or on
pairs {prompt, chosen, rejected} of a file (evomerge_as_published).
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import Preset

_AS_PUBLISHED = {
  'mutate_count': 2.0,
  'keep_top_k': 2,
  'max_population': 6,
  'target_generations': 6,
  'curve': 'default',
  'parents': 'roulette',
  'floor': 0.4,
  'clones': 'parent',
}
PRESETS = {
  'evomerge': Preset('evomerge', {}, ('experts', 'extrapolants'), 10, 24),
  'evomerge_as_published': Preset(
    'evomerge', _AS_PUBLISHED, ('experts',), 10, 6
  ),
}


def get_config(name: str = 'evomerge') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space, config.dev_limit, refine = 'weights', 50, config.refine
  if name.startswith('evomerge_as_published'):
    config.resample = True  # Other items in every generation.
    refine.loss, refine.beta = 'kto_pair', (0.01,)
    refine.lr = (1e-5, 5e-5, 6e-6, 1e-6, 2e-6, 5e-7, 2e-7)
    refine.rank, refine.alpha = (32, 64), (32.0, 64.0)
    refine.rows, refine.steps = 32, 4
    refine.schedule, refine.warmup = 'cosine', 0.1
  else:
    config.strategy.evaluations = 200
    refine.loss, refine.lr = 'sft', (3e-4, 1e-3, 3e-3)
  refine.members_per_group = 2
  return config
