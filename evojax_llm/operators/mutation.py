"""Mutations: a changed copy of one genome; vmap for more.

GENOME (arXiv 2503.01155) adds masked Gaussian noise, x' = x + m e with
e ~ N(0, sigma^2) and m ~ Bernoulli(gene rate). Its sigma is absolute; as the
factors A and B of an adapter differ in scale, sigma here is by default a
fraction of each matrix's root mean square.
"""

import jax
import jax.numpy as jnp

from evojax_llm.population import leaves
from evojax_llm.population import stack

MASKS = ('element', 'matrix', 'layer')


def gaussian(
  key: jax.Array,
  genome: stack.Genome,
  sigma: jax.Array | float,
  gene_rate: jax.Array | float,
  *,
  relative: bool = True,
  mask: str = 'element',
) -> stack.Genome:
  """Adds masked Gaussian noise.

  Args:
    key: () typed key.
    genome: any tree.
    sigma: () standard deviation; a fraction of each matrix's root mean square
      when `relative`. A matrix of zeros then stays zero.
    gene_rate: () probability that a gene changes.
    relative: whether sigma is relative.
    mask: what a gene is: an 'element' (as published), a 'matrix', or a 'layer'
      (all matrices of that layer together; leaves without a layer axis form
      one more layer).

  Returns:
    A genome; noise drawn and added in f32, every leaf in its own type. The
    noise of all leaves is drawn at once, so that it takes as much memory as
    the genome in f32 (twice with mask 'element').

  Raises:
    ValueError: if `mask` is none of these.
  """
  if mask not in MASKS:
    raise ValueError(f'Got mask {mask!r}; expected one of {MASKS}.')
  sigma, gene_rate = jnp.float32(sigma), jnp.float32(gene_rate)
  # One draw for all leaves: a generator for each would be compiled for each,
  # which takes longer than anything else in a strategy.
  elementwise = mask == 'element'
  shape = (1 + elementwise, leaves.num_elements(genome))
  noise, *deciders = jax.random.normal(key, shape, jnp.float32)
  noises = leaves.split_like(genome, noise)
  # A normal number falls below this with the probability of the gene rate.
  threshold = jnp.sqrt(2.0) * jax.lax.erf_inv(2.0 * gene_rate - 1.0)
  if elementwise:
    chosen = leaves.split_like(genome, deciders[0] < threshold)
  else:
    chosen = _chosen_matrices(jax.random.fold_in(key, 1), genome, gene_rate)
    if mask == 'layer':
      chosen = _same_by_layer(genome, chosen)

  def mutate_leaf(index, path, leaf):
    change = sigma * noises[index]
    if relative:
      change = change * leaves.root_mean_square(path, leaf)
    changed = (leaf.astype(jnp.float32) + change).astype(leaf.dtype)
    return jnp.where(chosen[index], changed, leaf)

  return leaves.map_indexed(mutate_leaf, genome)


def _chosen_matrices(key, genome, gene_rate):
  """For each leaf, bool that broadcasts: (L, 1, ...) or (1, ...)."""
  counts = leaves.num_matrices(genome)
  draws = jax.random.uniform(key, (sum(counts),), jnp.float32)
  chosen, start = [], 0
  for count, leaf in zip(counts, jax.tree.leaves(genome), strict=True):
    one = draws[start : start + count] < gene_rate
    chosen.append(one.reshape((count,) + (1,) * (leaf.ndim - 1)))
    start += count
  return chosen


def _same_by_layer(genome, chosen):
  """Every leaf of a layer follows the first one that has layers (or none)."""
  flat = jax.tree.leaves(genome)
  first = {}
  same = []
  for index, (path, _) in enumerate(
    jax.tree_util.tree_flatten_with_path(genome)[0]
  ):
    leader = chosen[first.setdefault(leaves.is_layered(path), index)]
    rank = flat[index].ndim
    same.append(leader.reshape((leader.shape[0],) + (1,) * (rank - 1)))
  return same


def scale(
  key: jax.Array,
  genome: stack.Genome,
  low: jax.Array | float,
  high: jax.Array | float,
) -> stack.Genome:
  """Multiplies a member's mass by u ~ U(low, high).

  The mass of an adapter is its B: the change of the model is a b, and scaling
  one factor scales it by u, scaling both by u squared. A genome without such
  leaves (coefficients, plain vectors) is scaled whole.

  Returns:
    A genome; multiplied in f32, every leaf in its own type.
  """
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
