"""Pure functions on genomes: merge, mutation, selection, succession.

The public names are imported when they are asked for; README.md lists them.
"""

from evojax_llm.lookup import public_names as _public_names

_PUBLIC = {
  'operator': 'Merge Operator Parameter',
  'registry': (
    'OPERATORS arcee_fusion blx breadcrumbs breadcrumbs_ties dare_linear '
    'dare_ties della della_linear exact_linear extrapolate karcher linear '
    'magnitude_linear model_stock multislerp nearswap nuslerp passthrough ram '
    'ramplus sbx sce slerp split_slerp task_arithmetic ties uniform_element '
    'uniform_layer uniform_matrix'
  ),
  'merges.registry': 'MERGES find_merge',
  'merges.lift': 'merge merge_population',
  'merges.parameters': 'PerModel resolve',
  'merges.linear': 'fitness_weights',
  'mutation': 'gaussian scale scale_by',
  'low_rank': 'perturb',
  'lora_algebra': 'compress weighted_sum',
  'succession': 'swarm first_velocity start_velocities Memory start_memory',
  'selection': 'truncation roulette rank tournament universal',
  'survival': 'elite_count survivors',
  'niching': 'shared_fitness mates',
  'pareto': 'ranking',
}
_RENAMED = {'find_merge': 'find', 'merge': 'genome'}
_RENAMED |= {'merge_population': 'population'}
_NAMES = {
  name: f'{__name__}.{module}:{_RENAMED.get(name, name)}'
  for module, names in _PUBLIC.items()
  for name in names.split()
}
__all__ = sorted(_NAMES)
__getattr__, __dir__ = _public_names(__name__, _NAMES)
