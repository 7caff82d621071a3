"""Whole weights: a genome is a full set of parameters of a model."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import itertools
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
from evojax_llm.models.safetensors_files import aligned
from evojax_llm.population import leaves
from evojax_llm.population import sharding
from evojax_llm.population import stack


class WeightSpace(space.Space):
  """Members that are models of one shape: parameter trees.

  Populations of them are large: leaves that are numpy arrays stay on the host,
  and the engine takes a group at a time to the devices. What has a mass is the
  change from the base, as in task arithmetic (arXiv 2212.04089): a sum of
  experts with weights w is base + sum_n w_n (expert_n - base). The change of an
  expert that is an adapter is the product of its factors in f32, not what is
  left of it when it is folded into the base in the type of the parameters.

  Attributes:
    num_adapters: how many of the experts, the first ones, are adapters.
  """

  exports, takes, shares_base = 'model', ('adapters', 'models'), False

  def __init__(
    self,
    names: Sequence[str],
    experts: Sequence[dict[str, Any] | Callable[[dict[str, Any]], Any]],
    model: Model,
    factors: dict[str, Any] | None = None,
  ):
    """Makes the space of N named parameter trees that were tuned from a model.

    Args:
      names: of the experts.
      experts: their parameters, or what writes these into arrays: all experts
        are held once, side by side.
      model: the base.
      factors: of those experts that are adapters, which come first: a tree of
        {'a': (M, L, in, R), 'b': (M, L, R, out)} f32, b scaled.

    Raises:
      ValueError: they differ in structure, shape or type.
    """
    if len(names) != len(experts):
      raise ValueError(
        f'Got {len(names)} names for {len(experts)} experts; expected as many.'
      )
    self.names, self._model = tuple(names), model
    self._factors = factors
    self.num_adapters = len(jax.tree.leaves(factors)[0]) if factors else 0
    expected = _kinds(model.params)
    self._models = jax.tree.map(
      lambda leaf: aligned((len(names) + 1, *leaf.shape), leaf.dtype),
      model.params,
    )
    # The base is the last one.
    for i, expert in enumerate([*experts, model.params]):
      own = jax.tree.map(lambda leaf, i=i: leaf[i, ...], self._models)
      if callable(expert):
        expert(own)
      elif _kinds(expert) == expected:
        jax.tree.map(np.copyto, own, sharding.to_host(expert))
      else:
        raise ValueError(
          f'Expert {names[i]} differs from the base in structure, shape or '
          'type; expected models of one configuration, loaded in one type.'
        )

  @classmethod
  def of_adapters(
    cls,
    adapters: peft.AdapterSet,
    model: Model,
    names: Sequence[str] = (),
    models: Sequence[dict[str, Any] | Callable[[dict[str, Any]], Any]] = (),
  ) -> 'WeightSpace':
    """Makes the space of a base with each of M adapters folded into it.

    Named models, if any, are experts beside them.
    """
    low_rank = adapter_genomes.AdapterSpace(adapters, model)
    members = jax.vmap(low_rank.express)(low_rank.experts())
    fold = jax.jit(
      lambda params, members, n: expression.fold(
        params, jax.tree.map(lambda leaf: leaf[n], members)
      )
    )

    def write(own: dict[str, Any], n: int) -> None:
      folded = sharding.to_host(fold(model.params, members, n))
      jax.tree.map(np.copyto, own, folded)

    folded = [functools.partial(write, n=n) for n in range(len(adapters.names))]
    return cls(
      (*adapters.names, *names),
      [*folded, *models],
      model,
      sharding.to_host(members.factors),
    )

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
  ) -> 'WeightSpace':
    """Makes the space of a base and folders of adapters and of models.

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
    names = folders_lib.expert_names([*adapters, *models])
    experts = [functools.partial(_read, other, dtype) for other in models]
    if not loaded:
      return cls(names, experts, model)
    count = len(adapters)
    loaded = dataclasses.replace(loaded, names=names[:count])
    return cls.of_adapters(loaded, model, names[count:], experts)

  def model(self) -> Model:
    """Returns the base, of which members use the configuration alone."""
    return self._model

  def experts(self) -> stack.Population:
    """Returns the N experts as genomes on the host, leaves (N, ...)."""
    return jax.tree.map(lambda leaf: leaf[:-1], self._models)

  def base(self) -> stack.Genome:
    return jax.tree.map(lambda leaf: leaf[-1], self._models)

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    weights = weights * factors[:, None]
    alone = (weights == 1) & (np.count_nonzero(weights, axis=1) == 1)[:, None]
    dense, changes = self._parts(weights, alone)
    mixed = initial.combine(self._models, dense, dense, self._mixed_in)
    return self._changed(mixed, changes)

  def adapted(self, adapter: expression.LowRank) -> stack.Genome:
    return expression.fold(self._model.params, adapter)

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    mix, mass = initial.random_mix(key, len(self.names), **options)
    dense, changes = self._parts((mix * mass)[None], False)
    mixed = initial.sum_experts(
      self._models, dense[0], dense[0], self._mixed_in
    )
    return self._changed(mixed, changes[0])

  @property
  def _mixed_in(self) -> Any:
    """The type of a mix to which changes of adapters are still to be added."""
    return None if self._factors is None else jnp.float32

  def _parts(self, weights: Any, alone: Any) -> tuple[Any, Any]:
    """Weights (C, N + 1) of models, and (C, M) of changes of adapters.

    Where `alone` (C, N) says so a member is an adapter as it was folded.
    """
    count = self.num_adapters
    join = np if isinstance(weights, np.ndarray) else jnp
    models = join.where(alone, weights, 0) if count else weights
    models = join.concatenate([models[:, :count], weights[:, count:]], axis=1)
    return _with_base(models), (weights - models)[:, :count]

  def _changed(self, mixed: Any, weights: Any) -> Any:
    """Adds weighed changes of adapters (..., M) to f32 mixes (..., L, ...)."""
    if self._factors is None:
      return mixed
    weights = jnp.asarray(weights, jnp.float32)
    changed = _add_changes(mixed, self._factors, weights)
    return jax.tree.map(
      lambda leaf, like: leaf.astype(like.dtype), changed, self._models
    )

  def express(self, genome: stack.Genome) -> expression.Weights:
    return expression.Weights(genome)

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the change of the base beside those of the experts."""

    def block(path, own):
      changes, start = self.changes(path)
      rows = [*changes, np.asarray(own, np.float32) - start]
      return (np.stack([row.reshape(-1) for row in rows]),)

    blocks = itertools.starmap(block, jax.tree.leaves_with_path(genome))
    base = recipe_lib.numbers(self.base())
    return {
      'base_norm': base['norm'],
      **recipe_lib.by_experts(self.names, blocks),
    }

  def changes(self, path: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the experts change of one leaf, and the leaf of the base.

    Args:
      path: of the leaf in a genome, as jax gives it.

    Returns:
      (N, ...) and (...) f32.
    """
    models, pair = self._models, self._factors or {}
    for key in path:
      models = models[key.key]
    for key in path[:-1]:
      pair = pair.get(key.key, {})
    models = np.asarray(models, np.float32)
    changes = models[:-1] - models[-1]
    if pair:
      changes[: self.num_adapters] = pair['a'] @ pair['b']
    return changes, models[-1]

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
      sharding.to_host(genome),
      self._model.config,
      like=self._model.folder,
    )


@jax.jit
def _add_changes(params: Any, factors: Any, weights: jax.Array) -> Any:
  """Adds M low ranks, weighed by (..., M), to parameters (..., L, ...)."""

  def side_by_side(pair):
    a = jnp.moveaxis(pair['a'], 0, -2)
    b = jnp.einsum('...m,mlro->...lmro', weights, pair['b'])
    return {
      'a': a.reshape(*a.shape[:-2], -1),
      'b': b.reshape(*b.shape[:-3], -1, b.shape[-1]),
    }

  summed = jax.tree.map(side_by_side, factors, is_leaf=leaves.is_factors)
  return expression.fold(params, expression.LowRank(summed))


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


def _read(folder: str | os.PathLike, dtype: Any, own: dict[str, Any]) -> None:
  """Reads the parameters of a model folder into arrays."""
  hub.load_checkpoint(folder, dtype, place=lambda leaf: leaf, into=own)


def _kinds(params: dict[str, Any]) -> Any:
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
