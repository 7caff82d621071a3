"""What the merges of one tensor share: parents in f32, deltas, safe division.

A merge is written as plain arithmetic on a list of k arrays, not as reductions
over the parents' axis, so that a compiler makes one loop of it and stores
nothing in between.
"""

import jax
from jax import lax
import jax.numpy as jnp

_CHUNK = 32


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


def sums(terms: list[jax.Array]) -> list[jax.Array]:
  """The sum of each of m arrays of one shape, in one pass."""
  return _sums([_chunked(term) for term in terms])


def counts(masks: list[jax.Array]) -> jax.Array:
  """How many are true in each of m masks, (m,) i32, in one pass."""
  return jnp.stack(_sums([mask.astype(jnp.int32) for mask in masks]))


def _chunked(x):
  """(..., n) as (..., n / _CHUNK, _CHUNK), where n can be divided so.

  Floats are added one after the other: short rows keep more digits, and many
  of them wait less for each other.
  """
  if not x.ndim or x.shape[-1] % _CHUNK:
    return x
  return x.reshape(*x.shape[:-1], -1, _CHUNK)


def _sums(terms):
  """The sum of each, by one reduction of two operands or more.

  A reduction of one operand is rewritten for a CPU into windows, and its
  operand stored for them; so a single one has noughts at its side.
  """
  several = list(terms)
  if len(several) == 1:
    several.append(jnp.zeros_like(several[0]))
  zeros = tuple(jnp.zeros((), term.dtype) for term in several)
  last = (several[0].ndim - 1,) if several[0].ndim else ()

  def add(left, right):
    return tuple(x + y for x, y in zip(left, right, strict=True))

  # Held back, or the sum of noughts is dropped, and one operand is left.
  rows = lax.optimization_barrier(lax.reduce(tuple(several), zeros, add, last))
  return [jnp.sum(row) for row in rows[: len(terms)]]


def inner_products(vectors: list[jax.Array]) -> list[list[jax.Array]]:
  """Of each of k arrays with each, over all elements, in one pass."""
  k = len(vectors)
  pairs = [(i, j) for i in range(k) for j in range(i, k)]
  found = sums([vectors[i] * vectors[j] for i, j in pairs])
  products = dict(zip(pairs, found, strict=True))
  return [[products[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]
