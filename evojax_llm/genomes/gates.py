"""Gates: a genome is a weight for each of N LoRA experts."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import initial
from evojax_llm.genomes import space
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.population import leaves
from evojax_llm.population import stack

GATES = 'gates'
# Most mass of a random mix, and with it the highest gate.
_HIGHEST = 4.0


class GateSpace(space.Space):
  """Exact linear merges of LoRA experts, never formed.

  A genome is {'gates': (N,) f32} and stands for the change of the model sum_n
  g_n A_n B_n. With the experts' factors concatenated on the rank, y = x W + ((x
  A_cat) gate) B_cat, so that a whole population shares every matrix. Unlike a
  merge of adapters, factor by factor, there are no cross terms. `rank` is N R;
  `factors` are all factors side by side, not scaled.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
  ):
    """Makes the space; `dtype` is of the shared factors, gates are f32."""
    self.names = adapters.names
    self.rank = adapters.rank * len(adapters.names)
    self._plain = adapter_genomes.AdapterSpace(adapters, model, dtype)
    self._scale, self._base = adapters.scale, model
    self.factors = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, dtype),
      jax.tree.map_with_path(_side_by_side, adapters.factors),
    )

  @functools.cached_property
  def _model(self) -> space.Model:
    if self._base.params is None:
      return self._base
    shared = adapter_genomes.scaled(self.factors, self._scale)
    params = expression.with_factors(self._base.params, shared)
    return dataclasses.replace(self._base, params=params)

  @property
  def plain(self) -> adapter_genomes.AdapterSpace:
    return self._plain

  def model(self) -> space.Model:
    """Returns the base with the concatenated factors beside its kernels.

    They are a (L, in, N R) and b (L, N R, out), scaled.
    """
    return self._model

  def experts(self) -> stack.Population:
    return {GATES: jnp.eye(len(self.names), dtype=jnp.float32)}

  def base(self) -> stack.Genome:
    return {GATES: jnp.zeros((len(self.names),), jnp.float32)}

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    # Adding zero makes -0 a plain zero.
    gates = np.asarray(weights) * np.asarray(factors)[:, None] + 0.0
    return {GATES: jnp.asarray(gates, jnp.float32)}

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    mix, mass = initial.random_mix(key, len(self.names), **options)
    return {GATES: mix * mass}

  def bounds(self) -> tuple[stack.Genome, stack.Genome]:
    """Returns gates of 0 and of 4; a search may leave them."""
    low = self.base()
    return low, jax.tree.map(lambda leaf: leaf + _HIGHEST, low)

  def express(self, genome: stack.Genome) -> expression.Gates:
    """Returns gates (L, N R) f32 of every linear map that has factors."""
    gates = genome[GATES].astype(jnp.float32)
    return self.weighed(jax.tree.map(lambda _: gates, self._scale))

  def weighed(self, weights: Any) -> expression.Gates:
    """Returns gates of weights (N,) or (L, N) f32 for each of the linear maps.

    `weights` is a tree of them, such as `AdapterSet.scale` is.
    """

    def gate(scale, weights):
      gate = jnp.repeat(weights, self.rank // len(self.names), axis=-1)
      return jnp.broadcast_to(gate, (len(scale), gate.shape[-1]))

    return expression.Gates(jax.tree.map(gate, self._scale, weights))

  def deviation(self) -> float:
    """Returns 0.3 of an expert, however many there are."""
    return 0.3

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the weight of each expert by name."""
    gates = np.asarray(genome[GATES], np.float32)
    # By way of text, an f32 is the shortest decimal: 0.3, not 0.30000001.
    return {
      'weights': {
        name: float(str(gate)) if np.isfinite(gate) else None
        for name, gate in zip(self.names, gates, strict=True)
      }
    }

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter of rank N R."""
    space.check_genome(self, genome)
    return self.write(self.express(genome), folder)

  def write(
    self, member: expression.Gates, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes what is expressed as gates, as `export` does."""
    member = expression.as_low_rank(member, self.factors)
    return adapter_genomes.save(folder, member.factors, self._scale, self._base)


def _side_by_side(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
  """Joins the factors (N, ...) of the experts on their rank."""
  axis = -2 if leaves.is_second_factor(path) else -1
  # Shapes alone are traced.
  join = np if isinstance(leaf, np.ndarray) else jnp
  moved = join.moveaxis(leaf, 0, axis - 1)
  shape = list(leaf.shape[1:])
  shape[axis] *= len(leaf)
  return moved.reshape(shape)
