"""Merges of deltas: base + lambda times a sum of what the parents change.

The deltas are first sparsified (see `sparsify`), then weighted, then summed:
all of them, or those that agree with an elected sign (TIES, arXiv 2306.01708).
The defaults are mergekit's.

Options:
  rescale: see `sparsify`.
  normalize: what the sum is divided by. 'weights': the sum of the weights (of
    those that agree); 'count': how many (agree), as in the TIES paper and in
    PEFT; 'none'. A divisor of zero counts as one.
  election: which sign wins. 'weighted': that of sum w delta (mergekit);
    'unweighted': that of sum delta (the paper and PEFT); 'frequency': more
    weighted deltas than not. Zero is a plus. An element that is zero never
    agrees; one that is NaN always does, so that it is seen in the child.

Arguments of all: parents (k, ...); base (...); weights, density, gamma and
epsilon (k,), or () for all parents alike; lambda_ (); key () typed; axis, the
one that runs along a row. All return (...) in the base's type. `cuts` and
`masks` are what `sparsify` finds of the deltas, where they are known.
"""

import jax.numpy as jnp

from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter


def _summed(base, deltas, *, weights, lambda_, normalize):
  w = tensors.each(weights, len(deltas))
  mixed = tensors.weighted(deltas, w)
  if normalize == 'weights':
    mixed = mixed / tensors.divisor(tensors.total(w), 1e-8)
  elif normalize == 'count':
    mixed = mixed / len(deltas)
  return _moved(base, lambda_, mixed)


def _elected(base, deltas, *, weights, lambda_, normalize, election):
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
  return tensors.child(base, base, jnp.asarray(lambda_, jnp.float32) * mixed)


def task_arithmetic(parents, base, **rest):
  """Base + lambda sum w delta (arXiv 2212.04089)."""
  return _summed(base, tensors.deltas(parents, base), **rest)


def ties(parents, base, *, density, rescale, cuts=None, **rest):
  """The largest of each delta, with sign election (arXiv 2306.01708)."""
  deltas = sparsify.magnitude(
    parents, base, density, rescale=rescale, cuts=cuts
  )
  return _elected(base, deltas, **rest)


def magnitude_linear(parents, base, *, density, rescale, cuts=None, **rest):
  """The largest of each delta, summed (PEFT's magnitude_prune)."""
  deltas = sparsify.magnitude(
    parents, base, density, rescale=rescale, cuts=cuts
  )
  return _summed(base, deltas, **rest)


def dare_linear(parents, base, *, key, density, rescale, **rest):
  """Random elements of each delta, summed (arXiv 2311.03099)."""
  deltas = sparsify.bernoulli(parents, base, density, key, rescale=rescale)
  return _summed(base, deltas, **rest)


def dare_ties(parents, base, *, key, density, rescale, **rest):
  """Random elements of each delta, with sign election (arXiv 2311.03099)."""
  deltas = sparsify.bernoulli(parents, base, density, key, rescale=rescale)
  return _elected(base, deltas, **rest)


def della_linear(
  parents, base, *, key, axis, density, epsilon, rescale, masks=None, **rest
):
  """Elements drawn by rank within their row, summed (arXiv 2406.11617)."""
  deltas = sparsify.by_rank(
    parents,
    base,
    density,
    epsilon,
    key,
    axis=axis,
    rescale=rescale,
    masks=masks,
  )
  return _summed(base, deltas, **rest)


def della(
  parents, base, *, key, axis, density, epsilon, rescale, masks=None, **rest
):
  """Elements drawn by rank, with sign election (arXiv 2406.11617)."""
  deltas = sparsify.by_rank(
    parents,
    base,
    density,
    epsilon,
    key,
    axis=axis,
    rescale=rescale,
    masks=masks,
  )
  return _elected(base, deltas, **rest)


def breadcrumbs(parents, base, *, density, gamma, rescale, cuts=None, **rest):
  """Neither the largest nor the smallest, summed (arXiv 2312.06795)."""
  deltas = sparsify.middle(
    parents, base, density, gamma, rescale=rescale, cuts=cuts
  )
  return _summed(base, deltas, **rest)


def breadcrumbs_ties(
  parents, base, *, density, gamma, rescale, cuts=None, **rest
):
  """As `breadcrumbs`, with sign election."""
  deltas = sparsify.middle(
    parents, base, density, gamma, rescale=rescale, cuts=cuts
  )
  return _elected(base, deltas, **rest)


_EPSILON = Parameter(
  'epsilon',
  0.15,
  'half the range of keep chances',
  0.0,
  0.5,
  span=(0.0, 0.5),
  per_model=True,
)
_GAMMA = Parameter(
  'gamma',
  0.01,
  'share of outliers set to zero',
  0.0,
  1.0,
  span=(0.0, 0.5),
  per_model=True,
)
_RESCALE = 'rescale', 'what makes up for the elements that are gone'
_DRAWN = takes.choice(*_RESCALE, *sparsify.RESCALES)
_TRIMMED = takes.choice(*_RESCALE, 'none', 'l1', 'density')
_NORMALIZE = 'normalize', 'what the sum is divided by'
_PLAIN = takes.choice(*_NORMALIZE, 'none', 'weights', 'count')
_SHARED = takes.choice(*_NORMALIZE, 'weights', 'count', 'none')
_ELECTION = takes.choice(
  'election', 'which sign wins', 'weighted', 'unweighted', 'frequency'
)


def _declared(function, source, *more):
  """The entry of one of these functions."""
  numbers = [option for option in more if isinstance(option, Parameter)]
  return Merge(
    function.__name__,
    function,
    source,
    (takes.WEIGHTS, *numbers, takes.LAMBDA, *more[len(numbers) :]),
  )


_DARE, _DELLA = 'DARE, arXiv 2311.03099', 'DELLA, arXiv 2406.11617'
_CRUMBS = 'breadcrumbs, arXiv 2312.06795'
_DENSITY = takes.DENSITY
MERGES = (
  _declared(task_arithmetic, 'arXiv 2212.04089', _PLAIN),
  _declared(
    ties, 'TIES, arXiv 2306.01708', _DENSITY, _TRIMMED, _SHARED, _ELECTION
  ),
  _declared(
    magnitude_linear, 'PEFT, magnitude_prune', _DENSITY, _TRIMMED, _PLAIN
  ),
  _declared(dare_linear, _DARE, _DENSITY, _DRAWN, _PLAIN),
  _declared(dare_ties, _DARE, _DENSITY, _DRAWN, _PLAIN, _ELECTION),
  _declared(della_linear, _DELLA, _DENSITY, _EPSILON, _DRAWN, _PLAIN),
  _declared(della, _DELLA, _DENSITY, _EPSILON, _DRAWN, _SHARED, _ELECTION),
  _declared(breadcrumbs, _CRUMBS, _DENSITY, _GAMMA, _TRIMMED, _PLAIN),
  _declared(
    breadcrumbs_ties, _CRUMBS, _DENSITY, _GAMMA, _TRIMMED, _PLAIN, _ELECTION
  ),
)
