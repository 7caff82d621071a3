"""Members of a population, group by group, as the programs take them."""

from collections.abc import Sequence
import hashlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.space import Expressing
from evojax_llm.genomes.space import check_genome
from evojax_llm.models import expression as expression_lib
from evojax_llm.models.expression import Expression
from evojax_llm.models.expression import Path
from evojax_llm.population import sharding
from evojax_llm.population import stack


def check_members(
  space: Expressing, population: Any, members: Sequence[int] | None
) -> np.ndarray:
  """Returns the indices of M members of a population (P, ...), by default all.

  Raises:
    ValueError: an index is none of 0 to P - 1, or the genomes are not of the
      space.
  """
  check_genome(space, population, population=True)
  size = stack.size(population)
  indices = np.arange(size) if members is None else np.asarray(members)
  if not indices.size:
    return np.arange(0)
  if indices.ndim != 1 or indices.dtype.kind not in 'iu':
    raise ValueError(f'Got members {members!r}; expected a list of indices.')
  for index in indices[(indices < 0) | (indices >= size)]:
    raise ValueError(
      f'Got member {index} of a population of {size}; expected 0 to {size - 1}.'
    )
  return indices


def size_for(count: int, most: int, devices: int) -> int:
  """Returns how many members a program for a group of `count` is made for.

  Few sizes, so that few programs are compiled, and at most a third of a group
  is idle: the next of 1, 2, 3, 4, 6, 8, 12, ... times the devices, at most
  `most`, itself a multiple of them.
  """
  need = -(-count // devices)
  power = 1 << (need - 1).bit_length()
  size = power * 3 // 4 if power * 3 // 4 >= need else power
  return min(size * devices, most)


def express(
  runtime: Runtime,
  space: Expressing,
  population: Any,
  chosen: np.ndarray,
  size: int,
  form: str,
) -> tuple[Expression, jax.Array]:
  """Expresses a group of members and places them on the devices.

  `chosen` are up to `size` indices into the population (P, ...); what is
  missing repeats the first. Numpy arrays, and arrays of other devices, stay
  where they are, and one copy of the group goes to the devices.

  Returns:
    The group's members, as `forms.lay_out` leaves them, and (size,) bool, which
      of them were chosen.
  """
  index = np.full(size, chosen[0], np.int32)
  index[: len(chosen)] = chosen
  along, held = sharding.population_sharding, space.held

  def lay_out(group, held):
    own = () if held is None else (held,)
    members = stack.mapped(lambda genome: space.express(genome, *own), group)
    return forms.lay_out(form, members)

  def take_and_lay_out(population, index, held):
    return lay_out(stack.pick(population, index), held)

  if space.streams:
    members = _streamed(runtime, space, population, index)
    members = forms.lay_out(form, members)
  else:
    run, donate, spec = take_and_lay_out, (), None
    arguments = population, index, held
    if sharding.is_over(runtime.mesh, population):  # Each deals out its part.
      spec = sharding.population_spec(forms.member_axis(form))
    elif not _is_near(runtime, population):
      group = _taken(runtime, population, index)
      if held is None:
        to = along(runtime.mesh), sharding.replicated(runtime.mesh)
        group = jax.tree.map(
          lambda leaf, once: sharding.place(leaf, to[once]),
          group,
          stack.is_shared(group),
        )
      else:  # Merges of it are made on one device.
        to = jax.sharding.SingleDeviceSharding(runtime.mesh.local_devices[0])
        group = sharding.place(group, to)
      run, arguments = lay_out, (group, held)
      same = _kinds(jax.eval_shape(lay_out, *arguments)) == _kinds(group)
      donate = (0,) if same else ()
    name = ('express', form, id(space))
    program = runtime.compiled(
      name, run, *arguments, out_specs=spec, donate=donate, keep=space
    )
    members = program(*arguments)
  return (
    sharding.place(members, along(runtime.mesh, forms.member_axis(form))),
    sharding.place(np.arange(size) < len(chosen), along(runtime.mesh)),
  )


def _is_near(runtime: Runtime, population: Any) -> bool:
  """Whether a population is on devices of the engine."""
  leaf = jax.tree.leaves(population)[0]
  if not isinstance(leaf, jax.Array):
    return False
  return bool(leaf.sharding.device_set & set(runtime.mesh.devices.flat))


def _taken(runtime: Runtime, population: Any, index: np.ndarray) -> Any:
  """Members of a population that is elsewhere, taken where it is."""
  leaf = jax.tree.leaves(population)[0]
  if not isinstance(leaf, jax.Array):
    return stack.pick(population, index)
  with jax.default_device(next(iter(leaf.sharding.device_set))):
    program = runtime.compiled('take', stack.pick, population, index)
    return program(population, index)


def _kinds(tree: Any) -> list[tuple[tuple[int, ...], str]]:
  """Shapes and types: a tree with the same can take another one's memory."""
  return sorted((x.shape, str(x.dtype)) for x in jax.tree.leaves(tree))


def _streamed(runtime, space, population, index):
  """Members (M, ...) of a space that streams; each of `index` merged once."""
  different, which = np.unique(index, return_inverse=True)

  def call(run, *arguments):
    name = ('stream', id(space))
    return runtime.compiled(name, run, *arguments, keep=space)(*arguments)

  genomes = [jax.tree.map(lambda x, i=i: x[i], population) for i in different]
  members = space.stream(genomes, call)
  if np.array_equal(which, np.arange(len(genomes))):
    return members
  return jax.tree.map(lambda leaf: leaf[which], members)


class Models(NamedTuple):
  """What the members (P, ...) of a population are.

  Attributes:
    names: P names; members of one name are the same model, now and in other
      populations.
    hops: (P,) lengths of paths, or None.
  """

  names: list[str]
  hops: np.ndarray | None


def models(
  runtime: Runtime, space: Expressing, population: Any
) -> Models | None:
  """Returns the models of members; None if the space does not tell."""
  if not space.decodes:
    return None
  # Of all members, so that one program serves any number of indices.
  name = ('decoded', id(space))
  program = runtime.compiled(
    name, jax.vmap(space.decoded), population, keep=space
  )
  decoded = sharding.to_host(program(population))
  rows = zip(*jax.tree.leaves(decoded), strict=True)
  parts = (b''.join(leaf.tobytes() for leaf in row) for row in rows)
  names = [hashlib.sha256(part).hexdigest()[:16] for part in parts]
  if not isinstance(decoded, Path):
    return Models(names, None)
  return Models(names, np.sum(decoded.hops >= 0, axis=1))


def first_of_each(
  found: Models | None, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
  """Finds members that are expressed as the same model.

  Returns:
    Positions into the M `indices` of members (P, ...) of which no two are the
    same model, and (M,) which of those each member is as; None where all differ
    or the space does not tell. Paths go by their length, so that those of a
    group end together.
  """
  if found is None or not len(indices):
    return None
  slots: dict[str, int] = {}
  same = [slots.setdefault(found.names[i], len(slots)) for i in indices]
  first, same = np.unique(same, return_index=True)[1], np.asarray(same)
  if found.hops is not None:
    order = np.argsort(found.hops[indices[first]], kind='stable')
    return first[order], np.argsort(order)[same]
  return None if len(first) == len(indices) else (first, same)


def distances(
  runtime: Runtime, space: Expressing, population: Any, indices: np.ndarray
) -> np.ndarray:
  """Returns how far members are from what all share, (M,) f32.

  Of those at M `indices` of a population (P, ...), one after another; see
  `expression.distance`.
  """
  held = space.held

  def run(population, index, params, held):
    genome = stack.pick(population, index)
    own = () if held is None else (held,)
    return expression_lib.distance(space.express(genome, *own), params)

  params, zero = space.model().params, jnp.int32(0)
  if all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(population)):
    rows = ((stack.pick(population, np.asarray([i])), zero) for i in indices)
  else:
    rows = ((population, jnp.int32(i)) for i in indices)
  found = []
  for row, index in rows:
    given = row, index, params, held
    name = ('distance', id(space))
    program = runtime.compiled(name, run, *given, keep=space)
    found.append(program(*given))
  return np.asarray(sharding.to_host(found), np.float32)


def abstract_member(space: Expressing, population: Any) -> Expression:
  """Returns shapes and types of one expressed member."""
  genome = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), population
  )
  return jax.eval_shape(space.express, genome)


def num_bytes(tree: Any) -> int:
  """Returns bytes of a tree of arrays, or of their shapes and types."""
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
