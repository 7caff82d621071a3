import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import sharding
from evojax_llm.population import stack


def test_place_spreads_members_and_indexing_still_works():
  mesh = sharding.population_mesh()
  assert mesh.size == 4
  placed = sharding.place({'w': jnp.arange(24.0).reshape(8, 3)}, mesh)
  shards = placed['w'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(2, 3)}
  taken = stack.take(placed, jnp.asarray([7, 0]))
  np.testing.assert_array_equal(taken['w'][:, 0], [21, 0])


def test_members_must_divide_evenly():
  with pytest.raises(ValueError, match='6 members for 4 devices'):
    sharding.place({'w': jnp.ones((6, 3))}, sharding.population_mesh())


def test_replicated_is_everywhere():
  mesh = sharding.population_mesh(jax.devices()[:2])
  placed = jax.device_put(jnp.ones(3), sharding.replicated(mesh))
  assert len(placed.addressable_shards) == 2
