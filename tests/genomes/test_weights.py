"""The space of whole models."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import initial
from evojax_llm.genomes import weights as weights_lib
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.space import Model
from evojax_llm.genomes.space import load_base
from evojax_llm.genomes.space import make_space
from evojax_llm.genomes.weights import WeightSpace
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.models.errors import ModelError
from evojax_llm.population import stack


@pytest.fixture(scope='module')
def models(tiny_gemma_folder, tiny_adapter_folders):
  base = load_base(tiny_gemma_folder())
  adapters = peft.load_adapters(tiny_adapter_folders(3), base.config)
  return base, adapters, WeightSpace.of_adapters(adapters, base)


def kernel(params):
  return np.asarray(params['layers']['mlp']['up_proj']['kernel'], np.float64)


def test_adapters_are_folded_into_the_base(models):
  base, adapters, space = models
  assert space.names == adapters.names
  folded = AdapterSpace(adapters, base)
  for n in range(3):
    member = folded.express(stack.take(folded.experts(), n))
    expected = expression.fold(base.params, member)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
      stack.take(space.experts(), n),
      expected,
    )


def test_a_mix_weighs_what_experts_change(models):
  base, _, space = models
  weights = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [0.2, 0.3, 0.5]])
  mixed = kernel(space.mix(weights, np.array([2.0, 1.0, 0.0])))
  experts = kernel(space.experts())
  sums = np.einsum('cn,n...->c...', weights, experts - kernel(base.params))
  np.testing.assert_allclose(
    mixed[0], kernel(base.params) + 2 * sums[0], atol=1e-5
  )
  # An expert alone, and the base, bit for bit.
  np.testing.assert_array_equal(mixed[1], experts[1])
  np.testing.assert_array_equal(mixed[2], kernel(base.params))


def test_an_initial_population(models):
  base, _, space = models
  recipe = ['experts', 'zero', ('scaled_average', {'factor': 2.0}), 'noise']
  made = space.initial(recipe, 6, jax.random.key(0))
  assert made.operators == (*['expert'] * 3, 'zero', 'scaled_average', 'noise')
  found = kernel(made.population)
  experts = kernel(space.experts())
  np.testing.assert_array_equal(found[:3], experts)
  np.testing.assert_array_equal(found[3], kernel(base.params))
  twice = kernel(base.params) + 2 * (experts.mean(0) - kernel(base.params))
  np.testing.assert_allclose(found[4], twice, atol=1e-5)
  assert 0 < np.abs(found[5] - experts[0]).max() < 1


def test_changes_of_adapters_are_products_in_f32(models):
  """In a base of bfloat16 a small change is lost when it is folded in."""
  base, adapters, _ = models
  rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params)
  half = Model(base.config, rounded, base.folder)
  # A thousandth of the change: less than the base's types can tell apart.
  small = jax.tree.map(lambda leaf: leaf / 1000, adapters.scale)
  small = dataclasses.replace(adapters, scale=small)
  tuned = jax.tree.map(lambda leaf: leaf * 2, rounded)
  space = WeightSpace.of_adapters(small, half, ['tuned'], [tuned])
  assert space.names == (*adapters.names, 'tuned')
  start = kernel(rounded)
  pair = adapters.factors['layers']['mlp']['up_proj']
  scale = np.asarray(small.scale['layers']['mlp']['up_proj'])
  change = np.asarray(pair['a'], float) @ pair['b'] * scale[:, None, None]
  expected = start + 1000 * (change[0] - change[2]) + 0.5 * start
  weights = np.array([[1000, 0, -1000, 0.5], [1, 0, 0, 0], [0, 0, 0, 1]])
  mixed = kernel(space.mix(weights, np.ones(3)))
  np.testing.assert_allclose(mixed[0], expected, rtol=2**-8)
  np.testing.assert_array_equal(mixed[1:], kernel(space.experts())[[0, 3]])
  found = space.recipe(stack.take(space.mix(weights, np.ones(3)), 0))
  assert found['experts']['tuned']['weight'] == pytest.approx(0.5, rel=1e-2)
  first = found['experts'][adapters.names[0]]
  assert first['weight'] == pytest.approx(1000, rel=0.05)
  norms = jax.tree.map(
    lambda leaf: np.linalg.norm(np.float32(leaf[0])), space._factors
  )
  assert 0 < first['change'] < sum(jax.tree.leaves(norms))

  # A draw is such a mix, and is traced.
  key = jax.random.key(3)
  mix, mass = initial.random_mix(key, 4)
  drawn = kernel(jax.jit(space.sample)(key))
  mixed = kernel(space.mix(np.asarray(mix * mass, float)[None], np.ones(1)))
  np.testing.assert_allclose(drawn, mixed[0], rtol=2**-7, atol=1e-3)


def test_recipes_are_of_adapters_and_models_together(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path
):
  base, adapters = tiny_gemma_folder(), tiny_adapter_folders(2)
  with_all = WeightSpace.from_files(base, adapters)
  tuned = with_all.export(stack.take(with_all.experts(), 1), tmp_path / 'tuned')
  given = {'method': 'task_arithmetic', 'evolve': 'weights', 'on': 'weights'}
  space = make_space('merged', base, adapters[:1], [tuned], **given)
  assert space.names == space.plain.names and len(set(space.names)) == 2
  weights, ones = np.array([[0.5, 0.25]]), np.ones(1)
  member = space.express(stack.take(space.mix(weights, ones), 0)).params
  expected = stack.take(with_all.mix(weights, ones), 0)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), member, expected
  )


def test_adapters_and_models_are_experts_of_one_space(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path
):
  folder, adapters = tiny_gemma_folder(), tiny_adapter_folders(2)
  # A model that is called as an adapter is.
  other = shutil.copytree(folder, tmp_path / adapters[0].name)
  space = WeightSpace.from_files(folder, adapters, [other])
  assert len(set(space.names)) == 3 and '/' in space.names[0]
  assert space.names[2].endswith(f'/{other.name}')
  alone = WeightSpace.from_files(folder, adapters)
  np.testing.assert_array_equal(
    kernel(space.experts())[:2], kernel(alone.experts())
  )
  np.testing.assert_array_equal(
    kernel(space.experts())[2], kernel(space.base())
  )


def test_models_are_read_into_the_arrays_that_hold_all(
  tiny_gemma_folder, monkeypatch
):
  folder, read = tiny_gemma_folder(), []
  load = weights_lib.hub.load_checkpoint

  def watched(*given, **options):
    config, params = load(*given, **options)
    read.append(params)
    return config, params

  base = load_base(folder)
  monkeypatch.setattr(weights_lib.hub, 'load_checkpoint', watched)
  space = WeightSpace.from_files(base, models=[folder] * 2)
  for n, params in enumerate(read):
    own = stack.take(space.experts(), n)
    jax.tree.map(np.testing.assert_array_equal, own, params)
    for array in jax.tree.leaves(params):
      assert any(
        np.shares_memory(array, leaf) for leaf in jax.tree.leaves(space._models)
      )
  assert len(read) == 2


def test_models_of_two_kinds_are_refused(models):
  base, *_ = models
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params)
  with pytest.raises(ValueError, match='Expert b differs from the base'):
    WeightSpace(['a', 'b'], [base.params, half], base)


def test_a_model_without_a_folder_cannot_be_exported(models, tmp_path):
  base, _, space = models
  bare = WeightSpace(['a'], [base.params], Model(base.config, base.params))
  with pytest.raises(ModelError, match='Give Model'):
    bare.export(space.base(), tmp_path / 'out')
