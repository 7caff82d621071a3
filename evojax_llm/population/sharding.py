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
