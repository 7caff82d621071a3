"""Mutations: a changed copy of one genome; vmap for more.

GENOME (arXiv 2503.01155) adds masked Gaussian noise, x' = x + m e with
e ~ N(0, sigma^2) and m ~ Bernoulli(gene rate). Its sigma is absolute; as the
factors A and B of an adapter differ in scale, sigma here is by default a
fraction of each matrix's root mean square.
"""

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators import noise
from evojax_llm.operators.operator import Parameter
from evojax_llm.population import leaves
from evojax_llm.population import stack

MASKS = ('element', 'matrix', 'layer')
GENE_RATE = Parameter(
  'gene_rate', 1.0, 'probability that a gene changes', 0.0, 1.0
)
LOW = Parameter('low', 0.8, 'least factor')
HIGH = Parameter('high', 1.8, 'largest factor', span=(1.0, 4.0))


def gaussian(
  key: jax.Array,
  genome: stack.Genome,
  sigma: jax.Array | float = 0.1,
  gene_rate: jax.Array | float = 1.0,
  *,
  relative: bool = True,
  mask: str = 'element',
  rounding: str = 'stochastic',
  layers: str | None = None,
) -> stack.Genome:
  """Adds masked Gaussian noise.

  One random word an element says both whether it changes and by how much.

  Args:
    key: () typed key.
    genome: any tree.
    sigma: () standard deviation; a fraction of each matrix's root mean square
      when `relative`. A matrix of zeros then stays zero.
    gene_rate: () probability that a gene changes.
    relative: whether sigma is relative.
    mask: what a gene is: an 'element' (as published), a 'matrix', or a 'layer'
      (all its matrices; leaves without a layer axis form one more layer).
    rounding: of bf16 leaves, 'nearest' or 'stochastic'; see `noise.cast`.
    layers: key below which leaves have the axis L; None where none has it.

  Raises:
    ValueError: if `mask`, `rounding` or `layers` is unknown, or a number is out
      of its range where it is known.
  """
  if mask not in MASKS:
    raise ValueError(f'Got mask {mask!r}; expected one of {MASKS}.')
  noise.SIGMA.check_known(sigma, 'gaussian')
  GENE_RATE.check_known(gene_rate, 'gaussian')
  leaves.check_layers(genome, layers)
  sigma, gene_rate = jnp.float32(sigma), jnp.float32(gene_rate)
  num_leaves = len(jax.tree.leaves(genome))
  leaders = {}

  def mutate_leaf(index, path, leaf):
    word, spare = noise.words(key, index, leaf.shape)
    if mask == 'element':
      change, chosen = noise.masked_normal(word, gene_rate)
    else:
      # Matrices draw on their own; those of a layer as its first one does.
      layered = leaves.is_layered(path, layers)
      leader = index if mask == 'matrix' else leaders.setdefault(layered, index)
      change = noise.normal(word)
      chosen = _chosen_matrices(
        key, num_leaves + leader, leaf, layered, gene_rate
      )
    change = sigma * change
    if relative:
      change = change * noise.root_mean_square(path, leaf, layers)
    old = leaf.astype(jnp.float32)
    new = jnp.where(chosen, old + change, old)
    return noise.cast(new, leaf.dtype, spare, rounding)

  return leaves.map_indexed(mutate_leaf, genome)


def _chosen_matrices(key, stream, leaf, layered, gene_rate):
  """Bool that broadcasts against the leaf: (L, 1, ...) or ()."""
  count = (leaf.shape[0],) if layered else ()
  word, _ = noise.words(key, stream, count)
  chosen = noise.bernoulli(word, gene_rate)
  return chosen.reshape(count + (1,) * (leaf.ndim - 1) if layered else ())


def scale(
  key: jax.Array,
  genome: stack.Genome,
  low: jax.Array | float = 0.8,
  high: jax.Array | float = 1.8,
) -> stack.Genome:
  """Multiplies a member's mass by u ~ U(low, high).

  The mass of an adapter is its B: the change of the model is a b, and scaling
  one factor scales it by u. A genome without such leaves is scaled whole.

  Raises:
    ValueError: if low is above high or one is not finite, where it is known.
  """
  LOW.check_known(low, 'scale')
  HIGH.check_known(high, 'scale')
  known = not any(isinstance(x, jax.core.Tracer) for x in (low, high))
  if known and np.asarray(low) > np.asarray(high):
    raise ValueError(
      f'Got low {low} above high {high} for scale; expected low at most high.'
    )
  low, high = jnp.float32(low), jnp.float32(high)
  factor = low + (high - low) * jax.random.uniform(key, (), jnp.float32)
  return scale_by(genome, factor)


def scale_by(genome: stack.Genome, factor: jax.Array | float) -> stack.Genome:
  """Multiplies a member's mass by a given factor; see `scale`."""
  whole = not leaves.has_factors(genome)
  factor = jnp.float32(factor)

  def scale_leaf(index, path, leaf):
    del index
    if whole or leaves.is_second_factor(path):
      return (leaf.astype(jnp.float32) * factor).astype(leaf.dtype)
    return leaf

  return leaves.map_indexed(scale_leaf, genome)
