"""Whole weights: a genome is a full set of parameters of a model."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import numpy as np

from evojax_llm.gemma import config as gemma_config
from evojax_llm.gemma import hub
from evojax_llm.genomes import initial
from evojax_llm.population import stack


class WeightSpace:
  """Members that are models, with nothing in common but their shape.

  A genome is a parameter tree of `gemma.transformer.Gemma`. Populations of them
  are large: leaves that are numpy arrays stay on the host, and the engine takes
  a group at a time to the devices.

  Attributes:
    names: (N,) names of the experts.
  """

  def __init__(
    self,
    names: Sequence[str],
    experts: Sequence[dict[str, Any]],
  ):
    """Makes the space.

    Args:
      names: of the experts.
      experts: N parameter trees of one configuration, as `hub.load_checkpoint`
        gives them.

    Raises:
      ValueError: they differ in structure, shape or type.
    """
    if len(names) != len(experts):
      raise ValueError(
        f'Got {len(names)} names for {len(experts)} experts; expected as many.'
      )
    self.names = tuple(names)
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), e) for e in experts]
    for name, kind in zip(names, kinds, strict=True):
      if kind != kinds[0]:
        raise ValueError(
          f'Expert {name} differs from {names[0]} in structure, shape or type; '
          'expected models of one configuration, loaded in one type.'
        )
    self._experts = jax.tree.map(
      lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *experts
    )

  def experts(self) -> stack.Population:
    """The N experts as genomes on the host, leaves (N, ...)."""
    return self._experts

  def initial(
    self, recipe: Sequence[initial.Entry], size: int, seed_key: jax.Array
  ) -> initial.Initial:
    """An initial population; see `initial.make_initial`.

    The mass of a member, which 'zero' and 'scaled_average' choose, is that of
    an adapter's second factor; whole weights have none.
    """
    return initial.make_initial(self.experts(), recipe, size, seed_key)

  def express(self, genome: stack.Genome) -> dict[str, Any]:
    """The parameters of one member: the genome itself."""
    return genome

  def export(
    self,
    genome: stack.Genome,
    folder: str | os.PathLike,
    config: gemma_config.GemmaConfig,
    base_folder: str | os.PathLike,
  ) -> pathlib.Path:
    """Writes one member as a model folder; see `hub.save_checkpoint`."""
    hub.save_checkpoint(
      folder, jax.device_get(genome), config, like=base_folder
    )
    return pathlib.Path(folder)
