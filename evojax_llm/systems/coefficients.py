"""Searches over the N weights of the experts: what a system must beat.

  evojax-llm evolve --config=cma_es
  evojax-llm evolve --config=random_search
  evojax-llm evolve --config=merge_then_es

Give them as many evaluations as the system they stand beside: population x
(generations + 1) members are scored.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

# Runs of a few hundred evaluations; evosax has 50.
_RESTARTS = {'min_num_gens': 5.0}
PRESETS = {
  'cma_es': Preset('cma_es', {}, RICH, 20, 12),
  'ipop_cma_es': Preset('ipop_cma_es', _RESTARTS, RICH, 10, 25),
  'bipop_cma_es': Preset('bipop_cma_es', _RESTARTS, RICH, 10, 25),
  'random_search': Preset('random_search', {}, RICH, 20, 12),
  'sep_cma_es': Preset('Sep_CMA_ES', {}, RICH, 20, 12),
  'snes': Preset('SNES', {}, RICH, 20, 12),
  'de': Preset('DifferentialEvolution', {}, RICH, 20, 12),
  'ga_sbx': Preset(
    'genome',
    {'merge': 'sbx', 'parents': 'tournament', 'entrants': 2, 'sigma': 0.3},
    RICH,
    20,
    12,
  ),
  'one_plus_one': Preset('HillClimbing', {}, ('scaled_average',), 1, 259),
  'task_arithmetic': Preset('grid', {'high': 1.0}, RICH, 21, 1),
  'scaled_experts': Preset(
    'grid', {'along': 'each', 'high': 2.0}, RICH, 21, 10
  ),
  'merge_then_es': Preset('cma_es', {}, RICH, 20, 6),
  'essa': Preset('Sep_CMA_ES', {}, RICH, 20, 12),
}
# The best mix of experts, and steps from it in all their weights: four
# generations behind it.
_THEN_ES = (
  {'name': 'merge', 'strategy.evaluations': 130},
  {
    'name': 'es',
    'begin': 'expert',
    'space': 'adapters',
    'initial': ('experts',),
    'strategy.name': 'low_rank_es',
    'strategy.population': 1,
    'strategy.options': {'members': 32},
    'strategy.evaluations': 130,
  },
)


def get_config(name: str = 'cma_es') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.space = 'singular' if name.partition('+')[0] == 'essa' else 'gates'
  if name.partition('+')[0] == 'merge_then_es':
    config.stages = _THEN_ES
  return config
