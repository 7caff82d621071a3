"""The space of whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.space import Model
from evojax_llm.genomes.space import load_base
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
