"""Adapters: a genome is the LoRA factors A and B of every adapted matrix."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import initial
from evojax_llm.models import config as gemma_config
from evojax_llm.models import lora as gemma_lora
from evojax_llm.models import peft
from evojax_llm.population import stack


class AdapterSpace:
  """Low-rank members over one shared base.

  A genome is {'layers': {block: {projection: {'a': (L, in, R), 'b': (L, R,
  out)}}}}, with b as PEFT stores it. Expressing it multiplies b by the scale
  (alpha / r), so that the model computes y = x W + (x a) b.

  Attributes:
    names: (N,) names of the experts.
    rank: R.
  """

  def __init__(self, adapters: peft.AdapterSet, dtype: Any = jnp.float32):
    """Makes the space.

    Args:
      adapters: the experts.
      dtype: of the genomes; f32 unless memory forbids, as small changes of
        bf16 weights are lost.
    """
    self.names = adapters.names
    self.rank = adapters.rank
    self._dtype = dtype
    self._adapters = adapters

  def experts(self) -> stack.Population:
    """The N experts as genomes, leaves (N, ...)."""
    return jax.tree.map(
      lambda leaf: jnp.asarray(leaf, self._dtype), self._adapters.factors
    )

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    """Genomes (C, ...) with a = sum_n w_n a_n and b = factor sum_n w_n b_n.

    Args:
      weights: (C, N) w, the same for a and b.
      factors: (C,) of b.
    """
    second = weights * factors[:, None]
    return initial.combine(self.experts(), weights, second)

  def initial(
    self, recipe: Sequence[initial.Entry], size: int, seed_key: jax.Array
  ) -> initial.Initial:
    """An initial population; see `initial.make_initial`."""
    return initial.make_initial(self.experts(), recipe, size, seed_key)

  def express(self, genome: stack.Genome) -> dict[str, Any]:
    """The `lora` tree of one member: factors with b scaled.

    Multiplied in f32; leaves keep the genome's type.
    """
    return scaled(genome, self._adapters.scale)

  def adapter(self, genome: stack.Genome) -> dict[str, Any]:
    """One member as an adapter, which is what it is expressed as."""
    return self.express(genome)

  def export(
    self,
    genome: stack.Genome,
    folder: str | os.PathLike,
    config: gemma_config.GemmaConfig,
    base_model_name: str,
    base_folder: str | os.PathLike | None = None,
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter; see `peft.save_adapter`."""
    return peft.save_adapter(
      folder,
      jax.device_get(genome),
      self._adapters.scale,
      config,
      base_model_name,
      base_folder,
    )


def scaled(factors: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
  """Adapter tree of one member with b multiplied by the scale (L,)."""
  if not gemma_lora.is_factors(factors):
    return {name: scaled(node, scale[name]) for name, node in factors.items()}
  b = factors['b']
  by_layer = jnp.asarray(scale, jnp.float32)[:, None, None]
  return {
    'a': factors['a'],
    'b': (b.astype(jnp.float32) * by_layer).astype(b.dtype),
  }
