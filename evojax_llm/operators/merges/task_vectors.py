"""Merges of deltas: base + lambda times a sum of what the parents change.

The deltas are first sparsified (see `sparsify`), then weighted, then summed;
the names ending in ties, and ties and della, sum only what agrees with an
elected sign (TIES, arXiv 2306.01708). The defaults are mergekit's.

Options:
  rescale: see `sparsify`.
  normalize: what the sum is divided by. 'weights': the sum of the weights (of
    those that agree); 'count': how many (agree), as in the TIES paper and in
    PEFT; 'none'. A divisor of zero counts as one.
  election: whose sign wins. 'weighted': that of sum w delta (mergekit);
    'unweighted': that of sum delta (the paper and PEFT); 'frequency': more
    weighted deltas than not. Zero is a plus. An element that is zero never
    agrees; one that is NaN always does, so that it is seen in the child.

Arguments of all: parents (k, ...); base (...); weights, density, gamma and
epsilon (k,), or () for all parents alike; lambda_ (); key () typed; axis, the
one that runs along a row. All return (...) in the base's type.
"""

import jax.numpy as jnp

from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.merges import tensors

ELECTIONS = ('weighted', 'unweighted', 'frequency')


def _summed(base, deltas, weights, lambda_, normalize):
  w = tensors.each(weights, len(deltas))
  mixed = tensors.weighted(deltas, w)
  if normalize == 'weights':
    mixed = mixed / tensors.divisor(tensors.total(w), 1e-8)
  elif normalize == 'count':
    mixed = mixed / len(deltas)
  return _moved(base, lambda_, mixed)


def _elected(base, deltas, weights, lambda_, normalize, election):
  w = tensors.each(weights, len(deltas))
  terms = [weight * delta for weight, delta in zip(w, deltas, strict=True)]
  votes = deltas if election == 'unweighted' else terms
  if election == 'frequency':
    votes = [jnp.sign(vote) for vote in votes]
  positive = tensors.total(votes) >= 0.0
  agree = [tensors.agrees(vote, positive) for vote in votes]

  def sum_agreeing(values):
    pairs = zip(agree, values, strict=True)
    return tensors.total([jnp.where(yes, value, 0.0) for yes, value in pairs])

  mixed = sum_agreeing(terms)
  if normalize == 'weights':
    mixed = mixed / tensors.divisor(sum_agreeing(w))
  elif normalize == 'count':
    mixed = mixed / tensors.divisor(sum_agreeing([1.0] * len(terms)))
  return _moved(base, lambda_, mixed)


def _moved(base, lambda_, mixed):
  moved = base.astype(jnp.float32) + jnp.asarray(lambda_, jnp.float32) * mixed
  return moved.astype(base.dtype)


def task_arithmetic(parents, base, *, weights, lambda_, normalize='none'):
  """Base + lambda sum w delta (arXiv 2212.04089)."""
  deltas = tensors.deltas(parents, base)
  return _summed(base, deltas, weights, lambda_, normalize)


def ties(
  parents,
  base,
  *,
  weights,
  density,
  lambda_,
  rescale='none',
  normalize='weights',
  election='weighted',
):
  """The largest of each delta, with sign election (arXiv 2306.01708)."""
  deltas = sparsify.magnitude(parents, base, density, rescale=rescale)
  return _elected(base, deltas, weights, lambda_, normalize, election)


def magnitude_linear(
  parents,
  base,
  *,
  weights,
  density,
  lambda_,
  rescale='none',
  normalize='none',
):
  """The largest of each delta, summed (PEFT's magnitude_prune)."""
  deltas = sparsify.magnitude(parents, base, density, rescale=rescale)
  return _summed(base, deltas, weights, lambda_, normalize)


def dare_linear(
  parents,
  base,
  *,
  key,
  weights,
  density,
  lambda_,
  rescale='l1',
  normalize='none',
):
  """Random elements of each delta, summed (arXiv 2311.03099)."""
  deltas = sparsify.bernoulli(parents, base, density, key, rescale=rescale)
  return _summed(base, deltas, weights, lambda_, normalize)


def dare_ties(
  parents,
  base,
  *,
  key,
  weights,
  density,
  lambda_,
  rescale='l1',
  normalize='none',
  election='weighted',
):
  """Random elements of each delta, with sign election (arXiv 2311.03099)."""
  deltas = sparsify.bernoulli(parents, base, density, key, rescale=rescale)
  return _elected(base, deltas, weights, lambda_, normalize, election)


def della_linear(
  parents,
  base,
  *,
  key,
  weights,
  density,
  epsilon,
  lambda_,
  axis=-1,
  rescale='l1',
  normalize='none',
):
  """Elements drawn by rank within their row, summed (arXiv 2406.11617)."""
  deltas = sparsify.by_rank(
    parents, base, density, epsilon, key, axis=axis, rescale=rescale
  )
  return _summed(base, deltas, weights, lambda_, normalize)


def della(
  parents,
  base,
  *,
  key,
  weights,
  density,
  epsilon,
  lambda_,
  axis=-1,
  rescale='l1',
  normalize='weights',
  election='weighted',
):
  """Elements drawn by rank, with sign election (arXiv 2406.11617)."""
  deltas = sparsify.by_rank(
    parents, base, density, epsilon, key, axis=axis, rescale=rescale
  )
  return _elected(base, deltas, weights, lambda_, normalize, election)


def breadcrumbs(
  parents,
  base,
  *,
  weights,
  density,
  gamma,
  lambda_,
  rescale='none',
  normalize='none',
):
  """Neither the largest nor the smallest, summed (arXiv 2312.06795)."""
  deltas = sparsify.middle(parents, base, density, gamma, rescale=rescale)
  return _summed(base, deltas, weights, lambda_, normalize)


def breadcrumbs_ties(
  parents,
  base,
  *,
  weights,
  density,
  gamma,
  lambda_,
  rescale='none',
  normalize='none',
  election='weighted',
):
  """As `breadcrumbs`, with sign election."""
  deltas = sparsify.middle(parents, base, density, gamma, rescale=rescale)
  return _elected(base, deltas, weights, lambda_, normalize, election)
