"""Exact algebra of adapters, on their factors.

Merging a with a and b with b, as GENOME (arXiv 2503.01155) and Model Swarms
(arXiv 2410.11163) do, gives cross terms a_i b_j; a weighted sum of the changes
a b themselves is the concatenation of the factors, of the sum of the ranks.
`compress` brings it back to rank R, the best there is in the Frobenius norm
(Eckart and Young, 1936). The dense matrix is never formed.

Adapter trees hold {'a': (..., in, R), 'b': (..., R, out)} for each module. b is
used as it is: where adapters have scales, multiply their b first
(genomes.adapters.scaled), or the weights.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators.merges import linear as linear_merge
from evojax_llm.population import leaves
from evojax_llm.population import stack

PRODUCTS = ('factors', 'exact')


def weighted_sum(adapters: Sequence[Any], weights: jax.Array) -> Any:
  """Returns the adapter whose change is sum_n w_n a_n b_n, by concatenation.

  Adapters are N trees of the same modules; ranks may differ. Leaves that are no
  factors are summed. Exact but for rounding w b to the type of b.

  Raises:
    ValueError: if there is no adapter, or not one weight for each.
  """
  weights = jnp.asarray(weights, jnp.float32)
  if not adapters or weights.shape != (len(adapters),):
    raise ValueError(
      f'Got {len(adapters)} adapters and weights {weights.shape}; expected at '
      'least one adapter and a weight for each.'
    )

  def times(leaf, weight):
    return (leaf.astype(jnp.float32) * weight).astype(leaf.dtype)

  def add(*nodes):
    if not leaves.is_factors(nodes[0]):
      return linear_merge.combine(jnp.stack(nodes), weights)
    scaled = [times(n['b'], w) for n, w in zip(nodes, weights, strict=True)]
    return {
      'a': jnp.concatenate([node['a'] for node in nodes], axis=-1),
      'b': jnp.concatenate(scaled, axis=-2),
    }

  return jax.tree.map(add, *adapters, is_leaf=leaves.is_factors)


def compress(adapter: Any, rank: int) -> tuple[Any, Any]:
  """Returns the nearest adapter of rank R, and how far it is.

  With a = Q_a R_a and b^T = Q_b R_b (orthonormal Q), the singular values of a b
  are those of the small matrix R_a R_b^T. The new a is orthonormal; b holds the
  singular values. Smaller ranks are filled up with zeros.

  Returns:
    The adapter in the types of the leaves, and for each module the relative
      error ||a b - a' b'|| / ||a b|| in the Frobenius norm (...,) f32. Leaves
      that are no factors are kept, with error zero.

  Raises:
    ValueError: if the rank is not positive.
  """
  if rank < 1:
    raise ValueError(f'Got rank {rank}; expected at least one.')
  nodes, structure = jax.tree.flatten(adapter, is_leaf=leaves.is_factors)
  indices = [i for i, node in enumerate(nodes) if leaves.is_factors(node)]
  errors = [jnp.float32(0.0)] * len(nodes)
  sides = [nodes[i]['a'].astype(jnp.float32) for i in indices]
  sides += [_turned(nodes[i]['b'].astype(jnp.float32)) for i in indices]
  sides, cores = _orthonormal(sides)
  middle = len(indices)
  small = [
    _matmul(one, _turned(two))
    for one, two in zip(cores[:middle], cores[middle:], strict=True)
  ]
  decomposed = _at_once(
    functools.partial(jnp.linalg.svd, full_matrices=False), small
  )
  for i, left, right, parts in zip(
    indices, sides[:middle], sides[middle:], decomposed, strict=True
  ):
    nodes[i], errors[i] = _truncated(nodes[i], left, right, parts, rank)
  return (
    jax.tree.unflatten(structure, nodes),
    jax.tree.unflatten(structure, errors),
  )


def _truncated(node, left, right, parts, rank):
  """The factors of rank R, and the error."""
  u, values, vt = parts
  a, b = node['a'], node['b']
  kept = min(rank, values.shape[-1])
  squares = jnp.square(values)
  total = jnp.sum(squares, axis=-1)
  lost = jnp.sum(squares[..., kept:], axis=-1)
  error = jnp.sqrt(lost / jnp.where(total > 0.0, total, 1.0))
  new_a = _matmul(left, u[..., :kept])
  new_b = _matmul(values[..., :kept, None] * vt[..., :kept, :], _turned(right))
  missing = rank - kept
  no_pad = [(0, 0)] * (a.ndim - 1)
  return {
    'a': jnp.pad(new_a, [*no_pad, (0, missing)]).astype(a.dtype),
    'b': jnp.pad(new_b, [*no_pad[1:], (0, missing), (0, 0)]).astype(b.dtype),
  }, error


def _at_once(function, matrices):
  """function(matrix) of several batches of small square ones, in one call.

  LAPACK spreads a batch over threads and waits for them. Several calls that XLA
  runs beside one another can wait for each other's threads for ever.
  """
  found = [None] * len(matrices)
  sizes = {matrix.shape[-1] for matrix in matrices}
  for size in sorted(sizes):
    indices = [i for i, m in enumerate(matrices) if m.shape[-1] == size]
    flat = [matrices[i].reshape(-1, size, size) for i in indices]
    parts = function(jnp.concatenate(flat))
    start = 0
    for i, matrix in zip(indices, flat, strict=True):
      batch = matrices[i].shape[:-2]
      found[i] = tuple(
        part[start : start + len(matrix)].reshape(batch + part.shape[1:])
        for part in parts
      )
      start += len(matrix)
  return found


def _orthonormal(sides):
  """Q (..., n, k), whose columns are orthonormal, and R with x = Q R, of each.

  By the small matrices x^T x, which costs products alone (Stathopoulos and Wu,
  "A block orthogonalization procedure with constant synchronization
  requirements", 2002). One pass is inexact where columns nearly depend on one
  another, as those of experts of one origin do; the passes after it repair
  that. x = Q R holds all along, as no direction is dropped.
  """
  cores = [None] * len(sides)
  for _ in range(3):
    grams = [_matmul(_turned(x), x) for x in sides]
    lengths = [jnp.sqrt(jnp.diagonal(g, axis1=-2, axis2=-1)) for g in grams]
    lengths = [jnp.where(length > 0.0, length, 1.0) for length in lengths]
    spectra = _at_once(
      jnp.linalg.eigh,
      [
        gram / (length[..., :, None] * length[..., None, :])
        for gram, length in zip(grams, lengths, strict=True)
      ],
    )
    for i, (length, (values, vectors)) in enumerate(
      zip(lengths, spectra, strict=True)
    ):
      least = values.shape[-1] * jnp.finfo(jnp.float32).eps
      roots = jnp.sqrt(jnp.maximum(values, least))
      step = roots[..., :, None] * _turned(vectors) * length[..., None, :]
      sides[i] = _matmul(
        sides[i], vectors / (length[..., :, None] * roots[..., None, :])
      )
      cores[i] = step if cores[i] is None else _matmul(step, cores[i])
  return sides, cores


def _turned(matrix):
  return jnp.swapaxes(matrix, -1, -2)


def _matmul(one, two):
  return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)


def linear(
  parents: stack.Population, weights: jax.Array, *, products: str = 'factors'
) -> stack.Genome:
  """Merges k parents (k, ...) of one rank, weights (k,) or (), into that rank.

  `products` 'factors' sums a and b apart, with cross terms, as published;
  'exact' sums the changes a b and keeps the best of the parents' rank.

  Raises:
    ValueError: if `products` is neither, or modules differ in rank.
  """
  if products not in PRODUCTS:
    raise ValueError(f'Got products {products!r}; expected one of {PRODUCTS}.')
  count = stack.size(parents)
  weights = jnp.asarray(weights, jnp.float32)
  weights = weights if weights.ndim else jnp.broadcast_to(weights, (count,))
  if products == 'factors':
    return linear_merge.combine(parents, weights)

  each = [
    jax.tree.map(lambda leaf, i=i: leaf[i], parents) for i in range(count)
  ]
  ranks = {
    node['a'].shape[-1]
    for node in jax.tree.leaves(parents, is_leaf=leaves.is_factors)
    if leaves.is_factors(node)
  }
  if not ranks:
    return linear_merge.combine(parents, weights)
  if len(ranks) > 1:
    raise ValueError(
      f'Got modules of ranks {sorted(ranks)}; expected one rank. Pad the '
      'factors with zeros.'
    )
  (rank,) = ranks
  return compress(weighted_sum(each, weights), rank)[0]
