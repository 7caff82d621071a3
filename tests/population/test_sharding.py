import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import sharding
from evojax_llm.population import stack


def test_members_are_spread_and_indexing_still_works():
  mesh = sharding.population_mesh()
  assert mesh.size == 4
  placed = jax.device_put(
    {'w': jnp.arange(24.0).reshape(8, 3)}, sharding.population_sharding(mesh)
  )
  shards = placed['w'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(2, 3)}
  taken = stack.take(placed, jnp.asarray([7, 0]))
  np.testing.assert_array_equal(taken['w'][:, 0], [21, 0])


def test_replicated_is_everywhere():
  mesh = sharding.population_mesh(jax.devices()[:2])
  placed = jax.device_put(jnp.ones(3), sharding.replicated(mesh))
  assert len(placed.addressable_shards) == 2
