import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import linear
from evojax_llm.population import stack
from tests.operators import genomes


@pytest.mark.parametrize('dtype', genomes.DTYPES)
@pytest.mark.parametrize('parent', (0, 1))
def test_all_weight_on_one_parent_gives_that_parent(dtype, parent):
  parents = genomes.population(2, dtype)
  weights = jnp.eye(2, dtype=jnp.float32)[parent]
  child = jax.jit(linear.combine)(parents, weights)
  jax.tree.map(
    np.testing.assert_array_equal, child, stack.take(parents, parent)
  )


def test_linear_is_the_weighted_sum_of_any_number_of_parents():
  parents = genomes.population(4)
  weights = np.asarray([0.5, -0.25, 2.0, 0.1], np.float32)
  child = linear.combine(parents, jnp.asarray(weights))
  jax.tree.map(
    lambda leaf, made: np.testing.assert_allclose(
      made,
      np.tensordot(weights, np.asarray(leaf), 1),
      rtol=1e-5,
      atol=1e-6,
    ),
    parents,
    child,
  )


def test_weights_of_bf16_parents_stay_f32():
  # 5 x 256 x 1.0038 is nearest to 1288 in bf16; the weight alone rounds to 1.
  parents = {'x': jnp.full((5, 1), 256.0, jnp.bfloat16)}
  child = linear.combine(parents, jnp.full(5, 1.0038, jnp.float32))
  assert float(child['x'][0]) == 1288.0


def test_bf16_parents_are_summed_in_f32():
  # In bf16, 256 + 1 is 256; the two ones must meet before they are rounded.
  parents = {'x': jnp.asarray([[256.0], [1.0], [1.0]], jnp.bfloat16)}
  child = linear.combine(parents, jnp.ones(3, jnp.float32))
  assert child['x'].dtype == jnp.bfloat16
  assert float(child['x'][0]) == 258.0


@pytest.mark.parametrize(
  'fitness, expected',
  [
    ((0.2, 0.6), (0.25, 0.75)),
    ((0.0, 0.6), (0.0, 1.0)),
    ((0.0, 0.0), (0.5, 0.5)),
    ((-1.0, 2.0), (0.5, 0.5)),
    ((np.nan, 0.4), (0.0, 1.0)),
    ((np.nan, 0.0), (0.0, 1.0)),
    ((np.nan, -0.4), (0.0, 1.0)),
    ((np.nan, np.nan), (0.5, 0.5)),
    ((np.inf, 1.0), (0.0, 1.0)),
  ],
)
def test_fitness_weights(fitness, expected):
  weights = linear.fitness_weights(jnp.asarray(fitness, jnp.float32))
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_extrapolation_leaves_the_segment_half_of_the_time():
  keys = jax.random.split(jax.random.key(0), 4000)
  ends = jnp.asarray([1.0, 0.0])
  t = np.asarray(
    jax.vmap(lambda k: linear.extrapolate(ends, key=k, low=0.0, high=2.0))(keys)
  )
  assert t.min() >= 0.0 and t.max() < 2.0
  assert abs(np.mean(t > 1.0) - 0.5) < 0.03
