"""Members spread over devices on a mesh axis 'pop'."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

POP = 'pop'


def population_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """Returns a mesh of `devices` (all by default) with the one axis 'pop'.

  The axis is of type Auto: with Explicit axes, the default of
  `jax.make_mesh`, indexing members of a sharded population is an error.
  """
  devices = jax.devices() if devices is None else list(devices)
  return jax.sharding.Mesh(
    np.asarray(devices), (POP,), axis_types=(jax.sharding.AxisType.Auto,)
  )


def population_spec(axis: int = 0) -> jax.sharding.PartitionSpec:
  """Returns the spec that splits P, at `axis`, over 'pop' and nothing else."""
  return jax.sharding.PartitionSpec(*[None] * axis, POP)


def population_sharding(
  mesh: jax.sharding.Mesh, axis: int = 0
) -> jax.sharding.NamedSharding:
  """Returns the sharding of `population_spec` on a mesh."""
  return jax.sharding.NamedSharding(mesh, population_spec(axis))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding with a full copy on every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def place(tree: Any, where: jax.sharding.Sharding) -> Any:
  """Puts a tree of arrays where a sharding says.

  On several hosts all of them must call it, each with the same values, which
  are not compared: a host sends its own devices their parts and no other's.
  """
  if where.is_fully_addressable:
    far = [
      not getattr(x, 'is_fully_addressable', True)
      for x in jax.tree.leaves(tree)
    ]
    return jax.device_put(to_host(tree) if any(far) else tree, where)

  def put(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return jax.device_put(leaf, where)
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    parts = where.addressable_devices_indices_map(leaf.shape).items()
    return jax.make_array_from_single_device_arrays(
      leaf.shape, where, [jax.device_put(leaf[i], d) for d, i in parts]
    )

  return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
  """Returns a tree of arrays as numpy arrays, the same on every host.

  The one way from devices to the host: an array that is spread over the devices
  of several hosts is gathered first, so that all hosts must call it.
  """

  def whole(leaf):
    if not isinstance(leaf, jax.Array) or (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
      return leaf
    return jax.device_put(leaf, replicated(leaf.sharding.mesh))

  return jax.device_get(jax.tree.map(whole, tree))
