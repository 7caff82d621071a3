"""The space of whole models."""

import jax
import numpy as np
import pytest

from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.weights import WeightSpace
from evojax_llm.models import hub
from evojax_llm.models import lora
from evojax_llm.models import peft
from evojax_llm.population import stack


@pytest.fixture(scope='module')
def models(tiny_gemma_folder, tiny_adapter_folders):
  config, base = hub.load_checkpoint(tiny_gemma_folder())
  adapters = peft.load_adapters(tiny_adapter_folders(3), config)
  return base, adapters, WeightSpace.of_adapters(adapters, base)


def kernel(params):
  return np.asarray(params['layers']['mlp']['up_proj']['kernel'], np.float64)


def test_adapters_are_folded_into_the_base(models):
  base, adapters, space = models
  assert space.names == adapters.names
  folded = AdapterSpace(adapters)
  for n in range(3):
    member = folded.express(stack.take(folded.experts(), n))
    expected = lora.fold(base, member)
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
  sums = np.einsum('cn,n...->c...', weights, experts - kernel(base))
  np.testing.assert_allclose(mixed[0], kernel(base) + 2 * sums[0], atol=1e-5)
  # An expert alone, and the base, bit for bit.
  np.testing.assert_array_equal(mixed[1], experts[1])
  np.testing.assert_array_equal(mixed[2], kernel(base))


def test_an_initial_population(models):
  base, _, space = models
  recipe = ['experts', 'zero', ('scaled_average', {'factor': 2.0}), 'noise']
  made = space.initial(recipe, 6, jax.random.key(0))
  assert made.operators == (*['expert'] * 3, 'zero', 'scaled_average', 'noise')
  found = kernel(made.population)
  experts = kernel(space.experts())
  np.testing.assert_array_equal(found[:3], experts)
  np.testing.assert_array_equal(found[3], kernel(base))
  twice = kernel(base) + 2 * (experts.mean(0) - kernel(base))
  np.testing.assert_allclose(found[4], twice, atol=1e-5)
  assert 0 < np.abs(found[5] - experts[0]).max() < 1
