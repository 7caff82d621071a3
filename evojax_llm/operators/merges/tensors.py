"""What the merges of one tensor share: parents in f32, deltas, safe division.

A merge is written as plain arithmetic on a list of k arrays, not as reductions
over the parents' axis, so that a compiler makes one loop of it and stores
nothing in between.
"""

import jax
from jax import lax
import jax.numpy as jnp


def unstacked(parents: jax.Array) -> list[jax.Array]:
  """The k parents of (k, ...) in f32."""
  return [parent.astype(jnp.float32) for parent in parents]


def deltas(parents: jax.Array, base: jax.Array) -> list[jax.Array]:
  """What each of k parents (k, ...) changes of the base (...), f32."""
  start = base.astype(jnp.float32)
  return [parent - start for parent in unstacked(parents)]


def each(value: jax.Array | float, models: int) -> list[jax.Array]:
  """A parameter (k,), or () for all models alike, as k numbers () f32."""
  value = jnp.asarray(value, jnp.float32)
  return list(jnp.broadcast_to(value, (models,)))


def total(terms: list[jax.Array]) -> jax.Array:
  """Sum of the terms, in their order."""
  result = terms[0]
  for term in terms[1:]:
    result = result + term
  return result


def weighted(terms: list[jax.Array], weights: list[jax.Array]) -> jax.Array:
  """Sum of weight times term.

  Products and sums, not a matrix product: accelerators would round the
  operands of that, and weights (1, 0) would not give parent one unchanged.
  """
  return total([w * x for w, x in zip(weights, terms, strict=True)])


def divisor(value: jax.Array, least: float = 0.0) -> jax.Array:
  """The value, or one where its size is not above `least`."""
  return jnp.where(jnp.abs(value) > least, value, jnp.float32(1.0))


def counts(masks: list[jax.Array]) -> jax.Array:
  """How many are true in each of m masks, (m,) i32, in one pass.

  One reduction of m operands: m reductions would be m passes, each over an
  array written for it.
  """
  ones = tuple(mask.astype(jnp.int32) for mask in masks)
  zeros = (jnp.int32(0),) * len(ones)
  last = (masks[0].ndim - 1,) if masks[0].ndim else ()

  def add(left, right):
    return tuple(x + y for x, y in zip(left, right, strict=True))

  return jnp.stack([jnp.sum(c) for c in lax.reduce(ones, zeros, add, last)])
