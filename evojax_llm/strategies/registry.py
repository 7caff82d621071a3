"""Strategies by name.

Modules are imported when a strategy is made: evosax's algorithms alone take
seconds.
"""

import importlib
from typing import Any
import warnings

import jax

from evojax_llm.population import stack
from evojax_llm.strategies.evosax_options import STOCK_OPTIONS

# Our own: name to module and class, and options that the name implies.
_OWN = {
  'genome': ('genome.algorithm', 'Genome', {'with_succession': False}),
  'genome_plus': ('genome.algorithm', 'Genome', {'with_succession': True}),
  'model_swarms': ('model_swarms', 'ModelSwarms', {}),
  'low_rank_es': ('low_rank_es', 'LowRankES', {}),
}

_REFUSED = {
  'EvoTF_ES': 'its tell keeps thousands of copies of the population',
  'SV_CMA_ES': 'it starts from several means; CMA_ES starts from one',
  'SV_Open_ES': 'it starts from several means; Open_ES starts from one',
}

# These hold matrices of N x N over the N numbers of a genome.
_QUADRATIC = (
  'ASEBO',
  'CMA_ES',
  'DiffusionEvolution',
  'MA_ES',
  'iAMaLGaM_Full',
  'xNES',
)
MAX_QUADRATIC = 4096
# evosax counts the numbers of a genome in 32 bits.
MAX_FLAT = 2**31 - 1
# From so many bytes in one flat copy of the population on, the user is warned.
LARGE_COPY = 2**28


def strategy_names() -> tuple[str, ...]:
  """Names that `make_strategy` knows."""
  return (*_OWN, *STOCK_OPTIONS)


def make_strategy(
  name: str,
  population_size: int,
  genome: stack.Genome,
  *,
  base: stack.Genome | None = None,
  **options: Any,
) -> Any:
  """Makes a strategy.

  Args:
    name: one of `strategy_names()`.
    population_size: P.
    genome: one genome, or its shapes and types; evosax's own algorithms need
      it, and the others tell by it what they cannot work on.
    base: genome of the base, for merges of what parents change of it.
    **options: of the strategy's constructor: genome.Genome or stock.Stock.

  Returns:
    A `base.Strategy`.

  Raises:
    ValueError: if the name is unknown, or the algorithm cannot work on such
      genomes.
  """
  if name in _OWN:
    module_name, class_name, implied = _OWN[name]
    if module_name == 'genome.algorithm':
      implied = implied | {'merge_base': base}
    module = importlib.import_module(f'evojax_llm.strategies.{module_name}')
    strategy = getattr(module, class_name)(population_size, **implied | options)
    if genome is not None:
      strategy.check_genome(genome)
    return strategy
  if name in _REFUSED:
    raise ValueError(f'Got strategy {name!r}, refused: {_REFUSED[name]}.')
  if name not in STOCK_OPTIONS:
    raise ValueError(
      f'Got strategy {name!r}; expected one of {strategy_names()}.'
    )
  _check_size(name, population_size, genome, options)
  module = importlib.import_module('evojax_llm.strategies.evosax')
  return module.Stock(name, population_size, genome, **options)


def _check_size(name, population_size, genome, options):
  numbers = sum(leaf.size for leaf in jax.tree.leaves(genome))
  quadratic = name in _QUADRATIC and not options.get('num_latent_dims')
  if quadratic and numbers > MAX_QUADRATIC:
    raise ValueError(
      f'Got genomes of {numbers:,} numbers for {name!r}, refused: it holds '
      f'matrices of their square; expected at most {MAX_QUADRATIC:,}. Evolve '
      'coefficients instead of weights, or take an algorithm of linear memory '
      "such as 'Sep_CMA_ES'."
    )
  if numbers > MAX_FLAT:
    raise ValueError(
      f'Got genomes of {numbers:,} numbers for {name!r}, refused: evosax '
      f"counts to {MAX_FLAT:,}. Take 'genome' or 'genome_plus', which have no "
      'such limit.'
    )
  copy = 4 * numbers * population_size
  if copy >= LARGE_COPY:
    warnings.warn(
      f'{name} ravels its population of {population_size} members of '
      f'{numbers:,} numbers, {copy / 2**30:.1f} GiB in f32, and makes up to '
      "ten copies of it in every generation. 'genome', 'genome_plus', "
      "'model_swarms' and 'low_rank_es' keep it as it is.",
      stacklevel=3,
    )
