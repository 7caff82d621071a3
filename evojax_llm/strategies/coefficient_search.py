"""Baselines that search the gates of N experts: random search and CMA-ES.

Both work on `genomes.gates.GateSpace` and are scored like any
other strategy, so they can be given the same number of evaluations. The mass
of a member is free in both: convex mixes can only dilute.
"""

import jax.numpy as jnp

from evojax_llm.genomes import gates
from evojax_llm.genomes import initial
from evojax_llm.strategies import base
from evojax_llm.strategies import registry


def random_search(
  population_size: int,
  num_experts: int,
  *,
  concentration: float = 1.0,
  low: float = 0.0,
  high: float = 4.0,
) -> base.Strategy:
  """Independent draws as by `GateSpace.sample`; the memory keeps the best."""

  def sample(key):
    mix, mass = initial.random_mix(key, num_experts, concentration, low, high)
    return {gates.GATES: mix * mass}

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
  return {gates.GATES: jnp.zeros((num_experts,), jnp.float32)}
