"""Adapters: a genome is the LoRA factors A and B of every adapted matrix."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import initial
from evojax_llm.genomes import recipe as recipe_lib
from evojax_llm.genomes import space
from evojax_llm.models import folders
from evojax_llm.models import peft
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import of_one_rank
from evojax_llm.population import leaves
from evojax_llm.population import sharding
from evojax_llm.population import stack


class AdapterSpace(space.Space):
  """Low-rank members over one shared base.

  A genome is {'layers': {block: {projection: {'a': (L, in, R), 'b': (L, R,
  out)}}}}, with b as PEFT stores it. Expressing it multiplies b by the scale
  (alpha / r), so that the model computes y = x W + (x a) b. Mixes are made
  factor by factor: a = sum_n w_n a_n and b = factor sum_n w_n b_n.

  Attributes:
    names: (N,) names of the experts.
    rank: R.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
  ):
    """Makes the space of adapters over their base.

    Genomes are f32 unless memory forbids, as small changes of bf16 weights are
    lost.
    """
    self.names, self.rank = adapters.names, adapters.rank
    self._dtype, self._adapters, self._model = dtype, adapters, model

  def model(self) -> space.Model:
    return self._model

  def experts(self) -> stack.Population:
    return jax.tree.map(
      lambda leaf: jnp.asarray(leaf, self._dtype), self._adapters.factors
    )

  def base(self) -> stack.Genome:
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape[1:], self._dtype),
      self._adapters.factors,
    )

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    second = weights * factors[:, None]
    return initial.combine(self.experts(), weights, second)

  def adapted(self, adapter: LowRank) -> stack.Genome | None:
    """Returns an adapter of the experts' modules, of their rank at least."""
    shapes = jax.eval_shape(self.base)
    if jax.tree.structure(adapter.factors) != jax.tree.structure(shapes):
      return None
    nothing = LowRank(
      jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    )
    factors = of_one_rank(adapter, nothing)[0].factors
    inverse = jax.tree.map(lambda s: 1 / s, self._adapters.scale)
    genome = scaled(factors, inverse)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), genome)

  def mix_rows(self, rows: Sequence[initial.Row]) -> stack.Population:
    return initial.combine_rows(self.experts(), rows)

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    mix, mass = initial.random_mix(key, len(self.names), **options)
    return initial.sum_experts(self.experts(), mix, mix * mass)

  def express(self, genome: stack.Genome) -> LowRank:
    """Returns the factors with b scaled in f32, in the genome's types."""
    return LowRank(scaled(genome, self._adapters.scale))

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns rank and change of the model beside those of the experts."""
    experts = LowRank(self._adapters.factors)
    own = LowRank(jax.tree.map(lambda leaf: np.asarray(leaf)[None], genome))
    if (
      jax.tree.leaves(own)[0].shape[1:] != jax.tree.leaves(experts)[0].shape[1:]
    ):
      experts, own = of_one_rank(experts, own)
    together = jax.tree.map(
      lambda *pair: np.concatenate([np.asarray(x, np.float32) for x in pair]),
      experts.factors,
      own.factors,
    )
    together = sharding.to_host(scaled(together, self._adapters.scale))
    pairs = jax.tree.leaves(together, is_leaf=leaves.is_factors)
    blocks = (
      (pair['a'][:, layer], pair['b'][:, layer])
      for pair in pairs
      for layer in range(pair['a'].shape[1])
    )
    return {'rank': self.rank, **recipe_lib.by_experts(self.names, blocks)}

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    space.check_genome(self, genome)
    return save(folder, genome, self._adapters.scale, self._model)


def save(
  folder: str | os.PathLike, factors: Any, scale: Any, model: space.Model
) -> pathlib.Path:
  """Writes factors, b not scaled, as a PEFT adapter of a model."""
  name = '' if model.folder is None else folders.model_name(model.folder)
  if '/' not in name and name:  # Not of the hub: a path is what PEFT finds.
    name = os.fspath(model.folder)
  return peft.save_adapter(
    folder, sharding.to_host(factors), scale, model.config, name, model.folder
  )


def scaled(factors: dict[str, Any], scale: Any) -> dict[str, Any]:
  """Returns factors, of one member or many, with b times the scale (L,)."""
  if isinstance(scale, dict):
    return {name: scaled(node, scale[name]) for name, node in factors.items()}
  b = factors['b']
  by_layer = jnp.asarray(scale, jnp.float32)[:, None, None]
  return {
    'a': factors['a'],
    'b': (b.astype(jnp.float32) * by_layer).astype(b.dtype),
  }
