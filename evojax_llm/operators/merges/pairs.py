"""Merges of a base (...) with one other model, parents (1, ...).

All return (...) in the base's type.
"""

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges import thresholds
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter


def nearswap(parents: jax.Array, base: jax.Array, *, t: jax.Array) -> jax.Array:
  """The other where it is near the base, the base moved by t where it is not.

  With a = clip(t / max(abs(b - x), 1e-6), 0, 1): a x + (1 - a) b. Source: model
  card of alchemonaut/QuartetAnemoi-70B-t0.0001.
  """
  (delta,) = tensors.deltas(parents, base)
  t = jnp.asarray(t, jnp.float32)
  share = jnp.clip(t / jnp.maximum(jnp.abs(delta), 1e-6), 0.0, 1.0)
  return tensors.child(parents, base, share * delta)


def arcee_fusion(
  parents: jax.Array, base: jax.Array, *, axis: int
) -> jax.Array:
  """The other's elements of outlying importance, the base's elsewhere.

  Importance is abs(x - b) times the divergence KL(softmax x || softmax b) of
  the element's row, which runs along `axis`; outlying is at or above median +
  1.5 (q3 - q1). The quantile q is the element of rank floor(q (n - 1)) of all
  n, so that nothing is drawn. Equal tensors, or rows of one element, are the
  other's everywhere. Source: mergekit, Arcee AI.
  """
  (delta,) = tensors.deltas(parents, base)
  score = importance(parents[0], base, axis)
  # Not `>=`: what is not a number is to be seen in the child.
  outlies = ~(score < outlying(score))
  return tensors.child(parents, base, jnp.where(outlies, delta, 0.0))


def importance(x: jax.Array, base: jax.Array, axis: int) -> jax.Array:
  """How much each element of x matters, f32 as x; see `arcee_fusion`."""
  x, base = x.astype(jnp.float32), base.astype(jnp.float32)
  if not x.ndim:
    return jnp.zeros((), jnp.float32)
  # Rounding takes equal rows below zero.
  return jnp.abs(x - base) * jnp.maximum(_divergence(x, base, axis), 0.0)


def _divergence(x, base, axis):
  """KL(softmax x || softmax base) of each row, its axis kept."""
  # Rows are laid side by side first: along another axis each element would be
  # fetched with its neighbours, and they be gone when their turn comes. And the
  # result is stored, or a row would be summed anew for each of its elements.
  rows = tuple(jnp.moveaxis(z, axis, -1) for z in (x, base))
  p, q = (
    jax.nn.softmax(z, axis=-1) + 1e-8 for z in lax.optimization_barrier(rows)
  )
  divergence = jnp.sum(p * jnp.log(p / q), axis=-1, keepdims=True)
  return lax.optimization_barrier(jnp.moveaxis(divergence, -1, axis))


def outlying(score: jax.Array) -> jax.Array:
  """Median + 1.5 (q3 - q1) of scores (...) that are not negative, () f32."""
  last = score.size - 1
  ranks = [score.size - quarter * last // 4 for quarter in (1, 2, 3)]
  low, middle, high = thresholds.kth_largest(score, ranks)
  return middle + 1.5 * (high - low)


NEARSWAP = Merge(
  'nearswap',
  nearswap,
  'QuartetAnemoi-70B-t0.0001',
  (
    Parameter('t', 1e-4, 'largest change of an element', 0.0, span=(0.0, 1e-2)),
  ),
  parents=(1, 1),
)
ARCEE_FUSION = Merge(
  'arcee_fusion', arcee_fusion, 'mergekit', parents=(1, 1), of_deltas=False
)
