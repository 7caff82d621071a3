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
    key: () typed key; leaf i draws from it folded with i.
    genome: any tree.
    sigma: () standard deviation; a fraction of each matrix's root mean square
      when `relative`. A matrix of zeros then stays zero.
    gene_rate: () probability that a gene changes.
    relative: whether sigma is relative.
    mask: what a gene is: an 'element' (as published), a 'matrix', or a 'layer'
      (all matrices of that layer together; leaves without a layer axis form
      one more layer).

  Returns:
    A genome; noise drawn and added in f32, every leaf in its own type.

  Raises:
    ValueError: if `mask` is none of these.
  """
  if mask not in MASKS:
    raise ValueError(f'Got mask {mask!r}; expected one of {MASKS}.')
  sigma, gene_rate = jnp.float32(sigma), jnp.float32(gene_rate)
  noise_key, mask_key = jax.random.split(key)

  def mutate_leaf(index, path, leaf):
    noise = sigma * leaves.gaussian(noise_key, index, leaf)
    if relative:
      noise = noise * leaves.root_mean_square(path, leaf)
    layered = leaves.is_layered(path)
    if mask == 'element':
      shape = leaf.shape
    else:
      layers = leaf.shape[0] if layered else 1
      shape = (layers,) + (1,) * (leaf.ndim - 1) if leaf.ndim else ()
    # All leaves of a layer draw from one address, so they change together.
    address = index if mask != 'layer' else int(layered)
    draw = jax.random.uniform(
      jax.random.fold_in(mask_key, address), shape, jnp.float32
    )
    changed = leaf.astype(jnp.float32) + noise
    return jnp.where(draw < gene_rate, changed.astype(leaf.dtype), leaf)

  return leaves.map_indexed(mutate_leaf, genome)


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
