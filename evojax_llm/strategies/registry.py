"""Strategies by name.

Modules are imported when a strategy is made: evosax's algorithms alone take
seconds.
"""

from collections.abc import Mapping
from typing import Any

import jax

from evojax_llm import lookup
from evojax_llm import options as options_lib
from evojax_llm.population import stack
from evojax_llm.strategies.evosax_options import ALGORITHMS
from evojax_llm.strategies.evosax_options import SEARCHES

_HERE = 'evojax_llm.strategies'
STRATEGIES: Mapping[str, str] = {
  'genome': f'{_HERE}.genome.algorithm:Genome',
  'genome_plus': f'{_HERE}.genome.algorithm:Genome',
  'model_swarms': f'{_HERE}.model_swarms:ModelSwarms',
  'low_rank_es': f'{_HERE}.low_rank_es:LowRankES',
  'randopt': f'{_HERE}.randopt:RandOpt',
  'pso_merging': f'{_HERE}.pso_merging:PSOMerging',
  'nsga2': f'{_HERE}.nsga2:NSGA2',
  'evomerge': f'{_HERE}.evomerge.algorithm:EvoMerge',
  'evogm': f'{_HERE}.evogm.algorithm:EvoGM',
  'random_search': f'{_HERE}.evosax:RandomSearch',
  'cma_es': f'{_HERE}.evosax:EvosaxStrategy',
  'mixed_cma_es': f'{_HERE}.mixed_cma_es:MixedCMAES',
  'ipop_cma_es': f'{_HERE}.cma_restarts:RestartedCMAES',
  'bipop_cma_es': f'{_HERE}.cma_restarts:RestartedCMAES',
  'lorahub': f'{_HERE}.lorahub:LoraHub',
  'm2n2': f'{_HERE}.m2n2:M2N2',
  'grid': f'{_HERE}.grid:Grid',
  **dict.fromkeys(ALGORITHMS, f'{_HERE}.evosax:EvosaxStrategy'),
}
# What a name says beside the class.
_CMA_ES = {'algorithm': 'CMA_ES', 'sigma': SEARCHES['cma_es']['sigma'].default}
_IMPLIED: Mapping[str, Mapping[str, Any]] = {
  'genome': {'with_succession': False},
  'genome_plus': {'with_succession': True},
  'cma_es': _CMA_ES,
  'mixed_cma_es': {'sigma': SEARCHES['mixed_cma_es']['sigma'].default},
  'ipop_cma_es': {'two_regimes': False} | _CMA_ES,
  'bipop_cma_es': {'two_regimes': True} | _CMA_ES,
  **{name: {'algorithm': name} for name in ALGORITHMS},
}
_REFUSED = {
  'EvoTF_ES': 'its tell keeps thousands of copies of the population',
  'SV_CMA_ES': 'it starts from several means; CMA_ES starts from one',
  'SV_Open_ES': 'it starts from several means; Open_ES starts from one',
}


def strategy_names() -> tuple[str, ...]:
  """Returns the names that `make_strategy` knows."""
  return tuple(STRATEGIES)


def options(name: str) -> dict[str, options_lib.Option]:
  """Returns the declared options of a strategy by name."""
  for table in (ALGORITHMS, SEARCHES):
    if name in table:
      return dict(table[name])
  return options_lib.declared(*_find(name).declared)


def make_strategy(
  name: str,
  population_size: int,
  space: Any = None,
  *,
  genome: stack.Genome | None = None,
  **options: Any,
) -> Any:
  """Makes a strategy.

  Args:
    name: one of `strategy_names()`, or 'package.module:Object' of a subclass of
      base.Strategy.
    population_size: P.
    space: the genomes.space.Space of the members; None where the strategy needs
      none.
    genome: one genome, or its shapes and types; by default an expert's of the
      space.
    **options: of the strategy; see `options`.

  Raises:
    ValueError: if the name or an option is unknown, there cannot be so many
      members, or the strategy cannot work
      on such genomes.
  """
  size = options_lib.Option('population_size', 1, '', low=1, kind=int)
  size.check(getattr(population_size, 'item', lambda: population_size)())
  stack.check_size(population_size)
  found = _find(name)
  if genome is None and space is not None:
    genome = jax.eval_shape(lambda: stack.take(space.experts(), 0))
  given = {**_IMPLIED.get(name, {}), **options}
  return found.for_space(population_size, space, genome, **given)


def _find(name: str) -> Any:
  if name in _REFUSED:
    raise ValueError(f'Got strategy {name!r}, refused: {_REFUSED[name]}.')
  found = lookup.find(name, STRATEGIES, 'strategy')
  missing = [
    part
    for part in ('for_space', 'declared', 'init', 'ask', 'tell')
    if not hasattr(found, part)
  ]
  if missing:
    raise ValueError(
      f'Got strategy {name!r}, which has no {", ".join(missing)}; expected a '
      'subclass of evojax_llm.strategies.base.Strategy.'
    )
  return found
