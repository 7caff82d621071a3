"""Strategies by name.

Modules are imported when a strategy is made: evosax's algorithms alone take
seconds.
"""

import importlib
from typing import Any

import jax

from evojax_llm.population import stack

# Our own: name to module and class, and options that the name implies.
_OWN = {
  'genome': ('genome', 'Genome', {'with_succession': False}),
  'genome_plus': ('genome', 'Genome', {'with_succession': True}),
  'model_swarms': ('model_swarms', 'ModelSwarms', {}),
}

# evosax's algorithms, by their keys in evosax.algorithms.algorithms.
_STOCK = (
  'ARS',
  'ASEBO',
  'CMA_ES',
  'CMAAnchoredLES',
  'CR_FM_NES',
  'DES',
  'DifferentialEvolution',
  'DiffusionEvolution',
  'ESMC',
  'GESMR_GA',
  'GradientlessDescent',
  'GuidedES',
  'HillClimbing',
  'LES',
  'LGA',
  'LM_MA_ES',
  'MA_ES',
  'MR15_GA',
  'NoiseReuseES',
  'Open_ES',
  'PGPE',
  'PSO',
  'PersistentES',
  'RandomSearch',
  'Rm_ES',
  'SAMR_GA',
  'SNES',
  'Sep_CMA_ES',
  'SimpleES',
  'SimpleGA',
  'SimulatedAnnealing',
  'iAMaLGaM_Full',
  'iAMaLGaM_Univariate',
  'xNES',
)

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


def strategy_names() -> tuple[str, ...]:
  """Names that `make_strategy` knows."""
  return (*_OWN, *_STOCK)


def make_strategy(
  name: str, population_size: int, genome: stack.Genome, **options: Any
) -> Any:
  """Makes a strategy.

  Args:
    name: one of `strategy_names()`.
    population_size: P.
    genome: one genome, or its shapes and types; evosax's own algorithms need
      it, and the others tell by it what they cannot work on.
    **options: of the strategy's constructor: genome.Genome or stock.Stock.

  Returns:
    A `base.Strategy`.

  Raises:
    ValueError: if the name is unknown, or the algorithm cannot work on such
      genomes.
  """
  if name in _OWN:
    module_name, class_name, implied = _OWN[name]
    module = importlib.import_module(f'evojax_llm.strategies.{module_name}')
    strategy = getattr(module, class_name)(population_size, **implied | options)
    if genome is not None:
      strategy.check_genome(genome)
    return strategy
  if name in _REFUSED:
    raise ValueError(f'Got strategy {name!r}, refused: {_REFUSED[name]}.')
  if name not in _STOCK:
    raise ValueError(
      f'Got strategy {name!r}; expected one of {strategy_names()}.'
    )
  _check_size(name, genome, options)
  module = importlib.import_module('evojax_llm.strategies.stock')
  return module.Stock(name, population_size, genome, **options)


def _check_size(name, genome, options):
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
