"""Baselines that search N expert coefficients: random search and CMA-ES.

Both work on `genomes.coefficients.GateSpace` and are scored like any
other strategy, so they can be given the same number of evaluations. The mass
of a member is free in both: convex mixes can only dilute.
"""

import jax
import jax.numpy as jnp

from evojax_llm.genomes import gates
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import registry


def sample_coefficients(
  key: jax.Array,
  num_experts: int,
  concentration: float = 1.0,
  low: float = 0.0,
  high: float = 4.0,
) -> stack.Genome:
  """A Dirichlet mix of the experts times a mass ~ U(low, high)."""
  mix_key, mass_key = jax.random.split(key)
  mix = jax.random.dirichlet(
    mix_key, jnp.full((num_experts,), concentration, jnp.float32)
  )
  mass = jax.random.uniform(mass_key, (), jnp.float32, low, high)
  return {gates.COEFFICIENTS: mix * mass}


def random_search(
  population_size: int,
  num_experts: int,
  *,
  concentration: float = 1.0,
  low: float = 0.0,
  high: float = 4.0,
) -> base.Strategy:
  """Independent draws of `sample_coefficients`; the memory keeps the best."""

  def sample(key):
    return sample_coefficients(key, num_experts, concentration, low, high)

  return registry.make_strategy(
    'RandomSearch',
    population_size,
    _genome(num_experts),
    sampling_fn=sample,
  )


def cma_es(
  population_size: int, num_experts: int, *, sigma: float = 0.3
) -> base.Strategy:
  """CMA-ES (arXiv 1604.00772) from the best of the initial members."""
  return registry.make_strategy(
    'CMA_ES', population_size, _genome(num_experts), sigma=sigma
  )


def _genome(num_experts):
  return {gates.COEFFICIENTS: jnp.zeros((num_experts,), jnp.float32)}
