"""Where arrays are: members, the parameters they share, and their genomes.

A mesh has two axes. The members of a group are spread over 'population', and
the parameters that they share are cut over 'model': every row of the mesh holds
them once. There is no third axis for the items: members are items enough.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
import numpy as np

POPULATION = 'population'
MODEL = 'model'
# Linear maps whose outputs are cut over 'model', and those whose inputs are:
# what the first ones make is what the second ones take.
_COLUMNS = ('q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj')
_ROWS = ('o_proj', 'down_proj')
_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
# Numbers of a member in a leaf that is not worth cutting.
_FEW = 256


def population_mesh(
  devices: Sequence[Any] | None = None, model_devices: int = 1
) -> jax.sharding.Mesh:
  """Returns a mesh (population, model) of `devices`, of all by default.

  The axes are of type Auto: with Explicit axes, the default of
  `jax.make_mesh`, indexing members of a sharded population is an error.

  Args:
    devices: in order; neighbours share a model.
    model_devices: over which a model is cut.

  Raises:
    ValueError: the devices are no multiple of these.
  """
  devices = jax.devices() if devices is None else list(devices)
  if model_devices < 1 or len(devices) % model_devices:
    raise ValueError(
      f'Got model_devices {model_devices} of {len(devices)} devices; expected '
      'a number that divides them.'
    )
  return jax.sharding.Mesh(
    np.asarray(devices).reshape(-1, model_devices),
    (POPULATION, MODEL),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def abstract_mesh(
  devices: int, model_devices: int = 1
) -> jax.sharding.AbstractMesh:
  """Returns such a mesh of devices that need not be there, to count bytes."""
  shape = devices // model_devices, model_devices
  return jax.sharding.AbstractMesh(shape, (POPULATION, MODEL))


def population_spec(axis: int = 0) -> jax.sharding.PartitionSpec:
  """Returns the spec that splits P, at `axis`, and nothing else."""
  return jax.sharding.PartitionSpec(*[None] * axis, POPULATION)


def population_sharding(
  mesh: jax.sharding.Mesh, axis: int = 0
) -> jax.sharding.NamedSharding:
  """Returns the sharding of `population_spec` on a mesh."""
  return jax.sharding.NamedSharding(mesh, population_spec(axis))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding with a full copy on every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def model_shardings(
  mesh: jax.sharding.Mesh, params: Any, key_heads: int
) -> Any:
  """Returns shardings of shared parameters, cut over 'model' by their names.

  Of the maps of a layer pairs are cut, the outputs of one and the inputs of the
  next (Megatron-LM, arXiv 1909.08053); embedding and output matrix over V, or
  over D where the devices do not divide V. What they do not divide, and norms,
  are whole on every device, and so is attention where a head would be cut.

  Args:
    mesh: of `population_mesh`.
    params: nested dicts of arrays, or of shapes and types.
    key_heads: heads of keys and values of a layer.
  """
  parts = mesh.shape[MODEL]

  def place(path, leaf):
    names, axis = tuple(entry.key for entry in path), None
    if key_heads % parts == 0 or not set(names) & set(_ATTENTION):
      for wanted in _axes(names, leaf.ndim):
        if axis is None and leaf.shape[wanted] % parts == 0:
          axis = wanted % leaf.ndim
    if axis is None or parts == 1:
      return replicated(mesh)
    return jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(*[None] * axis, MODEL)
    )

  return jax.tree_util.tree_map_with_path(place, params)


def _axes(names: tuple[str, ...], ndim: int) -> tuple[int, ...]:
  """Axes of a parameter that may be cut, the first choice first."""
  module, name = ('', '', *names)[-2:]
  if module == 'embedder' and ndim == 2:
    return 0, 1
  if module in _COLUMNS and name in ('kernel', 'step', 'bias', 'b'):
    return (-1,)
  if module in _ROWS and name in ('kernel', 'a'):
    return (-2,)
  return ()


def cut(mesh: jax.sharding.Mesh, tree: Any, members: int) -> Any:
  """Returns shardings of genomes cut over all devices, each member in parts.

  Every device holds the same part of all members, so that operators on them
  need no parent from elsewhere; whole members are dealt out where they are
  scored. A leaf is cut along the first axis behind P that the devices divide,
  in most of them L, along which each matrix stays in one place. What has no
  such axis, or few numbers, is whole on every device.

  Args:
    mesh: of `population_mesh`.
    tree: arrays, or shapes and types: (P, ...) where the first axis is of
      `members`, else of one genome.
    members: P.
  """

  def place(leaf):
    first = 1 if leaf.shape[:1] == (members,) else 0
    fit = [i for i in range(first, leaf.ndim) if leaf.shape[i] % mesh.size == 0]
    if not fit or math.prod(leaf.shape[first:]) < _FEW:
      return replicated(mesh)
    axes = [None] * fit[0] + [mesh.axis_names]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  return jax.tree.map(place, tree)


def is_over(mesh: jax.sharding.Mesh, tree: Any) -> bool:
  """Whether arrays are on all devices of a mesh of more than one."""
  leaf = jax.tree.leaves(tree)[0]
  if mesh.size == 1 or not isinstance(leaf, jax.Array):
    return False
  return leaf.sharding.device_set == set(mesh.devices.flat)


def abstract(tree: Any, shardings: Any) -> Any:
  """Returns shapes and types of a tree of arrays, with their shardings."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    tree,
    shardings,
  )


def bytes_per_device(tree: Any) -> int:
  """Returns bytes of arrays, or of their shapes, on the device with the most.

  Shapes without a sharding are whole on every device.
  """

  def count(leaf):
    where = getattr(leaf, 'sharding', None)
    shape = where.shard_shape(leaf.shape) if where else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(count, jax.tree.leaves(tree)))


def model_bytes(
  devices: int, model_devices: int, params: Any, key_heads: int
) -> int:
  """Returns bytes of shared parameters on each device, cut over 'model'."""
  mesh = abstract_mesh(devices, model_devices)
  where = model_shardings(mesh, params, key_heads)
  return bytes_per_device(abstract(params, where))


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
