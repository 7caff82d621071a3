"""Rows of coefficients and the members that they stand for."""

import jax
import jax.numpy as jnp

# Coefficients that differ by no more are the same.
SAME = 1e-6


def combine(rows: jax.Array, basis: jax.Array) -> jax.Array:
  """Returns rows (M, K) times a basis (K, D), f32 with one rounding at the end.

  A row that is one of the basis alone is that bit for bit. Products of halves
  of 12 bits are exact in f32 and their sum carries its error along (Knuth's
  two-sum), so the result does not depend on fused multiply-adds.
  """
  terms = jnp.concatenate(
    [
      one.T[:, :, None] * two[:, None, :]
      for one in _halves(rows)
      for two in _halves(basis)
    ]
  )

  def add(carry, term):
    total, error = carry
    new = total + term
    part = new - total
    return (new, error + ((total - (new - part)) + (term - part))), None

  zero = jnp.zeros(terms.shape[1:], jnp.float32)
  (total, error), _ = jax.lax.scan(add, (zero, zero), terms)
  return total + error


def is_known(
  members: jax.Array, others: jax.Array, valid: jax.Array
) -> jax.Array:
  """Returns (M,) bool, which members (M, D) are there already.

  That is among the `valid` (C,) of others (C, D), or earlier among themselves;
  all coefficients are compared up to SAME.
  """

  def same(known):
    gap = jnp.abs(members[:, None] - known[None])
    return jnp.max(gap, axis=-1) <= SAME

  earlier = jnp.tril(same(members), k=-1)
  return jnp.any(same(others) & valid, axis=1) | jnp.any(earlier, axis=1)


def _halves(values):
  high = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=11)
  return high, values - high
