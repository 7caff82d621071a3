import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.models import expression
from evojax_llm.operators import low_rank
from evojax_llm.population import keys
from tests.operators import layered

SEED = jax.random.key(9)


def params(dtype=jnp.float32, scale=1.0):
  return {
    'layers': {
      'mlp': {'up': {'kernel': jnp.full((2, 40, 30), scale, dtype)}},
      'norm': {'scale': jnp.full((2, 7), scale, dtype)},
    },
    'embed': {'embedding': jnp.full((20, 6), scale, dtype)},
  }


def dense(made):
  """The noise of a member, formed from its factors."""
  return jax.tree.map(
    lambda node: (
      node.a @ node.b if isinstance(node, low_rank.Factors) else node
    ),
    made,
    is_leaf=lambda node: isinstance(node, low_rank.Factors),
  )


@pytest.mark.parametrize('rank', (1, 3))
def test_noise_has_the_rank_and_variance_one(rank):
  members = keys.keys_for(SEED, 0, jnp.arange(200, dtype=jnp.int32), 'noise')
  made = jax.jit(jax.vmap(lambda k: dense(layered.factors(k, params(), rank))))(
    members
  )
  kernel = np.asarray(made['layers']['mlp']['up']['kernel'])
  assert np.all(np.linalg.matrix_rank(kernel[:5]) == rank)
  for leaf in jax.tree.leaves(made):
    assert np.mean(leaf) == pytest.approx(0.0, abs=0.05)
    assert np.var(leaf) == pytest.approx(1.0, rel=0.1)
  # Layers, and the noise of different leaves, are unrelated.
  one, two = kernel[:, 0].ravel(), kernel[:, 1].ravel()
  assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_a_member_is_the_centre_and_its_noise():
  key = keys.key_for(SEED, 3, 17, 'noise')
  member = jax.jit(lambda k, p: layered.perturb(k, p, 0.5, 2, relative=False))(
    key, params()
  )
  expected = jax.tree.map(
    lambda x, e: x + 0.5 * e,
    params(),
    dense(layered.factors(key, params(), 2)),
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    member,
    expected,
  )


def test_relative_noise_follows_each_matrix():
  centre = params(scale=4.0)
  member = layered.perturb(SEED, centre, 0.1, 30)
  change = np.asarray(member['layers']['mlp']['up']['kernel']) - 4.0
  assert change.std() == pytest.approx(0.4, rel=0.15)


def test_the_update_is_the_weighted_sum_of_members_never_formed():
  ids = jnp.asarray([4, 9, 2, 30], jnp.int32)
  members = keys.keys_for(SEED, 0, ids, 'noise')
  weights = jnp.asarray([0.5, -1.0, 0.25, 2.0], jnp.float32)
  run = jax.jit(lambda k, w: layered.update(k, w, params(), 2))
  formed = jax.vmap(lambda k: dense(layered.factors(k, params(), 2)))(members)
  jax.tree.map(
    lambda x, e: np.testing.assert_allclose(
      x, np.tensordot(weights, e, 1), rtol=1e-4, atol=1e-5
    ),
    run(members, weights),
    formed,
  )
  # A large matrix: the program holds less than one member of noise.
  wide = {'kernel': jnp.zeros((1024, 1024))}
  used = (
    jax.jit(lambda k, w: layered.update(k, w, wide, 1))
    .lower(members, weights)
    .compile()
    .memory_analysis()
  )
  assert used.temp_size_in_bytes < wide['kernel'].size


def test_as_an_adapter_it_is_the_same_model():
  centre, sigma = params(), 0.2
  made = layered.factors(SEED, centre, 2)
  adapter = low_rank.as_adapter(made, sigma)
  assert set(adapter) == {'layers'} and set(adapter['layers']) == {'mlp'}
  folded = expression.fold(centre, expression.LowRank(adapter))
  formed = layered.perturb(SEED, centre, sigma, 2, relative=False)
  np.testing.assert_allclose(
    folded['layers']['mlp']['up']['kernel'],
    formed['layers']['mlp']['up']['kernel'],
    rtol=1e-5,
    atol=1e-5,
  )


def test_small_moves_of_bf16_are_kept_on_average():
  centre = {'x': jnp.ones((300, 300), jnp.bfloat16)}
  change = {'x': jnp.full((300, 300), 1e-3, jnp.float32)}
  moved = {
    rounding: np.asarray(
      low_rank.move(SEED, centre, change, rounding=rounding)['x'], np.float64
    ).mean()
    for rounding in ('nearest', 'stochastic')
  }
  assert moved['nearest'] == 1.0
  assert moved['stochastic'] == pytest.approx(1.001, abs=1e-4)
  member = layered.perturb(SEED, centre, 1e-3, 1, rounding='stochastic')
  assert member['x'].dtype == jnp.bfloat16
  assert np.any(np.asarray(member['x'], np.float32) != 1.0)


def test_rank_zero_is_refused():
  with pytest.raises(ValueError, match='rank 0'):
    layered.factors(SEED, params(), 0)
