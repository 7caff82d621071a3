"""Recipes for whole weights, of adapters or of models tuned from the base."""

from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import merged_recipes
from evojax_llm.genomes import space
from evojax_llm.genomes import weights as weight_genomes
from evojax_llm.models import expression
from evojax_llm.operators.operator import Merge
from evojax_llm.population import leaves
from evojax_llm.population import stack

# Of all experts that are on the device at a time where they are streamed.
PART_BYTES = 1 << 28
# Of a device's memory that experts and base may take.
_SHARE_OF_DEVICE = 0.4


class MergedWeightSpace(merged_recipes.RecipeSpace):
  """Recipes for all tensors of models, merged in f32 and kept in their type.

  With adapters among the experts their changes are merged, formed in f32 once
  and never taken from rounded sums; tensors that none of them changes are the
  base's. Models alone are merged as they are, all their tensors.

  Experts that are streamed stay in the host's memory: of each tensor a few
  layers of all of them are on the device at a time, in which every member of a
  group is merged, with the same bits.
  """

  exports, takes, shares_base = 'model', ('adapters', 'models'), False
  bare = False

  def __init__(self, plain: weight_genomes.WeightSpace, **given: Any):
    """Makes the space of the experts of another.

    Args:
      plain: of the experts, as whole models.
      **given: values of `MergedOptions`.
    """
    told = self.check(**given)
    self._plain, self._model = plain, plain.model()
    experts = plain.experts()
    if plain.num_adapters:
      experts = jax.tree.map_with_path(self._change, self._model.params)
    experts = merged_recipes.components(told.components, experts)
    base = merged_recipes.alike(self._model.params, experts)
    self.streams = _streams(told.stream, (experts, base))
    if self.streams:
      self._host = jax.tree.map(np.asarray, (experts, base))
    else:
      # A CPU takes the space's own arrays, where `asarray` would copy them.
      self.held = jax.device_put((experts, base))
    self._settle(plain.names, given, base, self._model.config)

  def _change(self, path, leaf):
    """The changes (N, ...) of a leaf, or None."""
    del leaf
    changes, _ = self._plain.changes(path)
    return changes if changes.any() else None

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | space.Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
    **given: Any,
  ) -> 'MergedWeightSpace':
    """Makes the space of files; what the options rule out shows first.

    Without a type they are loaded in f32, as an export has to merge.
    """
    config = space.load_base(base, None).config
    cls.check_for(config, len(adapters) + len(models), **given)
    dtype = jnp.float32 if dtype is None else dtype
    return cls(
      weight_genomes.WeightSpace.from_files(base, adapters, models, dtype),
      **given,
    )

  @property
  def plain(self) -> weight_genomes.WeightSpace:
    return self._plain

  def model(self) -> space.Model:
    """Returns the base, of which members share what is not merged."""
    return self._model

  def express(
    self, genome: stack.Genome, held: Any = None
  ) -> expression.Weights:
    """Returns the merged model; `held` is that of the space by default."""
    if self.streams and not isinstance(
      jax.tree.leaves(genome)[0], jax.core.Tracer
    ):
      streamed = self.stream([genome], lambda run, *args: run(*args))
      return jax.tree.map(lambda leaf: leaf[0], streamed)
    if held is None:
      held = self._host if self.streams else self.held
    merged = self._part(genome, *held)
    return expression.Weights(merged_recipes.filled(merged, self._model.params))

  def _part(self, genome, experts, base, *first):
    merged = self.carried_out(genome, experts, base, *first)
    return self._or_base(genome, merged, base)

  def stream(
    self, genomes: Sequence[stack.Genome], call: Callable[..., Any]
  ) -> expression.Weights:
    """Merges M members from experts in the host's memory.

    Args:
      genomes: M of them.
      call: call(run, *arguments) compiles a function and runs it.

    Returns:
      Models, leaves (M, ...).
    """
    experts, bases = map(_by_name, self._host)

    def merged(path, shared):
      name = leaves.name(path)
      if name not in experts:
        return jnp.broadcast_to(shared, (len(genomes), *shared.shape))
      whole, base, parts = experts[name], bases[name], []
      for part in _parts(path, whole):
        held = whole[:, part], base[part]
        held = [_nested(path, jnp.asarray(array)) for array in held]
        first = jnp.int32(part.start or 0)
        done = [call(self._part, genome, *held, first) for genome in genomes]
        parts.append(jnp.stack([jax.tree.leaves(tree)[0] for tree in done]))
      return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    return expression.Weights(
      jax.tree.map_with_path(merged, self._model.params)
    )

  def _merged(
    self, merge: Merge, decoded: Any, experts: Any, base: Any, *first: Any
  ) -> Any:
    if not self._plain.num_adapters:
      return super()._merged(merge, decoded, experts, base, *first)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    if merge.needs_base and merge.of_deltas:
      nothing = jax.tree.map(jnp.zeros_like, whole)
      merged = super()._merged(merge, decoded, experts, nothing, *first)
      merged = jax.tree.map(jnp.add, whole, merged)
    else:
      models = jax.tree.map(jnp.add, whole, experts)
      merged = super()._merged(merge, decoded, models, whole, *first)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), merged, base)

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a model folder, with the base's tokenizer and types.

    Raises:
      ModelError: the base has no folder.
    """
    space.check_genome(self, genome)
    return self._plain.export(self.express(genome).params, folder)


def _streams(asked: str, held: Any) -> bool:
  """Whether experts and base stay on the host."""
  if asked != 'auto':
    return asked == 'yes'
  device = jax.local_devices()[0]
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if not stats or 'bytes_limit' not in stats:
    return False
  # The base, a member and what scores it want room beside them.
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
  return size > _SHARE_OF_DEVICE * stats['bytes_limit']


def _parts(path: Any, experts: np.ndarray) -> list[slice]:
  """Cuts the layers of experts (N, L, ...) into equal parts."""
  if not leaves.is_layered(path, leaves.LAYERS):
    return [slice(None)]
  count = experts.shape[1]
  most = max(1, PART_BYTES * count // experts.nbytes)
  size = max(n for n in range(1, count + 1) if not count % n and n <= most)
  return [slice(i, i + size) for i in range(0, count, size)]


def _by_name(tree: Any) -> dict[str, np.ndarray]:
  return {leaves.name(p): leaf for p, leaf in jax.tree.leaves_with_path(tree)}


def _nested(path: Any, leaf: Any) -> Any:
  """A tree with one leaf."""
  for key in reversed(path):
    leaf = {key.key: leaf}
  return leaf
