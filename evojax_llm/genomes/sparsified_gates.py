"""Gates over N LoRA experts and a sparsified copy of each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import gates
from evojax_llm.genomes import space
from evojax_llm.models import peft
from evojax_llm.population import leaves

# What PSO-Merging keeps of an expert.
DENSITY = 0.2
SUFFIX = '_sparsified'


class SparsifiedGateSpace(gates.GateSpace):
  """The anchors of PSO-Merging (arXiv 2508.19839): a genome is 2 N gates.

  The last N are those of the experts sparsified by DARE (arXiv 2311.03099), so
  that the rank of a member is 2 N R. `plain` has the N experts alone.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
  ):
    """Makes the space; see `gates.GateSpace`."""
    super().__init__(with_sparsified(adapters), model, dtype)
    self._plain = adapter_genomes.AdapterSpace(adapters, model, dtype)


def with_sparsified(
  adapters: peft.AdapterSet, density: float = DENSITY
) -> peft.AdapterSet:
  """Returns 2 N adapters: N, and N of whose B a share of the numbers is kept.

  A number of B is kept with the chance `density` and divided by it, so that
  the mean of A B over masks is that of the expert. Masks depend on the places
  of expert and matrix alone: they are the same in every run and in its export.
  """
  paths, structure = jax.tree.flatten_with_path(adapters.factors)
  found = []
  for number, (path, leaf) in enumerate(paths):
    sparse = leaf
    if leaves.is_second_factor(path):
      masks = [
        np.random.default_rng((n, number)).random(one.shape) < density
        for n, one in enumerate(leaf)
      ]
      sparse = np.where(masks, leaf / np.float32(density), np.float32(0))
    found.append(np.concatenate([leaf, sparse]))
  return dataclasses.replace(
    adapters,
    names=(*adapters.names, *(name + SUFFIX for name in adapters.names)),
    factors=jax.tree.unflatten(structure, found),
  )
