"""Members of a population, group by group, as the programs take them."""

from collections.abc import Callable
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.models import lora as lora_lib
from evojax_llm.population import sharding


class Space(Protocol):
  """What the engine asks of a genome space.

  A space may have an attribute `shared`: factors that stand beside the kernels
  of the base for all its members (`lora.with_factors`), whose gates they are.
  """

  def express(self, genome: Any) -> Any:
    """What tells one genome's model from the base (see `gemma.lora`)."""


class Expressed:
  """A space of genomes that are what the model takes already."""

  def express(self, genome: Any) -> Any:
    """The genome itself."""
    return genome


class Groups:
  """Expresses members and places them on the devices.

  Args:
    params: of the base, on all devices.
    mesh: devices that the members are spread over.
  """

  def __init__(self, params: Any, mesh: jax.sharding.Mesh):
    self._params, self._mesh = params, mesh
    # Keyed by identity, with the space kept so that the identity stays its.
    self._bases: dict[int, tuple[Space, Any]] = {}
    self._express: dict[tuple, tuple[Space, Callable]] = {}

  def base(self, space: Space) -> Any:
    """Parameters that the members of a space share, on all devices."""
    shared = getattr(space, 'shared', None)
    if shared is None:
      return self._params
    if id(space) not in self._bases:
      whole = sharding.replicated(self._mesh)
      shared = jax.device_put(shared, whole)
      base = lora_lib.with_factors(self._params, shared)
      self._bases[id(space)] = (space, base)
    return self._bases[id(space)][1]

  def take(
    self,
    space: Space,
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


def abstract_member(space: Space, population: Any) -> Any:
  """Shapes and types of one expressed member."""
  genome = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), population
  )
  return jax.eval_shape(space.express, genome)


def is_whole(member: Any) -> bool:
  """Whether a member takes the place of parameters, not only adds to them."""
  names = {path[-1].key for path, _ in jax.tree.leaves_with_path(member)}
  return not names <= {'a', 'b', 'gate'}


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes and types."""
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
