"""Checks of what a merge was given, before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import options as option_checks
from evojax_llm.operators.merges import registry
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter
from evojax_llm.population import leaves
from evojax_llm.population import stack

find = registry.find


def checked(
  method: str | Merge,
  parents: stack.Population,
  base: stack.Genome | None,
  key: jax.Array | None,
  parameters: Mapping[str, Any] | None,
  options: Mapping[str, Any],
  layers: str | None,
) -> Merge:
  """Returns the merge of that name, if it can be applied to these."""
  merge = find(method)
  count = stack.size(parents)
  _check_arity(merge, count)
  leaves.check_layers(parents, layers)
  _check_base(merge, parents, base)
  if merge.draws:
    _check_key(merge, key)
  check_options(merge, options)
  by_leaf = [n for n, v in (parameters or {}).items() if isinstance(v, Mapping)]
  if options.get('span') == 'genome' and by_leaf:
    raise ValueError(
      f'Got values by leaf for {by_leaf} of {merge.name} over the whole '
      "genome; expected one value. Choose span='tensor', or one number."
    )
  check_values(merge, parameters or {})
  _check_shapes(merge, parents, parameters or {}, count, layers)
  return merge


def find_parameter(merge: Merge, name: str) -> Parameter:
  """Returns the merge's parameter of that name."""
  return option_checks.find(name, merge.parameters, merge.name, 'parameter')


def check_options(merge: Merge, options: Mapping[str, Any]) -> None:
  """Refuses options that the merge does not have, and their wrong choices."""
  for name, choice in options.items():
    if name in merge.parameters:
      raise ValueError(
        f'Got the parameter {name!r} of {merge.name} as an option; expected it '
        f'in parameters={{{name!r}: ...}}.'
      )
    option = option_checks.find(name, merge.options, merge.name)
    option.check(choice, merge.name)


def check_values(merge: Merge, parameters: Mapping[str, Any]) -> None:
  """Refuses parameters that the merge does not have, and values out of range.

  Values are arrays, or such by leaf; what is traced passes.
  """
  for name, value in parameters.items():
    find_parameter(merge, name).check_known(value, merge.name)


def _check_key(merge, key):
  wanted = (
    'Give one typed key for each child, such as the fold_in of '
    "jax.random.key(seed, impl='threefry2x32')."
  )
  if key is None:
    raise ValueError(f'{merge.name} draws; got no key. {wanted}')
  kind = getattr(key, 'dtype', type(key).__name__)
  if not hasattr(key, 'dtype') or not jnp.issubdtype(kind, jax.dtypes.prng_key):
    raise ValueError(f'{merge.name} draws; got a key of {kind}. {wanted}')
  impl = str(jax.random.key_impl(key))
  if key.shape or impl != 'threefry2x32':
    raise ValueError(
      f'{merge.name} draws; got a key of {impl} of shape {key.shape}. {wanted}'
    )


def _check_arity(merge, count):
  if count < merge.least or (merge.most is not None and count > merge.most):
    if merge.most is None:
      wanted = f'at least {merge.least}'
    elif merge.least == merge.most:
      wanted = f'exactly {merge.least}'
    else:
      wanted = f'{merge.least} to {merge.most}'
    raise ValueError(
      f'Got {count} parents for {merge.name}; expected {wanted}. The base is '
      'not one of them.'
    )


def _check_base(merge, parents, base):
  if base is None:
    if merge.needs_base:
      raise ValueError(
        f'{merge.name} merges what parents change of a base; got no base. '
        'Give the model they were trained from, or zeros for adapters.'
      )
    return
  if merge.base == 'none':
    raise ValueError(f'{merge.name} takes no base, but got one. Leave it out.')
  if jax.tree.structure(base) != jax.tree.structure(parents):
    raise ValueError(
      'The base differs from the parents in structure; expected the same tree '
      'without the leading axis of parents.'
    )

  def check_leaf(path, ours, theirs):
    if ours.shape[1:] != theirs.shape or ours.dtype != theirs.dtype:
      raise ValueError(
        f'Leaf {leaves.name(path)}: the base is {theirs.dtype}'
        f'{list(theirs.shape)}, the parents {ours.dtype}'
        f'{list(ours.shape[1:])} each; expected equal ones. Pad or convert.'
      )

  jax.tree_util.tree_map_with_path(check_leaf, parents, base)


def _check_shapes(merge, parents, parameters, count, layers):
  shapes = _tensor_shapes(parents, layers)
  for name, value in parameters.items():
    allowed = [()]
    if merge.parameters[name].per_model:
      allowed.append((count,))
    if not isinstance(value, Mapping):
      _check_shape(merge, name, value, allowed)
      continue
    if set(value) != set(shapes):
      missing = sorted(set(shapes) ^ set(value))
      raise ValueError(
        f'Parameter {name!r} differs by leaf and does not match the genome at '
        f'{missing}; expected one entry for each leaf. Make it with '
        'parameters.resolve.'
      )
    for leaf, layers in shapes.items():
      _check_shape(
        merge,
        f'{name} of {leaf}',
        value[leaf],
        [(*layers, *shape) for shape in allowed],
      )


def _tensor_shapes(parents, layers):
  """By leaf name, (L,) where the leaf has that axis, else ()."""
  flat = jax.tree_util.tree_flatten_with_path(parents)[0]
  return {
    leaves.name(path): leaf.shape[1:2]
    if leaves.is_layered(path, layers)
    else ()
    for path, leaf in flat
  }


def _check_shape(merge, name, value, allowed):
  if jnp.shape(value) not in allowed:
    raise ValueError(
      f'Got {name} of shape {jnp.shape(value)} for {merge.name}; expected '
      f'{" or ".join(map(str, allowed))}.'
    )
