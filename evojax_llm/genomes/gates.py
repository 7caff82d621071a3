"""Coefficients: a genome is N weights, a member a merge of the experts."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters
from evojax_llm.genomes import initial
from evojax_llm.models import config as gemma_config
from evojax_llm.models import lora as gemma_lora
from evojax_llm.models import peft
from evojax_llm.population import stack

COEFFICIENTS = 'coefficients'


class GateSpace:
  """Exact linear merges of LoRA experts, never materialised.

  A genome is {'coefficients': (N,) f32} and stands for the change of the model
  sum_n c_n A_n B_n. With the experts' factors concatenated on the rank,
  y = x W + ((x A_cat) gate) B_cat, so that a whole population shares every
  matrix and a member is its gates. Unlike a merge of adapters, factor by
  factor, there are no cross terms between experts.

  Attributes:
    names: (N,) names of the experts.
    rank: N R, the rank of a member.
    shared: adapter tree of the concatenated factors, a (L, in, N R) and
      b (L, N R, out), scaled; parameters that the gates of members weigh.
  """

  def __init__(self, adapter_set: peft.AdapterSet, dtype: Any = jnp.float32):
    """Makes the space.

    Args:
      adapter_set: the experts.
      dtype: of the expressed factors; the coefficients are f32.
    """
    self.names = adapter_set.names
    self.rank = adapter_set.rank * len(adapter_set.names)
    self._scale = adapter_set.scale
    self._factors = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, dtype),
      _concatenate(adapter_set.factors),
    )
    self.shared = adapters.scaled(self._factors, self._scale)

  def experts(self) -> stack.Population:
    """The N experts as genomes: the unit vectors."""
    return {COEFFICIENTS: jnp.eye(len(self.names), dtype=jnp.float32)}

  def sample(
    self,
    key: jax.Array,
    concentration: float = 1.0,
    low: float = 0.0,
    high: float = 4.0,
  ) -> stack.Genome:
    """Draws a Dirichlet mix of the experts times a mass ~ U(low, high)."""
    mix_key, mass_key = jax.random.split(key)
    mix = jax.random.dirichlet(
      mix_key, jnp.full((len(self.names),), concentration, jnp.float32)
    )
    mass = jax.random.uniform(mass_key, (), jnp.float32, low, high)
    return {COEFFICIENTS: mix * mass}

  def initial(
    self, recipe: Sequence[initial.Entry], size: int, seed_key: jax.Array
  ) -> initial.Initial:
    """An initial population; see `initial.make_initial`.

    The mass of a member is in its coefficients here: the zero adapter has
    none, the scaled average a multiple of 1 / N each.
    """
    rows = initial.make_rows(len(self.names), recipe, size, seed_key)
    made = initial.make_initial(self.experts(), recipe, size, seed_key)
    weighed = [
      {COEFFICIENTS: jnp.asarray(row.second, jnp.float32)} for row in rows
    ]
    has_mass = np.asarray(
      [not np.array_equal(row.first, row.second) for row in rows]
    )
    population = stack.select(
      jnp.asarray(has_mass), stack.stack(weighed), made.population
    )
    return initial.Initial(population, made.operators, made.parents, made.rows)

  def express(self, genome: stack.Genome) -> dict[str, Any]:
    """The gates of one member: {'gate': (L, N R) f32} of every linear map."""
    return _gates(self.shared, self._gate(genome))

  def adapter(self, genome: stack.Genome) -> dict[str, Any]:
    """The same member as an adapter: a (L, in, N R), b (L, N R, out), scaled.

    Under vmap only a carries the population's axis.
    """
    return _gate_factors(self.shared, self._gate(genome))

  def export(
    self,
    genome: stack.Genome,
    folder: str | os.PathLike,
    config: gemma_config.GemmaConfig,
    base_model_name: str,
    base_folder: str | os.PathLike | None = None,
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter of rank N R."""
    return peft.save_adapter(
      folder,
      jax.device_get(_gate_factors(self._factors, self._gate(genome))),
      self._scale,
      config,
      base_model_name,
      base_folder,
    )

  def _gate(self, genome: stack.Genome) -> jax.Array:
    """(N R,) f32, each coefficient R times."""
    coefficients = genome[COEFFICIENTS].astype(jnp.float32)
    return jnp.repeat(coefficients, self.rank // len(self.names))


def _concatenate(node: Any) -> Any:
  """Population of factors to one with the experts side by side on the rank."""
  if not gemma_lora.is_factors(node):
    return {name: _concatenate(child) for name, child in node.items()}
  a, b = np.asarray(node['a']), np.asarray(node['b'])
  experts, layers, width, rank = a.shape
  return {
    'a': np.moveaxis(a, 0, 2).reshape(layers, width, experts * rank),
    'b': np.moveaxis(b, 0, 1).reshape(layers, experts * rank, b.shape[-1]),
  }


def _gates(node: Any, gate: jax.Array) -> Any:
  """A gate for every layer of every linear map that has factors."""
  if not gemma_lora.is_factors(node):
    return {name: _gates(child, gate) for name, child in node.items()}
  return {'gate': jnp.broadcast_to(gate, (len(node['a']), *gate.shape))}


def _gate_factors(node: Any, gate: jax.Array) -> Any:
  if not gemma_lora.is_factors(node):
    return {name: _gate_factors(child, gate) for name, child in node.items()}
  a = node['a']
  return {'a': (a.astype(jnp.float32) * gate).astype(a.dtype), 'b': node['b']}
