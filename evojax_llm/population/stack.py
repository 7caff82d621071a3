"""Members on a leading axis P: stack, size, take, concatenate, select, pad.

A population is a pytree whose leaves all have the leading axis P; a genome is
the same tree without it. A leaf with a leading axis of one is the same for all
members, which keep it once. Every function keeps the type of every leaf.
"""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import sharding

Genome = Any
Population = Any
# The host keeps lists with an entry for each member, and makes them one by one.
MOST_MEMBERS = 1 << 17
# In which leaves of so many bytes are taken apart when they are written over.
_PARTS, _PARTS_ABOVE = 64, 1 << 24


def size(population: Population) -> int:
  """Returns the number of members P.

  Raises:
    ValueError: if the tree has no leaves, or its leaves disagree on P.
  """
  leaves = jax.tree.leaves(population)
  if not leaves:
    raise ValueError('Got a population without leaves; expected at least one.')
  sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
  if len(sizes) > 1:
    sizes.discard(1)
  if len(sizes) != 1 or None in sizes:
    shapes = [tuple(leaf.shape) for leaf in leaves]
    raise ValueError(
      f'Got leaves of shapes {shapes}; expected one common leading axis P. '
      'Stack genomes with stack() first.'
    )
  return sizes.pop()


def is_shared(population: Population) -> Any:
  """Returns for each leaf whether all members, two or more, share it."""
  members = size(population)
  return jax.tree.map(lambda leaf: leaf.shape[0] == 1 < members, population)


def mapped(
  function: Callable[[Genome], Any], population: Population
) -> Population:
  """Returns function(genome) of all members, with shared leaves not mapped."""
  shared = is_shared(population)
  axes = jax.tree.map(lambda once: None if once else 0, shared)
  members = jax.tree.map(
    lambda leaf, once: leaf[0] if once else leaf, population, shared
  )
  return jax.vmap(function, in_axes=(axes,))(members)


def check_size(members: int, error: type[ValueError] = ValueError) -> None:
  """Raises `error` for more members than MOST_MEMBERS."""
  if members > MOST_MEMBERS:
    raise error(
      f'Got {members:,} members in a population or its proposals; expected at '
      f'most {MOST_MEMBERS:,}, as the host keeps what each of them does. Use a '
      'smaller population over more generations.'
    )


def stack(genomes: Sequence[Genome]) -> Population:
  """Puts P genomes of equal structure on a new leading axis.

  Raises:
    ValueError: if there are none, or structures, shapes or types differ.
  """
  if not genomes:
    raise ValueError('Got no genomes; expected at least one to stack.')

  def kind(genome):
    leaves, structure = jax.tree.flatten(genome)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]

  first = kind(genomes[0])
  for index, genome in enumerate(genomes[1:], start=1):
    if kind(genome) != first:
      raise ValueError(
        f'Genome {index} differs from genome 0 in structure, shape or type; '
        'expected equal ones. Pad or convert it before stacking.'
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes)


def take(population: Population, index: Any) -> Population:
  """Returns members: `index` () gives one genome, (M,) a population of M.

  Raises:
    ValueError: an index on the host, as an int or a numpy array, is of no
      member. One on a device is not looked at.
  """
  leaves = jax.tree.leaves(population)
  if leaves and isinstance(index, (int, np.integer, np.ndarray)):
    members = size(population)
    found = np.ravel(index)
    for wrong in found[(found < -members) | (found >= members)]:
      raise ValueError(
        f'Got member {wrong} of a population of {members}; expected 0 to '
        f'{members - 1}.'
      )
  return _take(population, index)


def pick(population: Population, index: Any) -> Population:
  """Returns what `take` does, unchecked and not compiled."""

  def leaf_pick(leaf, once):
    if not once:
      return leaf[index]
    return leaf if jnp.ndim(index) else leaf[0]

  return jax.tree.map(leaf_pick, population, is_shared(population))


_take = jax.jit(pick)


def concatenate(*populations: Population) -> Population:
  """Joins populations along P; what members share is repeated for each."""

  def whole(population):
    members = size(population)
    return jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape[1:])),
      population,
    )

  return jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves), *map(whole, populations)
  )


def take_of_both(
  first: Population,
  second: Population,
  index: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> Population:
  """Returns `take` (M,) of both joined along P, which are never joined.

  Where as many are taken as are in the first, and a jitted function gives the
  first up, large leaves are written over it part by part: whole models are not
  there twice. Of populations that are cut over a mesh every device takes its
  part.
  """
  members = size(first)
  if not size(second):
    return take(first, index)
  if mesh is not None:
    where = sharding.cut(mesh, first, members)
    where = jax.tree.map(lambda sharding: sharding.spec, where)
    return jax.shard_map(
      take_of_both,
      mesh=mesh,
      in_specs=(where, where, jax.sharding.PartitionSpec()),
      out_specs=where,
      check_vma=False,
    )(first, second, index)
  is_first = index < members
  here = jnp.clip(index, max=members - 1)
  there = jnp.clip(index - members, min=0)

  def taken(one, two):
    return select(is_first, one[here], two[there])

  def leaf(one, two):
    parts = math.gcd(one[0].size, _PARTS)
    small = one.nbytes < _PARTS_ABOVE or parts == 1
    if small or len(index) != members:
      return taken(one, two)
    split = [x.reshape(len(x), parts, -1) for x in (one, two)]

    def write(i, whole):
      return whole.at[:, i].set(taken(whole[:, i], split[1][:, i]))

    return jax.lax.fori_loop(0, parts, write, split[0]).reshape(one.shape)

  return jax.tree.map(leaf, first, second)


def select(
  mask: jax.Array, chosen: Population, other: Population
) -> Population:
  """Returns `chosen` where mask (P,) is true, else `other`, member by member.

  A leaf without the leading axis stands for every member. Nothing is
  multiplied: NaN on the side that is not chosen is harmless.
  """

  def leaf_select(yes, no):
    rank = max(yes.ndim, no.ndim)
    return jnp.where(mask.reshape(mask.shape + (1,) * (rank - 1)), yes, no)

  return jax.tree.map(leaf_select, chosen, other)


def pad(population: Population, size_after: int) -> Population:
  """Appends members of zeros until there are `size_after`."""
  missing = size_after - size(population)

  def leaf_pad(leaf, once):
    width = [(0, 0 if once else missing)] + [(0, 0)] * (leaf.ndim - 1)
    return jnp.pad(leaf, width)

  return jax.tree.map(leaf_pad, population, is_shared(population))
