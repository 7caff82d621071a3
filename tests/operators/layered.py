"""Operators on the genomes of spaces: below 'layers' is the axis L."""

import functools

from evojax_llm.operators import low_rank
from evojax_llm.operators import mutation
from evojax_llm.operators import noise
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import parameters
from evojax_llm.population import leaves

genome, population, resolve, gaussian, factors, perturb, update = (
  functools.partial(function, layers=leaves.LAYERS)
  for function in (
    lift.genome,
    lift.population,
    parameters.resolve,
    mutation.gaussian,
    low_rank.factors,
    low_rank.perturb,
    low_rank.update,
  )
)
root_mean_square = functools.partial(
  noise.root_mean_square, layers=leaves.LAYERS
)
