"""Whole weights: a genome is a full set of parameters of a model."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import initial
from evojax_llm.models import config as gemma_config
from evojax_llm.models import hub
from evojax_llm.models import lora
from evojax_llm.models import peft
from evojax_llm.population import stack


class WeightSpace:
  """Members that are models, with nothing in common but their shape.

  A genome is a parameter tree of `gemma.transformer.Gemma`. Populations of them
  are large: leaves that are numpy arrays stay on the host, and the engine takes
  a group at a time to the devices.

  What has a mass is the change from the base, as in task arithmetic (arXiv
  2212.04089): a sum of experts with weights w is base + sum_n w_n (expert_n -
  base), so that weights of zero give the base.

  Attributes:
    names: (N,) names of the experts.
  """

  def __init__(
    self,
    names: Sequence[str],
    experts: Sequence[dict[str, Any]],
    base: dict[str, Any],
  ):
    """Makes the space.

    Args:
      names: of the experts.
      experts: N parameter trees of one configuration, as `hub.load_checkpoint`
        gives them.
      base: the parameters that they were tuned from.

    Raises:
      ValueError: they differ in structure, shape or type.
    """
    if len(names) != len(experts):
      raise ValueError(
        f'Got {len(names)} names for {len(experts)} experts; expected as many.'
      )
    self.names = tuple(names)
    expected = _kinds(base)
    for name, expert in zip(names, experts, strict=True):
      if _kinds(expert) != expected:
        raise ValueError(
          f'Expert {name} differs from the base in structure, shape or type; '
          'expected models of one configuration, loaded in one type.'
        )
    # The base is the last one.
    self._models = jax.tree.map(
      lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]),
      *experts,
      base,
    )

  @classmethod
  def of_adapters(
    cls, adapters: peft.AdapterSet, base: dict[str, Any]
  ) -> 'WeightSpace':
    """The space of a base with each of N adapters folded into it.

    Args:
      adapters: the experts.
      base: parameters of their base.
    """
    space = adapter_genomes.AdapterSpace(adapters)
    members = jax.vmap(space.express)(space.experts())
    fold = jax.jit(
      lambda params, members, n: lora.fold(
        params, jax.tree.map(lambda leaf: leaf[n], members)
      )
    )
    experts = [
      jax.device_get(fold(base, members, n)) for n in range(len(adapters.names))
    ]
    return cls(adapters.names, experts, base)

  def experts(self) -> stack.Population:
    """The N experts as genomes on the host, leaves (N, ...)."""
    return jax.tree.map(lambda leaf: leaf[:-1], self._models)

  def base(self) -> stack.Genome:
    """The base that the experts were tuned from, on the host."""
    return jax.tree.map(lambda leaf: leaf[-1], self._models)

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    """Genomes (C, ...): base + factor sum_n w_n (expert_n - base).

    Args:
      weights: (C, N) w.
      factors: (C,) of the change from the base.
    """
    return self._sum(weights * factors[:, None])

  def initial(
    self, recipe: Sequence[initial.Entry], size: int, seed_key: jax.Array
  ) -> initial.Initial:
    """An initial population; see `initial.make_initial`.

    The mass of a member, which 'zero' and 'scaled_average' choose, is that of
    its change from the base.
    """
    rows = initial.make_rows(len(self.names), recipe, size, seed_key)
    population = self._sum(np.stack([row.second for row in rows]))
    return initial.finish(rows, population, seed_key)

  def _sum(self, weights: np.ndarray) -> stack.Population:
    """base + sum_n w_n (expert_n - base) for weights (C, N)."""
    rest = 1.0 - weights.sum(axis=1, keepdims=True)
    weights = np.concatenate([weights, rest], axis=1)
    return initial.combine(self._models, weights, weights)

  def express(self, genome: stack.Genome) -> dict[str, Any]:
    """The parameters of one member: the genome itself."""
    return genome

  def export(
    self,
    genome: stack.Genome,
    folder: str | os.PathLike,
    config: gemma_config.GemmaConfig,
    base_model_name: str,
    base_folder: str | os.PathLike,
  ) -> pathlib.Path:
    """Writes one member as a model folder; see `hub.save_checkpoint`.

    Args:
      genome: of the member.
      folder: new folder.
      config: of the model.
      base_model_name: not written; a model folder stands alone.
      base_folder: gives tokenizer and stored types.
    """
    del base_model_name
    return hub.save_checkpoint(
      folder, jax.device_get(genome), config, like=base_folder
    )


def _kinds(params: dict[str, Any]) -> Any:
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
