"""Recipes for whole weights, of adapters or of models tuned from the base."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.genomes import merged_recipes
from evojax_llm.genomes import space
from evojax_llm.genomes import weights as weight_genomes
from evojax_llm.models import expression
from evojax_llm.operators.operator import Merge
from evojax_llm.population import stack


class MergedWeightSpace(merged_recipes.RecipeSpace):
  """Recipes for all tensors of models, merged in f32 and kept in their type.

  With adapters among the experts their changes are merged, formed in f32 once
  and never taken from rounded sums; tensors that none of them changes are the
  base's. Models alone are merged as they are, all their tensors.
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
    self.held = jax.tree.map(jnp.asarray, (experts, base))
    self._settle(plain.names, given, base)

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
    experts, base = self.held if held is None else held
    merged = self.carried_out(genome, experts, base)
    merged = self._or_base(genome, merged, base)
    return expression.Weights(merged_recipes.filled(merged, self._model.params))

  def _merged(self, merge: Merge, decoded: Any, experts: Any, base: Any) -> Any:
    if not self._plain.num_adapters:
      return super()._merged(merge, decoded, experts, base)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    if merge.needs_base:
      nothing = jax.tree.map(jnp.zeros_like, whole)
      merged = super()._merged(merge, decoded, experts, nothing)
      merged = jax.tree.map(jnp.add, whole, merged)
    else:
      models = jax.tree.map(jnp.add, whole, experts)
      merged = super()._merged(merge, decoded, models, None)
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
