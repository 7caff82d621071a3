"""Whole weights: a genome is a full set of parameters of a model."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import initial
from evojax_llm.genomes import recipe as recipe_lib
from evojax_llm.genomes import space
from evojax_llm.genomes.space import Model
from evojax_llm.models import expression
from evojax_llm.models import folders as folders_lib
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.errors import ModelError
from evojax_llm.population import stack


class WeightSpace(space.Space):
  """Members that are models of one shape: parameter trees.

  Populations of them are large: leaves that are numpy arrays stay on the host,
  and the engine takes a group at a time to the devices. What has a mass is the
  change from the base, as in task arithmetic (arXiv 2212.04089): a sum of
  experts with weights w is base + sum_n w_n (expert_n - base).
  """

  exports, takes, shares_base = 'model', ('adapters', 'models'), False

  def __init__(
    self, names: Sequence[str], experts: Sequence[dict[str, Any]], model: Model
  ):
    """Makes the space of N named parameter trees that were tuned from a model.

    Raises:
      ValueError: they differ in structure, shape or type.
    """
    if len(names) != len(experts):
      raise ValueError(
        f'Got {len(names)} names for {len(experts)} experts; expected as many.'
      )
    self.names, self._model = tuple(names), model
    expected = _kinds(model.params)
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
      model.params,
    )

  @classmethod
  def of_adapters(
    cls, adapters: peft.AdapterSet, model: Model
  ) -> 'WeightSpace':
    """Makes the space of a base with each of N adapters folded into it."""
    low_rank = adapter_genomes.AdapterSpace(adapters, model)
    members = jax.vmap(low_rank.express)(low_rank.experts())
    fold = jax.jit(
      lambda params, members, n: expression.fold(
        params, jax.tree.map(lambda leaf: leaf[n], members)
      )
    )
    experts = [
      jax.device_get(fold(model.params, members, n))
      for n in range(len(adapters.names))
    ]
    return cls(adapters.names, experts, model)

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
  ) -> 'WeightSpace':
    """Makes the space of a base and folders of models or adapters.

    Raises:
      ModelError: a model is not of the base's configuration, or a folder cannot
        be used.
    """
    config = space.load_base(base, None).config
    for other in models:
      _check_config(other, config)
    loaded = peft.load_adapters(adapters, config) if adapters else None
    model = space.load_base(base, dtype)
    if dtype is None:
      return cls((), (), model)
    if loaded:
      return cls.of_adapters(loaded, model)
    experts = [
      hub.load_checkpoint(other, dtype, place=lambda leaf: leaf)[1]
      for other in models
    ]
    return cls(folders_lib.expert_names(models), experts, model)

  def model(self) -> Model:
    """Returns the base, of which members use the configuration alone."""
    return self._model

  def experts(self) -> stack.Population:
    """Returns the N experts as genomes on the host, leaves (N, ...)."""
    return jax.tree.map(lambda leaf: leaf[:-1], self._models)

  def base(self) -> stack.Genome:
    return jax.tree.map(lambda leaf: leaf[-1], self._models)

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    weights = _with_base(weights * factors[:, None])
    return initial.combine(self._models, weights, weights)

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    mix, mass = initial.random_mix(key, len(self.names), **options)
    weights = _with_base((mix * mass)[None])[0]
    return initial.sum_experts(self._models, weights, weights)

  def express(self, genome: stack.Genome) -> expression.Weights:
    return expression.Weights(genome)

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the change of the base beside those of the experts."""

    def changes(models, own):
      models = np.asarray(models, np.float32)
      rows = [*models[:-1], np.asarray(own, np.float32)]
      return np.stack([(row - models[-1]).reshape(-1) for row in rows])

    pairs = zip(
      jax.tree.leaves(self._models), jax.tree.leaves(genome), strict=True
    )
    blocks = ((changes(*pair),) for pair in pairs)
    base = recipe_lib.numbers(self.base())
    return {
      'base_norm': base['norm'],
      **recipe_lib.by_experts(self.names, blocks),
    }

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a model folder, with the base's tokenizer and types.

    Raises:
      ModelError: the base has no folder.
    """
    if self._model.folder is None:
      raise ModelError(
        'The base has no folder to take the tokenizer from; expected one to '
        'export a model. Give Model(folder=...).'
      )
    space.check_genome(self, genome)
    return hub.save_checkpoint(
      folder,
      jax.device_get(genome),
      self._model.config,
      like=self._model.folder,
    )


def _with_base(weights: Any) -> Any:
  """Adds the weight of the base to weights (C, N) of the experts."""
  rest = 1.0 - weights.sum(axis=1, keepdims=True)
  join = np if isinstance(weights, np.ndarray) else jnp
  return join.concatenate([weights, rest], axis=1)


def _check_config(folder: str | os.PathLike, expected: Any) -> None:
  """Refuses a model that is not of the base's configuration."""
  found, _ = hub.load_config(folder)
  for field in dataclasses.fields(expected):
    theirs, own = getattr(found, field.name), getattr(expected, field.name)
    if theirs != own:
      raise ModelError(
        f'{folder}/config.json: {field.name} is {theirs}, and {own} in the '
        'base; expected a model that was tuned from it.'
      )


def _kinds(params: dict[str, Any]) -> Any:
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
