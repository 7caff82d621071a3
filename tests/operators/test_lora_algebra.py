import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import lora_algebra
from evojax_llm.population import stack
from tests.operators import genomes

WEIGHTS = (0.7, -0.4, 1.3)


def adapter(rank, seed=0, members=()):
  """An adapter of one module in three layers, and a plain vector."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=(*members, *shape)), jnp.float32)

  factors = {'a': draw(3, 20, rank), 'b': draw(3, rank, 12)}
  return {'layers': {'mlp': factors}, 'plain': draw(5)}


def change(tree):
  """The change of the model, formed, in f64."""
  a, b = (np.asarray(tree['layers']['mlp'][x], np.float64) for x in 'ab')
  return a @ b


def test_concatenation_is_the_sum_of_the_changes():
  adapters = [adapter(rank, seed) for seed, rank in enumerate((2, 5, 3))]
  total = jax.jit(lora_algebra.weighted_sum)(adapters, jnp.asarray(WEIGHTS))
  assert total['layers']['mlp']['a'].shape == (3, 20, 10)
  expected = sum(w * change(x) for w, x in zip(WEIGHTS, adapters, strict=True))
  np.testing.assert_allclose(change(total), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    total['plain'],
    sum(w * x['plain'] for w, x in zip(WEIGHTS, adapters, strict=True)),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize('rank', (1, 4, 7))
def test_compression_is_the_truncated_singular_value_decomposition(rank):
  wide = adapter(7)
  small, error = jax.jit(lora_algebra.compress, static_argnums=1)(wide, rank)
  assert small['layers']['mlp']['b'].shape == (3, rank, 12)
  u, values, vt = np.linalg.svd(change(wide), full_matrices=False)
  best = (u[..., :rank] * values[:, None, :rank]) @ vt[:, :rank]
  np.testing.assert_allclose(change(small), best, rtol=1e-4, atol=1e-4)
  lost = np.linalg.norm(change(wide) - change(small), axis=(1, 2))
  relative = lost / np.linalg.norm(change(wide), axis=(1, 2))
  np.testing.assert_allclose(
    error['layers']['mlp'], relative, rtol=1e-3, atol=3e-6
  )
  np.testing.assert_array_equal(small['plain'], wide['plain'])
  assert float(error['plain']) == 0.0


def test_compression_to_a_larger_rank_pads():
  small = adapter(2)
  padded, error = lora_algebra.compress(small, 5)
  assert padded['layers']['mlp']['a'].shape == (3, 20, 5)
  np.testing.assert_allclose(change(padded), change(small), atol=1e-5)
  np.testing.assert_array_equal(error['layers']['mlp'], np.zeros(3))


def test_a_rank_above_the_matrix_is_kept_whole():
  total = lora_algebra.weighted_sum([adapter(9, 0), adapter(9, 1)], [1.0, 1.0])
  small, error = lora_algebra.compress(total, 12)
  np.testing.assert_allclose(change(small), change(total), atol=1e-4)
  np.testing.assert_allclose(error['layers']['mlp'], 0.0, atol=1e-6)


def test_nothing_compresses_to_nothing():
  nothing = jax.tree.map(jnp.zeros_like, adapter(3))
  small, error = lora_algebra.compress(nothing, 2)
  for leaf in jax.tree.leaves((small, error)):
    assert np.all(np.isfinite(leaf))
  np.testing.assert_array_equal(change(small), np.zeros((3, 20, 12)))
  np.testing.assert_array_equal(error['layers']['mlp'], np.zeros(3))


def test_members_are_compressed_each_on_its_own():
  population = adapter(4, members=(3,))
  together, errors = jax.vmap(lambda x: lora_algebra.compress(x, 2))(population)
  for p in range(3):
    alone, error = lora_algebra.compress(stack.take(population, p), 2)
    np.testing.assert_allclose(
      change(together)[p], change(alone), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      errors['layers']['mlp'][p], error['layers']['mlp'], rtol=1e-4
    )


def test_the_dense_matrix_is_never_formed():
  wide = {'a': jnp.ones((2000, 8)), 'b': jnp.ones((8, 2000))}
  used = (
    jax.jit(lora_algebra.compress, static_argnums=1)
    .lower(wide, 4)
    .compile()
    .memory_analysis()
  )
  assert used.temp_size_in_bytes < 2000 * 2000


def test_adapters_of_one_origin_are_summed_as_exactly():
  """Their factors A are nearly, or exactly, the same."""
  one = adapter(4, 1)
  for apart in (0.0, 1e-5, 1e-2):
    two = adapter(4, 2)
    factors = two['layers']['mlp']
    factors['a'] = one['layers']['mlp']['a'] + apart * factors['a']
    total = lora_algebra.weighted_sum([one, two], [1.0, -0.5])
    small, error = lora_algebra.compress(total, 8)
    np.testing.assert_allclose(change(small), change(total), atol=1e-4)
    np.testing.assert_allclose(error['layers']['mlp'], 0.0, atol=1e-6)
    a = np.asarray(small['layers']['mlp']['a'])[..., :4]
    gram = np.swapaxes(a, -1, -2) @ a
    np.testing.assert_allclose(gram, np.tile(np.eye(4), (3, 1, 1)), atol=1e-4)


def test_exact_crossover_has_no_cross_terms():
  parents = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), adapter(2, 1), adapter(2, 2)
  )
  weights = jnp.asarray([0.25, 0.75], jnp.float32)
  one, two = (change(stack.take(parents, i)) for i in range(2))
  exact = lora_algebra.linear(parents, weights, products='exact')
  assert exact['layers']['mlp']['a'].shape == (3, 20, 2)
  u, values, vt = np.linalg.svd(0.25 * one + 0.75 * two, full_matrices=False)
  best = (u[..., :2] * values[:, None, :2]) @ vt[:, :2]
  np.testing.assert_allclose(change(exact), best, rtol=1e-4, atol=1e-4)
  published = lora_algebra.linear(parents, weights)
  assert np.abs(change(published) - best).max() > 0.1


def test_wrong_requests_are_refused():
  with pytest.raises(ValueError, match='2 adapters'):
    lora_algebra.weighted_sum([adapter(2), adapter(2)], jnp.ones(3))
  with pytest.raises(ValueError, match='rank 0'):
    lora_algebra.compress(adapter(2), 0)
  with pytest.raises(ValueError, match="'dense'"):
    lora_algebra.linear(genomes.population(2), jnp.ones(2), products='dense')


@pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ('torch', 'peft'))),
  reason='PEFT is the oracle',
)
@pytest.mark.filterwarnings('ignore')  # what torch and PEFT warn of.
@pytest.mark.parametrize('combination', ('cat', 'svd'))
def test_peft_agrees(combination):
  import peft
  import torch

  torch.manual_seed(0)
  ranks, alphas = {'one': 2, 'two': 4}, {'one': 6, 'two': 4}
  model = None
  for name, rank in ranks.items():
    config = peft.LoraConfig(
      r=rank,
      lora_alpha=alphas[name],
      target_modules=['0'],
      init_lora_weights=False,
    )
    if model is None:
      base = torch.nn.Sequential(torch.nn.Linear(20, 12, bias=False))
      model = peft.get_peft_model(base, config, adapter_name=name)
    else:
      model.add_adapter(name, config)
  rank = 3 if combination == 'svd' else None
  model.add_weighted_adapter(
    list(ranks), [0.7, -0.4], 'sum', combination_type=combination, svd_rank=rank
  )
  layer = model.base_model.model[0]

  def factors(name):
    # PEFT stores (out, in), and its forward pass applies the scale.
    a, b = (
      getattr(layer, f'lora_{x}')[name].weight.detach().numpy().T for x in 'AB'
    )
    return {'a': jnp.asarray(a), 'b': jnp.asarray(b * layer.scaling[name])}

  ours = lora_algebra.weighted_sum(
    [factors('one'), factors('two')], jnp.asarray([0.7, -0.4])
  )
  if combination == 'svd':
    ours, _ = lora_algebra.compress(ours, rank)
  theirs = factors('sum')
  np.testing.assert_allclose(
    ours['a'] @ ours['b'], theirs['a'] @ theirs['b'], rtol=1e-4, atol=1e-5
  )
