"""What the merges of one tensor share: parents in f32, deltas, safe division.

A merge is written as plain arithmetic on a list of k arrays, not as reductions
over the parents' axis, so that a compiler makes one loop of it and stores
nothing in between.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

# Numbers that one reduction adds one after the other. Floats keep more digits
# in short rows; rows that are longer store less.
_FLOATS = 16
_INTEGERS = 512


def unstacked(parents: jax.Array) -> list[jax.Array]:
  """The k parents of (k, ...) in f32."""
  return [parent.astype(jnp.float32) for parent in parents]


def deltas(parents: jax.Array, base: jax.Array) -> list[jax.Array]:
  """What each of k parents (k, ...) changes of the base (...), f32."""
  start = base.astype(jnp.float32)
  return [parent - start for parent in unstacked(parents)]


def vectors(parents: jax.Array, base: jax.Array | None) -> list[jax.Array]:
  """The deltas, or the parents themselves where there is no base."""
  return unstacked(parents) if base is None else deltas(parents, base)


def child(
  parents: jax.Array, base: jax.Array | None, change: jax.Array
) -> jax.Array:
  """The base moved by an f32 change, or the change, in the parents' type."""
  if base is not None:
    change = base.astype(jnp.float32) + change
  return change.astype(parents.dtype)


def shares(
  weights: jax.Array | float, models: int, normalize: str = 'weights'
) -> list[jax.Array]:
  """The weights of k models, over their sum (one if zero) for 'weights'."""
  w = each(weights, models)
  if normalize == 'weights':
    whole = divisor(total(w), 1e-8)
    w = [weight / whole for weight in w]
  return w


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


def agrees(vote: jax.Array, positive: jax.Array) -> jax.Array:
  """Whether a vote has the elected sign; zero never has it, NaN always."""
  return jnp.where(positive, ~(vote <= 0.0), ~(vote >= 0.0))


def divisor(value: jax.Array, least: float = 0.0) -> jax.Array:
  """The value, or one where its size is not above `least`."""
  return jnp.where(jnp.abs(value) > least, value, jnp.float32(1.0))


def sums(terms: list[jax.Array]) -> list[jax.Array]:
  """The sum of each of m arrays of one shape, in one pass."""
  return _sums(terms, _FLOATS)


def counts(masks: list[jax.Array]) -> jax.Array:
  """How many are true in each of m masks, (m,) i32, in one pass."""
  return jnp.stack(_sums([mask.astype(jnp.int32) for mask in masks], _INTEGERS))


def row_counts(masks: list[jax.Array], row: int) -> tuple[jax.Array, jax.Array]:
  """As `counts`, and by rows of the flattened masks: (m, size / row) i32."""
  rows = row_sums([mask.reshape(-1, row) for mask in masks])
  return jnp.stack(_sums(rows, _INTEGERS)), jnp.stack(rows)


def row_sums(masks: list[jax.Array]) -> list[jax.Array]:
  """How many are true in each row of each of m masks (n, row); (n,) i32."""
  return _added([mask.astype(jnp.int32) for mask in masks])


def _sums(terms, row):
  """Sums of rows, of rows of these sums, and so on."""
  terms = [term.reshape(-1) for term in terms]
  if not terms[0].size:  # Halving nothing never ends.
    return [jnp.zeros((), term.dtype) for term in terms]
  while (length := math.gcd(terms[0].size, row)) > 1:
    terms = _added([term.reshape(-1, length) for term in terms])
    row = _INTEGERS
  return [term[0] for term in _added([term.reshape(1, -1) for term in terms])]


def _added(terms):
  """The sums of the rows of each, by one reduction of two operands or more.

  A reduction of one operand is rewritten for a CPU into windows, and its
  operand stored for them; so a single one gets zeros beside it.
  """
  several = list(terms)
  if len(several) == 1:
    several.append(jnp.zeros_like(several[0]))
  zeros = tuple(jnp.zeros((), term.dtype) for term in several)

  def add(left, right):
    return tuple(x + y for x, y in zip(left, right, strict=True))

  # Held back, or the sum of zeros is dropped, and one operand is left.
  rows = lax.optimization_barrier(lax.reduce(tuple(several), zeros, add, (1,)))
  return list(rows[: len(terms)])


def inner_products(
  vectors: list[jax.Array], axis: int | None = None
) -> list[list[jax.Array]]:
  """Of each of k arrays with each, in one pass.

  Over all elements, or along an axis, which is kept.
  """
  k = len(vectors)
  pairs = [(i, j) for i in range(k) for j in range(i, k)]
  terms = [vectors[i] * vectors[j] for i, j in pairs]
  if axis is None:
    found = sums(terms)
  else:
    found = [jnp.sum(term, axis=axis, keepdims=True) for term in terms]
  products = dict(zip(pairs, found, strict=True))
  return [[products[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]
