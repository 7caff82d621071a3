"""What tells one member from another: low rank, gates, parameters or a path.

A genome space expresses a genome as one of four types, and the type says how
the model runs it:

  LowRank  factors added to linear maps,
  Gates    weights of factors that all members share,
  Weights  parameters of its own,
  Path     an order of layers that all members share.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models import soft_tokens


@flax.struct.dataclass
class LowRank:
  """A member that adds a low rank to linear maps: y = x W + (x a) b.

  Attributes:
    factors: {'a': (..., in, R), 'b': (..., R, out)} at any subset of the linear
      maps of the parameter tree; b is scaled.
  """

  factors: dict[str, Any]


@flax.struct.dataclass
class Gates:
  """A member that weighs shared factors: y = x W + ((x a) gate) b.

  `a` and `b` stand beside the kernel in the parameters (`with_factors`).

  Attributes:
    gates: (..., R) at any subset of the linear maps that have factors.
  """

  gates: dict[str, Any]


@flax.struct.dataclass
class Weights:
  """A member that is a model: its parameters replace the shared ones.

  Attributes:
    params: parameter tree, whole.
  """

  params: dict[str, Any]


@flax.struct.dataclass
class Path:
  """A member that is a way through shared layers, each hop through one of them.

  The residual stream that enters a hop is multiplied by the scale of the hop.
  Embedding, final norm and head are the shared ones. Every hop has keys and
  values of its own, and a layer may come several times. (Evolutionary model
  merging in the data-flow space, arXiv 2403.13187, section 3.2.)

  Attributes:
    hops: (H,) i32 indices of layers; -1 behind the end.
    scales: (H,) f32.
  """

  hops: jax.Array
  scales: jax.Array


Expression = LowRank | Gates | Weights | Path


def longest(expression: Expression, axis: int = 0) -> jax.Array | None:
  """Returns () i32, the hops of the longest of some paths; None of others.

  `axis` is that of H; the other one, if any, is that of the members.
  """
  if not isinstance(expression, Path):
    return None
  return jnp.max(jnp.sum(expression.hops >= 0, axis=axis, dtype=jnp.int32))


def variables(
  params: dict[str, Any],
  expression: Expression,
  count: jax.Array | None = None,
) -> dict[str, Any]:
  """Returns the variables of the flax model for one member.

  Args:
    params: shared parameters; without a leading axis where `apply` is mapped
      over members, which leaves one product x W for all of them.
    expression: of the member.
    count: () i32, hops to go through; by default those of a path. Where `apply`
      is mapped it is that of the longest path, so that one loop serves all.
  """
  match expression:
    case LowRank(factors):
      return {'params': params, 'lora': factors}
    case Gates(gates):
      named = jax.tree.map(lambda gate: {'gate': gate}, gates)
      return {'params': params, 'gates': named}
    case Weights(own):
      # Soft tokens of images are no part of a model.
      shared = {k: v for k, v in params.items() if k == soft_tokens.NAME}
      return {'params': {**own, **shared}}
    case Path(hops, scales):
      count = longest(expression) if count is None else count
      path = {'hops': hops, 'scales': scales, 'count': count}
      return {'params': params, 'path': path}
  raise TypeError(
    f'Got a member expressed as {type(expression).__name__}; expected LowRank, '
    'Gates, Weights or Path.'
  )


def alone(params: dict[str, Any], expression: Expression) -> dict[str, Any]:
  """Returns the variables of a member that runs by itself; see `fold`."""
  if isinstance(expression, Path):
    return variables(params, expression)
  return {'params': fold(params, expression)}


def fold(params: dict[str, Any], expression: Expression) -> dict[str, Any]:
  """Returns the parameters of one member, its low rank added to the kernels.

  Args:
    params: shared parameters; kernels (..., in, out).
    expression: of the member.

  Returns:
    The parameter tree with kernel + a b or kernel + (a gate) b, summed in f32
    and kept in the type of the factors or, where it is a floating one, of the
    kernel; untouched leaves are shared.
  """
  match expression:
    case Path():
      raise TypeError('Got a path, which no parameters fold; see `alone`.')
    case LowRank(factors):
      return _at_maps(
        lambda node, pair: _with_kernel(node, _add(node, pair['a'], pair['b'])),
        params,
        factors,
      )
    case Gates(gates):
      return _at_maps(
        lambda node, gate: _with_kernel(
          node,
          _add(
            node, node['a'].astype(jnp.float32) * gate[..., None, :], node['b']
          ),
        ),
        params,
        gates,
      )
  return variables(params, expression)['params']


def as_low_rank(expression: Expression, params: dict[str, Any]) -> LowRank:
  """Returns the same member with factors of its own.

  Under vmap only `a` carries the axis of the members.

  Args:
    expression: LowRank or Gates.
    params: shared parameters, of which only the factors matter.

  Raises:
    TypeError: the member is a whole model.
  """
  if isinstance(expression, LowRank):
    return expression
  if not isinstance(expression, Gates):
    raise TypeError(
      f'Got a member expressed as {type(expression).__name__}; expected one of '
      'a low rank, LowRank or Gates.'
    )

  def weigh(gate, node):
    if isinstance(gate, dict):
      return {name: weigh(inner, node[name]) for name, inner in gate.items()}
    a = node['a']
    weighed = (a.astype(jnp.float32) * gate[..., None, :]).astype(a.dtype)
    return {'a': weighed, 'b': node['b']}

  return LowRank(weigh(expression.gates, params))


def distance(expression: Expression, params: dict[str, Any]) -> jax.Array:
  """Returns how far a member is from the shared parameters, () f32.

  The root of the sum of squares of all that it changes of the weights.

  Args:
    expression: of the member.
    params: shared parameters.

  Raises:
    TypeError: it is expressed as none of LowRank, Gates and Weights.
  """
  if isinstance(expression, Weights):
    squares = [
      jnp.sum(jnp.square(own.astype(jnp.float32) - base.astype(jnp.float32)))
      for own, base in zip(
        *map(jax.tree.leaves, (expression.params, params)), strict=True
      )
    ]
    return jnp.sqrt(sum(squares))

  def square(node):
    if not ('a' in node and 'b' in node):
      return sum(map(square, node.values()))
    # The norm of a product, without the product.
    a, b = (node[name].astype(jnp.float32) for name in 'ab')
    return jnp.sum((a.mT @ a) * (b @ b.mT))

  return jnp.sqrt(
    jnp.maximum(square(as_low_rank(expression, params).factors), 0.0)
  )


def of_one_rank(*members: LowRank) -> list[LowRank]:
  """Returns members of the same modules, zeros added up to the largest rank."""

  trees = [member.factors for member in members]

  def pad(path, leaf, *leaves):
    axis = -1 if path[-1].key == 'a' else -2
    width = [(0, 0)] * leaf.ndim
    width[axis] = (0, max(x.shape[axis] for x in leaves) - leaf.shape[axis])
    return jnp.pad(leaf, width)

  return [LowRank(jax.tree.map_with_path(pad, tree, *trees)) for tree in trees]


def with_factors(
  params: dict[str, Any], factors: dict[str, Any]
) -> dict[str, Any]:
  """Returns parameters with factors beside their kernels; nothing is copied.

  Args:
    params: parameter tree.
    factors: {'a', 'b'} at any subset of its linear maps, as in `LowRank`.
  """
  return _at_maps(lambda node, pair: {**node, **pair}, params, factors)


def _at_maps(change, params, tree):
  """Makes change(node, part) of the linear maps that a tree has a part of."""
  if 'kernel' in params:
    return change(params, tree)
  return {
    name: _at_maps(change, node, tree[name]) if name in tree else node
    for name, node in params.items()
  }


def _with_kernel(params: dict[str, Any], kernel: jax.Array) -> dict[str, Any]:
  """A linear map with another kernel; nothing else stays but its bias."""
  return {'kernel': kernel} | {k: v for k, v in params.items() if k == 'bias'}


def _add(params: dict[str, jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the kernel of a linear map with a b added."""
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
