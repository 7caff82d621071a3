import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import adapters
from evojax_llm.genomes import gates
from evojax_llm.genomes import seeded
from evojax_llm.genomes import singular
from evojax_llm.genomes import space as space_lib
from evojax_llm.models.expression import as_low_rank
from evojax_llm.operators import low_rank
from evojax_llm.population import leaves
from evojax_llm.population import stack
from tests.genomes import experts


def seeds(count):
  return jax.random.split(jax.random.key(3), count)


def test_noise_follows_from_the_seed_whatever_the_group():
  plain = adapters.AdapterSpace(experts.adapter_set(3), experts.base())
  space = seeded.SeededSpace(plain, rank=2)
  centre = stack.take(plain.experts(), 1)
  scale = jnp.asarray([0.1, -0.1, 0.2, 0.0, 0.3, 0.1, 0.1, 0.1])
  population = seeded.around(centre, seeds(8), scale)
  assert stack.size(population) == 8
  express = jax.jit(
    lambda population, index: stack.mapped(
      space.express, stack.pick(population, index)
    )
  )
  together = express(population, jnp.arange(8))
  index = jnp.asarray([7, 5, 1])
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y[index]),
    express(population, index),
    together,
  )
  wanted = low_rank.perturb(seeds(8)[2], centre, 0.2, 2, layers=leaves.LAYERS)
  formed = space.formed(stack.take(population, 2))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), formed, wanted
  )
  np.testing.assert_array_equal(
    jax.random.key_data(seeded.key_of(stack.take(population, 4))),
    jax.random.key_data(seeds(8)[4]),
  )


def test_what_the_space_is_told_is_checked():
  with pytest.raises(ValueError, match="Got on 'layers'; expected one of"):
    space_lib.find_space('seeded', {'on': 'layers'})
  found = space_lib.find_space('seeded', {'on': 'weights'})
  assert found.exports == 'model' and 'models' in found.takes


def test_singular_values_are_the_changes_of_the_experts():
  given = experts.adapter_set(3)
  space = singular.SingularSpace(given, experts.base())
  member = jax.tree.map(
    lambda leaf: 0.5 * leaf[0] - 2.0 * leaf[2], space.experts()
  )
  found = as_low_rank(space.express(member), space.model().params)
  for name in experts.SHAPES:
    parts = [experts.expert_delta(given, n, name) for n in (0, 2)]
    np.testing.assert_allclose(
      experts.delta(found, name), 0.5 * parts[0] - 2.0 * parts[1], atol=1e-4
    )
  # Of each matrix and expert R values, none below zero.
  for leaf in jax.tree.leaves(space.experts()):
    assert leaf.shape == (3, experts.LAYERS, 3 * experts.RANK)
    assert float(leaf.min()) >= 0
  assert isinstance(space.plain, adapters.AdapterSpace)
  assert not isinstance(space.plain, gates.GateSpace)
