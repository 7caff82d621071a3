"""Merged: a genome is a recipe, merged on the device as it is scored."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import lookup
from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import merged_recipes
from evojax_llm.genomes import space
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.operators.operator import Merge
from evojax_llm.population import stack

# What else may be merged than factors.
_ON = {
  'exact': 'evojax_llm.genomes.merged_exact:ExactSpace',
  'weights': 'evojax_llm.genomes.merged_weights:MergedWeightSpace',
}


class MergedSpace(merged_recipes.RecipeSpace):
  """Recipes for LoRA factors: A is merged of the A, and B of the B.

  The base of a merge of changes is zero. Genomes are those of `merged_genes`;
  see `merged_options` for what they can be.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
    **given: Any,
  ):
    """Makes the space of adapters; `given` are values of `MergedOptions`."""
    told = self.check(**given)
    self.rank, self._model = adapters.rank, model
    self._plain = adapter_genomes.AdapterSpace(adapters, model, dtype)
    self._scale = adapters.scale
    self.held = merged_recipes.components(
      told.components, self._plain.experts()
    )
    tensors = stack.take(self.held, 0)
    self._settle(adapters.names, given, tensors, model.config)

  @classmethod
  def configured(cls, **given: Any) -> type[merged_recipes.RecipeSpace]:
    """Returns the class of these options, which it checks."""
    told = cls.check(**given)
    if cls is MergedSpace and told.on != 'factors':
      return lookup.load(_ON[told.on], 'space')
    return cls

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | space.Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
    **given: Any,
  ) -> 'MergedSpace':
    """Makes the space of files; what the options rule out shows first."""
    del models
    config = space.load_base(base, None).config
    cls.check_for(config, len(adapters), **given)
    loaded = peft.load_adapters(adapters, config)
    return cls(loaded, space.load_base(base, dtype), **given)

  @property
  def plain(self) -> adapter_genomes.AdapterSpace:
    return self._plain

  def model(self) -> space.Model:
    return self._model

  def _of_changes(self, merge: Merge) -> bool:
    return True  # The base is zero, and no weights add up to nothing.

  def express(
    self, genome: stack.Genome, held: Any = None
  ) -> expression.LowRank:
    """Returns merged factors, b scaled; zero where nothing is merged.

    `held` is that of the space by default.
    """
    factors = self._factors(genome, self.held if held is None else held)
    return expression.LowRank(adapter_genomes.scaled(factors, self._scale))

  def _factors(self, genome, held):
    base = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), held)
    merged = self.carried_out(genome, held, base)
    merged = self._or_base(genome, merged, base)
    return merged_recipes.filled(merged, self._plain.base())

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter of rank R."""
    space.check_genome(self, genome)
    factors = self._factors(genome, self.held)
    return adapter_genomes.save(folder, factors, self._scale, self._model)
