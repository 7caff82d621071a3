"""Merges (crossover): one child from k parents.

Adapters are merged factor by factor, A with A and B with B, as in GENOME
(arXiv 2503.01155) and Model Swarms (arXiv 2410.11163). The child's change of
the model then holds cross terms B_i A_j of weight w_i w_j; a convex merge can
only dilute what the parents know, an extrapolating one need not.

Each function makes one child; vmap it for more.
"""

import jax
import jax.numpy as jnp

from evojax_llm.population import stack


def linear(parents: stack.Population, weights: jax.Array) -> stack.Genome:
  """Weighted sum of the parents, leaf by leaf.

  Args:
    parents: k genomes, leaves (k, ...).
    weights: (k,) f32, used as given.

  Returns:
    One genome; summed in f32, every leaf in the parents' type. Weights (1, 0)
    give parent one bit for bit as long as parent two is finite.
  """

  def merge_leaf(leaf):
    # Products and sums, not a matrix product: accelerators would round the
    # operands of that, and parent one would not come out unchanged.
    terms = leaf.astype(jnp.float32) * weights.reshape(
      weights.shape + (1,) * (leaf.ndim - 1)
    )
    return jnp.sum(terms, axis=0).astype(leaf.dtype)

  return jax.tree.map(merge_leaf, parents)


def fitness_weights(fitness: jax.Array) -> jax.Array:
  """Weights proportional to fitness: f_i / sum f (GENOME's crossover).

  A failed parent (not finite) gets no weight. Where the ratio means nothing,
  because a fitness is negative, all are zero or all failed, the parents that
  did not fail (or all of them) share equally.

  Args:
    fitness: (k,) f32.

  Returns:
    (k,) f32 that sum to one.
  """
  alive = jnp.isfinite(fitness)
  alive = jnp.where(jnp.any(alive), alive, True)
  shared = alive.astype(jnp.float32)
  known = jnp.where(jnp.isfinite(fitness), fitness, 0.0)
  total = jnp.sum(known)
  proportional = (jnp.min(known) >= 0.0) & (total > 0.0)
  weights = jnp.where(proportional, known, shared)
  return weights / jnp.sum(weights)


def line_weights(t: jax.Array) -> jax.Array:
  """Weights (t, 1 - t), (2,) f32: a point on the line through two parents."""
  return jnp.stack([t, 1.0 - t])


def extrapolation_weights(
  key: jax.Array, low: jax.Array | float, high: jax.Array | float
) -> jax.Array:
  """Weights (t, 1 - t) with t ~ U(low, high).

  U(0, 1) interpolates; U(0, 2), as Model Swarms' released code has it, leaves
  the segment between the parents half of the time.

  Returns:
    (2,) f32.
  """
  low, high = jnp.float32(low), jnp.float32(high)
  draw = jax.random.uniform(key, (), jnp.float32)
  return line_weights(low + (high - low) * draw)
