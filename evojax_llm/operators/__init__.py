"""Pure functions on genomes: merge, mutation, selection, succession.

The public names are imported when they are asked for; README.md lists them.
"""

import importlib

_PUBLIC = {
  'operator': 'Merge Operator Parameter',
  'registry': 'OPERATORS',
  'merges.registry': 'MERGES find_merge',
  'merges.lift': 'merge merge_population',
  'merges.parameters': 'PerModel resolve',
  'merges.parent_weights': 'fitness_weights',
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
_MODULES = {
  n: module for module, names in _PUBLIC.items() for n in names.split()
}
__all__ = sorted(_MODULES)


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return getattr(module, _RENAMED.get(name, name))


def __dir__():
  return __all__
