"""CMA-ES with margin: some genes count by their sign alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.strategies import evosax


class MixedCMAES(evosax.EvosaxStrategy):
  """CMA-ES over genes of which some are binary, on above 0 and off otherwise.

  The variance of a binary gene shrinks once all members agree on it, and never
  turns it again. So after every update the mean of each is brought so near to 0
  that a member turns it with a probability of the margin at least (CMA-ES with
  margin, Hamano et al., GECCO 2022, arXiv 2205.13482, section 4.2, where a
  margin of 1 / (n population) for n genes is proposed).
  """

  def __init__(
    self,
    population_size: int,
    genome: Any,
    *,
    binary: Any,
    margin: float | None = None,
    **options: Any,
  ):
    """Makes the strategy.

    Args:
      population_size: P.
      genome: one, or its shapes and types.
      binary: a tree like a genome with a bool a leaf, which are binary.
      margin: least probability; 1 / (n P) by default.
      **options: of CMA-ES; see `EvosaxStrategy`.
    """
    flat = [
      np.full(leaf.size, bool(of_leaf))
      for leaf, of_leaf in zip(
        jax.tree.leaves(genome), jax.tree.leaves(binary), strict=True
      )
    ]
    self._binary = np.concatenate(flat)
    count = self._binary.size * population_size
    margin = 1 / count if margin is None else margin
    # Standard deviations from 0 at which the other sign is so rare.
    self._reach = float(-jax.scipy.stats.norm.ppf(jnp.float32(margin)))
    super().__init__('CMA_ES', population_size, genome, **options)
    self.static = (MixedCMAES, *self.static[1:], margin, self._binary.tobytes())

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; the space says which genes are binary."""
    binary = None if space is None else space.binary()
    if binary is None:
      raise ValueError(
        "Got 'mixed_cma_es' for a space that has no binary genes; expected one "
        "with some, such as layer_path. Take 'cma_es'."
      )
    evosax.check_size(population_size, genome, algorithm='CMA_ES')
    return cls(population_size, genome, binary=binary, **options)

  def _told(self, key, population, scores, cost, state, params):
    state = super()._told(key, population, scores, cost, state, params)
    inner = state.inner
    deviation = inner.std * jnp.sqrt(jnp.maximum(jnp.diag(inner.C), 0.0))
    most = jnp.where(self._binary, self._reach * deviation, jnp.inf)
    mean = jnp.clip(inner.mean, -most, most)
    return state.replace(inner=inner.replace(mean=mean))
