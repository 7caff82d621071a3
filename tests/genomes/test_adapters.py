import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.population import stack
from tests.genomes import experts


def test_expressing_applies_the_scale_to_b_alone():
  adapters = experts.adapter_set(3)
  space = adapter_genomes.AdapterSpace(adapters, experts.base())
  population = space.experts()
  members = jax.jit(jax.vmap(space.express))(population)
  for n in range(3):
    np.testing.assert_allclose(
      experts.delta(stack.take(members, n)),
      experts.expert_delta(adapters, n),
      rtol=1e-5,
    )
  module = population['layers']['self_attn']['q_proj']
  expressed = members.factors['layers']['self_attn']['q_proj']
  np.testing.assert_array_equal(expressed['a'], module['a'])
  np.testing.assert_array_equal(expressed['b'][:, 0], 2 * module['b'][:, 0])


def test_genomes_and_what_they_express_have_the_type_asked_for():
  space = adapter_genomes.AdapterSpace(
    experts.adapter_set(2), experts.base(), jnp.bfloat16
  )
  population = space.experts()
  members = jax.vmap(space.express)(population)
  for leaf in jax.tree.leaves([population, members]):
    assert leaf.dtype == jnp.bfloat16
