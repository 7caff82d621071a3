"""Weights of a merge, from fitness or from a draw."""

import jax
import jax.numpy as jnp


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
