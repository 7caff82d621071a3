"""Exact algebra of adapters, on their factors.

An adapter changes a matrix by a b. Merging a with a and b with b, as GENOME
(arXiv 2503.01155) and Model Swarms (arXiv 2410.11163) do, gives cross terms
a_i b_j; a weighted sum of the changes themselves is the concatenation of the
factors, of the sum of the ranks. `compress` brings it back to rank R, the best
there is in the Frobenius norm (Eckart and Young, 1936). The dense matrix is
never formed; to fold an adapter into its base, see gemma.lora.fold.

Adapter trees hold {'a': (..., in, R), 'b': (..., R, out)} for each module, with
any axes in front (layers, members). b is taken as it is: where adapters have
scales, multiply their b first (genomes.adapters.scaled), or the weights.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.gemma import lora
from evojax_llm.operators.merges import linear as linear_merge
from evojax_llm.population import stack

PRODUCTS = ('factors', 'exact')


def _map_factors(function: Callable[..., Any], *trees: Any) -> Any:
  """Maps function(factors, ...) over modules, and over other leaves alike."""
  return jax.tree.map(function, *trees, is_leaf=lora.is_factors)


def weighted_sum(adapters: Sequence[Any], weights: jax.Array) -> Any:
  """The adapter whose change is sum_n w_n a_n b_n, by concatenation.

  Args:
    adapters: N adapter trees of the same modules; ranks may differ. Leaves
      that belong to no pair of factors are summed.
    weights: (N,) f32.

  Returns:
    An adapter tree whose rank is the sum of the ranks. Exact but for rounding
    w b to the type of b.

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
    if not lora.is_factors(nodes[0]):
      return linear_merge.combine(jnp.stack(nodes), weights)
    scaled = [times(n['b'], w) for n, w in zip(nodes, weights, strict=True)]
    return {
      'a': jnp.concatenate([node['a'] for node in nodes], axis=-1),
      'b': jnp.concatenate(scaled, axis=-2),
    }

  return _map_factors(add, *adapters)


def compress(adapter: Any, rank: int) -> tuple[Any, Any]:
  """The nearest adapter of rank R, and how far it is.

  With a = Q_a R_a and b^T = Q_b R_b, the singular values of a b are those of
  the small matrix R_a R_b^T. The columns of the new a are orthonormal; b holds
  the singular values, so that its size is the adapter's mass.

  Args:
    adapter: adapter tree of any rank; smaller ones are filled up with zeros.
    rank: R.

  Returns:
    The adapter in the types of the leaves, and for each module the relative
    error ||a b - a' b'|| / ||a b|| in the Frobenius norm (...,) f32, zero for
    a change of zero. Leaves that belong to no pair of factors are kept; their
    error is zero.

  Raises:
    ValueError: if the rank is not positive.
  """
  if rank < 1:
    raise ValueError(f'Got rank {rank}; expected at least one.')
  pairs = _map_factors(lambda node: _Pair(*_compress(node, rank)), adapter)
  return (
    jax.tree.map(lambda p: p.node, pairs, is_leaf=_is_pair),
    jax.tree.map(lambda p: p.error, pairs, is_leaf=_is_pair),
  )


class _Pair:
  """A compressed node and its error; a leaf to jax.tree."""

  def __init__(self, node: Any, error: jax.Array):
    self.node, self.error = node, error


def _is_pair(node):
  return isinstance(node, _Pair)


def _compress(node, rank):
  if not lora.is_factors(node):
    return node, jnp.float32(0.0)
  a, b = node['a'], node['b']
  left, core_a = jnp.linalg.qr(a.astype(jnp.float32))
  right, core_b = jnp.linalg.qr(jnp.swapaxes(b, -1, -2).astype(jnp.float32))
  core = _matmul(core_a, jnp.swapaxes(core_b, -1, -2))
  u, values, vt = jnp.linalg.svd(core, full_matrices=False)
  kept = min(rank, values.shape[-1])
  squares = jnp.square(values)
  total = jnp.sum(squares, axis=-1)
  lost = jnp.sum(squares[..., kept:], axis=-1)
  error = jnp.sqrt(lost / jnp.where(total > 0.0, total, 1.0))
  new_a = _matmul(left, u[..., :kept])
  new_b = _matmul(
    values[..., :kept, None] * vt[..., :kept, :], jnp.swapaxes(right, -1, -2)
  )
  missing = rank - kept
  no_pad = [(0, 0)] * (a.ndim - 1)
  return {
    'a': jnp.pad(new_a, [*no_pad, (0, missing)]).astype(a.dtype),
    'b': jnp.pad(new_b, [*no_pad[1:], (0, missing), (0, 0)]).astype(b.dtype),
  }, error


def _matmul(one, two):
  return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)


def linear(
  parents: stack.Population, weights: jax.Array, *, products: str = 'factors'
) -> stack.Genome:
  """One child of k parents of one rank, as a genome of that rank.

  Args:
    parents: k genomes, leaves (k, ...); any tree.
    weights: (k,) f32.
    products: 'factors' sums a and b apart, with cross terms, as published;
      'exact' sums the changes a b and keeps the best of the parents' rank.
      Leaves other than factors are summed either way.

  Raises:
    ValueError: if `products` is neither.
  """
  if products not in PRODUCTS:
    raise ValueError(f'Got products {products!r}; expected one of {PRODUCTS}.')
  if products == 'factors':
    return linear_merge.combine(parents, weights)

  def cross(node):
    if not lora.is_factors(node):
      return linear_merge.combine(node, weights)
    k, rank = node['a'].shape[0], node['a'].shape[-1]
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], node) for i in range(k)]
    return compress(weighted_sum(each, weights), rank)[0]

  return _map_factors(cross, parents)
