"""What a member is, in terms of the experts it was made from."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def by_experts(
  names: Sequence[str], blocks: Iterable[tuple[np.ndarray, ...]]
) -> dict[str, Any]:
  """Returns a member's change of the base beside those of N experts.

  Args:
    names: of the experts.
    blocks: parts of the changes of the experts and, last, of the member: a
      matrix (N + 1, n), or factors (N + 1, in, R) and (N + 1, R, out).

  Returns:
    `change`, the Frobenius norm of the change, and of each of the `experts`
    its norm, its `cosine` with the member, their `distance` and its `weight`
    in the mix of the experts that is nearest; `unexplained` is the distance of
    that mix as a share of the norm. What is not finite is None.
  """
  gram = np.zeros((len(names) + 1,) * 2)
  for block in blocks:
    with np.errstate(all='ignore'):
      gram += _inner_products(*(np.asarray(x, np.float64) for x in block))
  if not np.isfinite(gram).all():
    return {'change': None, 'unexplained': None, 'experts': {}}
  squares, products = np.diag(gram)[:-1], gram[:-1, -1]
  own = gram[-1, -1]
  weights = np.linalg.lstsq(gram[:-1, :-1], products, rcond=1e-9)[0]
  left = own - 2 * weights @ products + weights @ gram[:-1, :-1] @ weights
  apart = np.sqrt(np.maximum(squares + own - 2 * products, 0.0))
  lengths = np.sqrt(squares * own)
  cosines = np.divide(
    products, lengths, out=np.zeros_like(lengths), where=lengths > 0
  )
  columns = (weights, cosines, apart, np.sqrt(squares))
  keys = ('weight', 'cosine', 'distance', 'change')
  return {
    'change': float(np.sqrt(own)),
    'unexplained': float(np.sqrt(max(left, 0.0) / own)) if own else 0.0,
    'experts': {
      name: dict(zip(keys, map(float, row), strict=True))
      for name, *row in zip(names, *columns, strict=True)
    },
  }


def _inner_products(first, second=None):
  """(N + 1, N + 1) inner products of matrices, or of products of factors."""
  if second is None:
    return first @ first.T
  count, _, rank = first.shape
  a = np.moveaxis(first, 0, 1).reshape(first.shape[1], -1)
  b = second.reshape(count * rank, -1)
  products = (a.T @ a) * (b @ b.T)
  return products.reshape(count, rank, count, rank).sum(axis=(1, 3))


def numbers(genome: Any) -> dict[str, Any]:
  """Returns how many numbers any genome has, and their norm."""
  leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(genome)]
  norm = float(np.sqrt(sum(np.square(leaf).sum() for leaf in leaves)))
  return {
    'numbers': sum(leaf.size for leaf in leaves),
    'norm': norm if np.isfinite(norm) else None,
  }
