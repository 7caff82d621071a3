"""Low-rank adapters of one member: folding them into the parameters."""

from typing import Any

import jax
import jax.numpy as jnp


def is_factors(node: Any) -> bool:
  """Whether a node of an adapter tree holds the two factors of a module."""
  return isinstance(node, dict) and set(node) == {'a', 'b'}


def fold(params: dict[str, Any], lora: dict[str, Any]) -> dict[str, Any]:
  """Adds a member's low rank to the matrices it belongs to.

  Args:
    params: parameter tree; kernels (..., in, out).
    lora: adapter tree of the same modules, any subset of them: `a`
      (..., in, R) and `b` (..., R, out), b already scaled.

  Returns:
    The parameter tree with kernel + a b, summed in f32 and kept in the
    kernel's type; untouched leaves are shared.
  """
  if is_factors(lora):
    delta = jnp.einsum(
      '...ir,...ro->...io',
      lora['a'],
      lora['b'],
      preferred_element_type=jnp.float32,
    )
    kernel = params['kernel']
    folded = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return {**params, 'kernel': folded}
  return {
    name: fold(node, lora[name]) if name in lora else node
    for name, node in params.items()
  }


def num_params(lora: dict[str, Any]) -> int:
  """Number of elements of an adapter tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(lora))
