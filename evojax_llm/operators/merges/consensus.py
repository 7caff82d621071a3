"""Merges that weigh deltas by how they agree: sce, ram, ramplus, model_stock.

None has weights of its own: the deltas themselves decide. All take parents
(k, ...) and a base (...), and return (...) in the base's type.
"""

import itertools

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges import thresholds
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter


def sce(
  parents: jax.Array, base: jax.Array, *, select_topk: jax.Array
) -> jax.Array:
  """Select, calculate, erase (FuseChat 3, arXiv 2408.07990).

  Keeps the positions where the deltas vary most, weighs each delta by its mean
  square, and averages those of the sign of the sum. `select_topk` () is the
  share of the positions of non-zero variance; 1 keeps all positions. As in
  mergekit, the weights are equal where the mean squares sum to less than 1e-6
  (deltas of small factors may), and the divisor is at least 1e-6.
  """
  deltas = tensors.deltas(parents, base)
  share = jnp.asarray(select_topk, jnp.float32)
  # In the order of the released code, so that ties of rounded variances fall
  # as they do there.
  mean = tensors.total(deltas) / len(deltas)
  squares = [jnp.square(delta - mean) for delta in deltas]
  variance = tensors.total(squares) / len(deltas)
  # Stored: it is read in every pass, and made of all parents.
  stored = lax.optimization_barrier(variance)
  (varying,) = tensors.counts([stored > 0.0])
  rank = thresholds.share(share, varying)
  ((cut,),) = thresholds.top(thresholds.itself, [stored], [[rank]])
  chosen = thresholds.inside(variance, cut) | (share >= 1.0)
  deltas = [jnp.where(chosen, delta, 0.0) for delta in deltas]
  squares = tensors.sums([jnp.square(delta) for delta in deltas])
  energy = [square / base.size for square in squares]
  energies = tensors.total(energy)
  small = energies < 1e-6
  weights = [
    jnp.where(small, 1.0 / len(deltas), e / jnp.where(small, 1.0, energies))
    for e in energy
  ]
  positive = tensors.total(deltas) >= 0.0
  agree = [tensors.agrees(delta, positive) for delta in deltas]
  shares = [
    jnp.where(yes, weight, 0.0)
    for yes, weight in zip(agree, weights, strict=True)
  ]
  mixed = tensors.weighted(deltas, shares)
  mixed = mixed / jnp.maximum(tensors.total(shares), 1e-6)
  return tensors.child(parents, base, mixed)


def ram(
  parents: jax.Array, base: jax.Array, *, epsilon: jax.Array
) -> jax.Array:
  """Mean over those that change an element (arXiv 2601.13572).

  The base stays where no parent changes it; a change not larger than epsilon
  () is none.
  """
  deltas = tensors.deltas(parents, base)
  epsilon = jnp.asarray(epsilon, jnp.float32)
  kept = [jnp.where(_changes(d, epsilon), d, 0.0) for d in deltas]
  count = tensors.total([jnp.where(d != 0.0, 1.0, 0.0) for d in kept])
  mixed = tensors.total(kept) / jnp.maximum(count, 1.0)
  return tensors.child(parents, base, mixed)


def ramplus(
  parents: jax.Array,
  base: jax.Array,
  *,
  epsilon: jax.Array,
  r: jax.Array,
  alpha: jax.Array,
) -> jax.Array:
  """As `ram`, with what only one parent changes enlarged (arXiv 2601.13572).

  A change of one parent alone is multiplied by 1 + r clip(shared / unique, 0,
  alpha), from the numbers of elements that this parent shares and has alone
  (tensor-local, mergekit's ramplus_tl). r and alpha are ().
  """
  deltas = tensors.deltas(parents, base)
  epsilon, r, alpha = (
    jnp.asarray(value, jnp.float32) for value in (epsilon, r, alpha)
  )
  there = [_changes(delta, epsilon) for delta in deltas]
  count = tensors.total([mine.astype(jnp.float32) for mine in there])
  alone = [mine & (count == 1.0) for mine in there]
  both = [mine & (count > 1.0) for mine in there]
  unique, shared = (
    tensors.counts(alone + both).astype(jnp.float32).reshape(2, len(deltas))
  )
  ratio = shared / jnp.maximum(unique, epsilon)
  factors = 1.0 + r * jnp.clip(ratio, 0.0, alpha)
  scale = 1.0 / jnp.maximum(count, 1.0)
  terms = [
    jnp.where(mine, jnp.where(count == 1.0, factor, scale) * delta, 0.0)
    for mine, factor, delta in zip(there, factors, deltas, strict=True)
  ]
  return tensors.child(parents, base, tensors.total(terms))


def _changes(delta, epsilon):
  """Whether a delta is one; NaN is, so that it is seen in the child."""
  return ~(jnp.abs(delta) <= epsilon)


def model_stock(
  parents: jax.Array, base: jax.Array, *, axis: int, span: str, negative: str
) -> jax.Array:
  """The mean, drawn to the base as the deltas disagree (arXiv 2403.19522).

  With c the mean cosine between k >= 2 deltas, t = k c / (1 + (k - 1) c) and
  the child is t mean + (1 - t) base; the base where 1 + (k - 1) c is zero
  (within 1e-6). A zero delta has cosine zero; a product of lengths below 1e-6
  counts as that, as in mergekit.

  Args:
    parents: (k, ...).
    base: (...).
    axis: the axis that runs along a row.
    span: what has a cosine of its own, the whole 'tensor' or each 'row'
      (mergekit's filter_wise).
    negative: a negative c gives the far side of the base ('as_is') or the
      'base'.
  """
  deltas = tensors.deltas(parents, base)
  along = {'tensor': None, 'row': axis if base.ndim else None}[span]
  k = len(deltas)

  inner = tensors.inner_products(deltas, along)
  norms = [jnp.sqrt(inner[i][i]) for i in range(k)]
  cosines = []
  for i, j in itertools.combinations(range(k), 2):
    lengths = jnp.maximum(norms[i] * norms[j], 1e-6)
    cosines.append(jnp.clip(inner[i][j] / lengths, -1.0, 1.0))
  cosine = tensors.total(cosines) / len(cosines)
  if negative == 'base':
    cosine = jnp.maximum(cosine, 0.0)
  below = 1.0 + (k - 1) * cosine
  singular = jnp.abs(below) < 1e-6
  t = jnp.where(singular, 0.0, k * cosine / jnp.where(singular, 1.0, below))
  return tensors.child(parents, base, t * (tensors.total(deltas) / k))


SCE = Merge(
  'sce',
  sce,
  'FuseChat 3, arXiv 2408.07990',
  (Parameter('select_topk', 1.0, 'share of positions that count', 0.0, 1.0),),
)
RAM = Merge('ram', ram, 'arXiv 2601.13572', (takes.CHANGE,))
RAMPLUS = Merge(
  'ramplus',
  ramplus,
  'arXiv 2601.13572',
  (
    takes.CHANGE,
    Parameter('r', 0.1, 'enlargement of what one parent changes'),
    Parameter('alpha', 0.2, 'bound of the share it grows with', 0.0),
  ),
)
MODEL_STOCK = Merge(
  'model_stock',
  model_stock,
  'arXiv 2403.19522',
  (
    takes.choice('span', 'what has its own cosine', 'tensor', 'row'),
    takes.choice('negative', 'at a negative cosine', 'as_is', 'base'),
  ),
  parents=(2, None),
)
