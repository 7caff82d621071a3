"""CMA-ES with margin, on genes of which some count by their sign alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.strategies import base
from evojax_llm.strategies import mixed_cma_es
from evojax_llm.strategies import registry

GENOME = {'on': jnp.zeros(12), 'x': jnp.zeros(2)}
BINARY = {'on': True, 'x': False}
KEY = jax.random.key(0)


class Space:
  """As much of a space as the strategy asks for."""

  layers = None

  def binary(self):
    return BINARY


def search(strategy, generations=25):
  """Returns the best fitness: bits that are right, and x near 0.3."""
  wanted = jnp.arange(12) % 2 == 0

  @jax.jit
  def fitness(members):
    right = jnp.mean((members['on'] > 0) == wanted, axis=1) * 12
    return right - jnp.sum((members['x'] - 0.3) ** 2, axis=1)

  params = strategy.default_params
  members = jax.tree.map(lambda leaf: jnp.stack([leaf - 0.2] * 8), GENOME)
  scores = base.Scores(fitness(members))
  state = strategy.init(KEY, members, scores, params)
  for i in range(generations):
    key = jax.random.fold_in(KEY, i)
    members, state = strategy.ask(key, state, params)
    scores = base.Scores(fitness(members))
    state = strategy.tell(key, members, scores, state, params)
  return state


def test_no_binary_gene_goes_out_of_reach():
  strategy = registry.make_strategy('mixed_cma_es', 8, Space(), genome=GENOME)
  state = search(strategy)
  inner = state.inner
  deviation = np.asarray(inner.std * jnp.sqrt(jnp.diag(inner.C)))
  # Of a normal deviate below -2.37 the probability is 1 / (14 x 8).
  reach = np.abs(np.asarray(inner.mean)) / deviation
  assert reach[:12].max() == pytest.approx(2.369, abs=1e-2)
  assert float(state.memory.best_fitness) > 11.5
  plain = search(registry.make_strategy('cma_es', 8, genome=GENOME, sigma=0.1))
  spread = plain.inner.std * jnp.sqrt(jnp.diag(plain.inner.C))
  assert (jnp.abs(plain.inner.mean) / spread)[:12].max() > 3.0


def test_margin_and_genes_make_a_strategy_what_it_is():
  def make(binary=BINARY, **options):
    return mixed_cma_es.MixedCMAES(8, GENOME, binary=binary, **options)

  assert make() == make() and make(margin=0.1) != make()
  assert make(binary={'on': False, 'x': True}) != make()
  with pytest.raises(ValueError, match='a space that has no binary genes'):
    registry.make_strategy('mixed_cma_es', 8, genome=GENOME)
