"""Recipes of linear merges, exact: weights of the experts' own changes."""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import gates
from evojax_llm.genomes import merged
from evojax_llm.genomes import merged_recipes
from evojax_llm.genomes import space
from evojax_llm.genomes.merged_genes import METHOD
from evojax_llm.genomes.merged_options import MergedOptions
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.operators import lora_algebra
from evojax_llm.population import leaves
from evojax_llm.population import stack

LINEAR = ('linear', 'task_arithmetic')


class ExactSpace(merged.MergedSpace):
  """Recipes whose change is sum_n g_n A_n B_n, with g by group of tensors.

  Nothing is formed, as in the space `gates`, unless there is a rank to which
  the changes are brought as they are scored: the error of that is in `recipe`.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
    **given: Any,
  ):
    """Makes the space; see `merged.MergedSpace`.

    Raises:
      ValueError: the rank is more than that of all changes together.
    """
    super().__init__(adapters, model, dtype, **given)
    self._gates, self._narrow = (
      gates.GateSpace(adapters, model),
      self._told.rank,
    )
    self.rank, self.held = self._narrow or self._gates.rank, None
    if self._narrow:
      self.held = adapter_genomes.scaled(self._gates.factors, adapters.scale)
    if self.rank > self._gates.rank:
      raise ValueError(
        f'Got rank {self.rank} for experts whose changes together have rank '
        f'{self._gates.rank}; expected no more, or none.'
      )

  @classmethod
  def check(cls, **given: Any) -> MergedOptions:
    """Returns the options, if they can be of any model."""
    told = super().check(**given)
    for name in told.methods:
      if name not in LINEAR:
        raise ValueError(
          f"Got method {name!r} with on='exact'; expected one that is linear "
          f"in the changes, {' or '.join(LINEAR)}. With on='weights' any other "
          'is exact as well.'
        )
    return told

  def model(self) -> space.Model:
    return self._model if self._narrow else self._gates.model()

  def express(
    self, genome: stack.Genome, held: Any = None
  ) -> expression.Gates | expression.LowRank:
    """Returns gates (L, N R), or factors of the rank that is asked for."""
    member = self._weighed(genome)
    if not self._narrow:
      return member
    held = self.held if held is None else held
    return expression.LowRank(self._compressed(member, held)[0])

  def _weighed(self, genome):
    """The exact change, as gates."""
    decoded = self.genes.decode(genome)
    branches = [
      functools.partial(self._by_module, merge) for merge in self.genes.merges
    ]
    weights = jax.lax.switch(decoded[METHOD], branches, decoded['values'])
    none = jax.tree.map(jnp.zeros_like, weights)
    return self._gates.weighed(self._or_base(genome, weights, none))

  def _by_module(self, merge, values):
    """(L, N) weights of every linear map."""
    spread = {
      name: self.genes.groups.spread(value) if jnp.ndim(value) else value
      for name, value in self.genes.given(merge, values).items()
    }
    # What a linear merge makes of unit vectors are its weights.
    units = jnp.eye(len(self.names))
    bases = (units[0] * 0.0,) if merge.needs_base else ()
    choices = self.genes.choices(merge)

    def weigh(path, scale):
      name = f'{leaves.name(path)}/a'
      if name not in self.genes.groups.low:  # no component
        return jnp.zeros((len(scale), len(units)))
      own = {n: v[name] for n, v in spread.items() if isinstance(v, dict)}
      fixed = {n: v for n, v in spread.items() if n not in own}
      return jax.vmap(
        lambda own: merge(units, *bases, **own, **fixed, **choices),
        axis_size=len(scale),
      )(own)

    return jax.tree.map_with_path(weigh, self._scale)

  @functools.cached_property
  def _compressed(self):
    """Brings gates to the rank, one member after another; with the errors."""

    @jax.jit
    @jax.custom_batching.sequential_vmap
    def run(member, held):
      whole = expression.as_low_rank(member, held)
      return lora_algebra.compress(whole.factors, self._narrow)

    return run

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the merge; with a rank, `lost` is the largest error of a matrix.

    It is that of the change, as a share of its Frobenius norm.
    """
    found = super().recipe(genome)
    if self._narrow:
      errors = self._compressed(self._weighed(genome), self.held)[1]
      errors = np.concatenate([np.ravel(x) for x in jax.tree.leaves(errors)])
      found |= {'rank': self._narrow}
      found['lost'] = merged_recipes.number(errors.max())
    return found

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter."""
    space.check_genome(self, genome)
    member = self.express(genome)
    if isinstance(member, expression.Gates):
      return self._gates.write(member, folder)
    scale = jax.tree.map(np.ones_like, self._scale)
    return adapter_genomes.save(folder, member.factors, scale, self._model)
