"""What tells one member from another: low rank, gates or whole parameters.

A member is a tree of the same modules as the parameters, any subset of them.
At a linear map it has either of

  {'a', 'b'}   factors (..., in, R) and (..., R, out), b already scaled
  {'gate'}     (..., R), weights of the factors `a` and `b` that stand beside
               the kernel in the parameters (`with_factors`)

and any other leaf takes the place of the parameter.
"""

from typing import Any

import jax
import jax.numpy as jnp


def is_factors(node: Any) -> bool:
  """Whether a node of an adapter tree holds the two factors of a module."""
  return isinstance(node, dict) and set(node) == {'a', 'b'}


def fold(params: dict[str, Any], member: dict[str, Any]) -> dict[str, Any]:
  """The parameters of one member, its low rank added to the kernels.

  Args:
    params: parameter tree; kernels (..., in, out).
    member: see the module.

  Returns:
    The parameter tree with kernel + a b or kernel + (a gate) b, summed in f32
    and kept in the type of the factors or, where it is a floating one, of the
    kernel; untouched leaves are shared.
  """
  if is_factors(member):
    return {'kernel': _add(params, **member)}
  if set(member) == {'gate'}:
    a = params['a'].astype(jnp.float32) * member['gate'][..., None, :]
    return {'kernel': _add(params, a, params['b'])}
  return {
    name: _folded(node, member[name]) if name in member else node
    for name, node in params.items()
  }


def _folded(params: Any, member: Any) -> Any:
  return fold(params, member) if isinstance(member, dict) else member


def _add(params: dict[str, jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
  """The kernel of a linear map with a b added."""
  kernel, dtype = params['kernel'], params['kernel'].dtype
  if 'step' in params:
    kernel = kernel.astype(jnp.float32) * params['step'][..., None, :]
    dtype = b.dtype
  common = jnp.promote_types(a.dtype, b.dtype)
  delta = jnp.einsum(
    '...ir,...ro->...io',
    a.astype(common),
    b.astype(common),
    preferred_element_type=jnp.float32,
  )
  return (kernel.astype(jnp.float32) + delta).astype(dtype)


def with_factors(
  params: dict[str, Any], factors: dict[str, Any]
) -> dict[str, Any]:
  """Parameters with factors for gates beside their kernels; nothing copied.

  Args:
    params: parameter tree.
    factors: adapter tree {'a', 'b'} of any subset of its linear maps.
  """
  if is_factors(factors):
    return {**params, **factors}
  return {
    name: with_factors(node, factors[name]) if name in factors else node
    for name, node in params.items()
  }


def num_params(lora: dict[str, Any]) -> int:
  """Number of elements of an adapter tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(lora))
