import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import keys
from evojax_llm.strategies import base
from evojax_llm.strategies import pso_merging
from tests.strategies import problems

P = problems.P


def values(tree):
  return np.asarray(tree['layers']['mlp']['a'], np.float32)


def test_a_step_is_the_published_formula():
  strategy = pso_merging.PSOMerging(P, velocity_start='random')
  state = problems.start(strategy)
  x, v = values(state.population), values(state.velocity)
  p, g = values(state.memory.personal), values(state.memory.best)
  members, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  draws = keys.keys_for(problems.KEY, 0, state.ids, 'succession')
  for i in range(P):
    _, r1, r2, _ = np.asarray(jax.random.uniform(draws[i], (4,)))
    speed = 0.2 * v[i] + 2 * r1 * (p[i] - x[i]) + 2 * r2 * (g - x[i])
    np.testing.assert_allclose(
      values(asked.velocity)[i], speed, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      values(members)[i], x[i] + speed, rtol=1e-4, atol=1e-5
    )


def test_positions_stay_combinations_of_the_first_ones():
  # In weights and in coefficients of the first particles it is one swarm.
  first = problems.population()
  strategy = pso_merging.PSOMerging(P)
  found = []
  for members, expand in (
    (first, lambda x: x),
    (
      {'rows': jnp.eye(P)},
      lambda x: jax.tree.map(
        lambda leaf: jnp.einsum('pq,q...->p...', x['rows'], leaf), first
      ),
    ),
  ):

    def score(x, expand=expand):
      return problems.fitness(expand(x))

    state = strategy.init(
      problems.KEY,
      members,
      base.Scores(score(members)),
      strategy.default_params,
    )
    assert not any(np.any(v) for v in jax.tree.leaves(state.velocity))
    begun = float(state.memory.best_fitness)
    state = problems.last(strategy, state, 4, score=score)
    found.append(values(expand(state.population)))
    assert float(state.memory.best_fitness) > begun
  np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(state.population['rows'].sum(axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize('longest', (0.0, 0.5))
def test_a_velocity_may_have_a_longest(longest):
  strategy = pso_merging.PSOMerging(P, longest_step=longest)
  state = problems.start(strategy)
  _, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  squares = jax.tree.map(
    lambda leaf: jnp.square(leaf).reshape(P, -1).sum(axis=1), asked.velocity
  )
  norms = np.sqrt(sum(jax.tree.leaves(squares)))
  best = int(state.memory.best_id)  # The best is pulled nowhere.
  others = np.delete(norms, best)
  assert norms[best] == 0.0
  if longest:
    np.testing.assert_allclose(others, longest, rtol=1e-5)
  else:
    assert others.max() > 1.0
