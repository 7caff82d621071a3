"""Members of a population, group by group, as the programs take them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.genomes.space import Expressing
from evojax_llm.population import sharding


class Groups:
  """Expresses members and places them on the devices of a mesh."""

  def __init__(self, mesh: jax.sharding.Mesh):
    self._mesh = mesh
    # Keyed by identity, with the space kept so that the identity stays its.
    self._express: dict[tuple, tuple[Expressing, Callable]] = {}

  def take(
    self,
    space: Expressing,
    population: Any,
    chosen: np.ndarray,
    size: int,
    form: str,
  ) -> tuple[Any, jax.Array]:
    """Expresses a group of members.

    Args:
      space: of the genomes.
      population: genomes (P, ...). Where they are numpy arrays they stay on the
        host, and only the group goes to the devices.
      chosen: up to `size` indices into it.
      size: members of the group; what is missing repeats the first one.
      form: that they are laid out for.

    Returns:
      (the group's members, as `forms.arrange` leaves them; (size,) bool, which
      of them were chosen).
    """
    index = np.full(size, chosen[0], np.int32)
    index[: len(chosen)] = chosen
    if all(
      isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(population)
    ):
      population = jax.tree.map(lambda leaf: leaf[index], population)
      index = np.arange(size, dtype=np.int32)
    key = (id(space), form)
    if key not in self._express:

      @jax.jit
      def express(population, index):
        taken = jax.tree.map(lambda leaf: leaf[index], population)
        return forms.arrange(form, jax.vmap(space.express)(taken))

      self._express[key] = (space, express)
    members = self._express[key][1](population, index)
    along = sharding.population_sharding
    return (
      jax.device_put(members, along(self._mesh, forms.member_axis(form))),
      jax.device_put(np.arange(size) < len(chosen), along(self._mesh)),
    )


def abstract_member(space: Expressing, population: Any) -> Any:
  """Shapes and types of one expressed member."""
  genome = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), population
  )
  return jax.eval_shape(space.express, genome)


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes and types."""
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
