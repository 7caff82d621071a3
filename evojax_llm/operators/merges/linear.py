"""Weighted sums of the parents themselves.

Of adapters the child's change of the model holds cross terms B_i A_j of weight
w_i w_j; a convex merge can only dilute what the parents know, an extrapolating
one need not.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter
from evojax_llm.population import stack


def linear(
  parents: jax.Array, *, weights: jax.Array, normalize: str
) -> jax.Array:
  """Weighted sum (model soups, arXiv 2203.05482).

  `normalize` 'weights' divides by their sum, or by one where that is zero
  (within 1e-8); 'none' takes them as given. Weights (1, 0) give parent one bit
  for bit as long as parent two is finite.
  """
  w = tensors.shares(weights, len(parents), normalize)
  merged = tensors.weighted(tensors.unstacked(parents), w)
  return merged.astype(parents.dtype)


def extrapolate(
  parents: jax.Array, *, key: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
  """A point t x1 + (1 - t) x2 of the line, t ~ U(low, high) for the genome.

  U(0, 1) interpolates; U(0, 2), as in Model Swarms' released code, leaves the
  segment half of the time. The key is the same for all tensors of a genome.
  """
  low, high = jnp.float32(low), jnp.float32(high)
  t = low + (high - low) * jax.random.uniform(key, (), jnp.float32)
  weights = jnp.stack([t, 1.0 - t])
  return linear(parents, weights=weights, normalize='none')


def passthrough(parents: jax.Array, *, scale: jax.Array) -> jax.Array:
  """The only parent times a number."""
  (parent,) = tensors.unstacked(parents)
  scale = jnp.asarray(scale, jnp.float32)
  return (scale * parent).astype(parents.dtype)


def combine(parents: stack.Population, weights: jax.Array) -> stack.Genome:
  """Weighted sum of k whole genomes, weights (k,) as given, summed in f32."""
  return jax.tree.map(
    lambda leaf: linear(leaf, weights=weights, normalize='none'), parents
  )


def fitness_weights(fitness: jax.Array) -> jax.Array:
  """Weights (k,) f32 proportional to fitness (k,): GENOME's crossover.

  A failed parent (not finite) gets no weight. Where a fitness is negative, all
  are zero or all failed, the parents that did not fail (or all) share equally.
  """
  alive = jnp.isfinite(fitness)
  alive = jnp.where(jnp.any(alive), alive, True)
  shared = alive.astype(jnp.float32)
  known = jnp.where(jnp.isfinite(fitness), fitness, 0.0)
  total = jnp.sum(known)
  proportional = (jnp.min(known) >= 0.0) & (total > 0.0)
  weights = jnp.where(proportional, known, shared)
  return weights / jnp.sum(weights)


LINEAR = Merge(
  'linear',
  linear,
  'model soups, arXiv 2203.05482',
  (takes.WEIGHTS, takes.NORMALIZE),
)
PASSTHROUGH = Merge(
  'passthrough',
  passthrough,
  'mergekit',
  (Parameter('scale', 1.0, 'factor on the parent', span=(0.0, 2.0)),),
  parents=(1, 1),
)
EXTRAPOLATE = Merge(
  'extrapolate',
  extrapolate,
  'Model Swarms, arXiv 2410.11163',
  (
    Parameter('low', 0.0, 'least weight of parent one', span=(-1.0, 1.0)),
    Parameter('high', 2.0, 'largest weight of parent one', span=(0.0, 3.0)),
  ),
  parents=(2, 2),
  scope='genome',
)
