"""What a merge was given, held against the table before compilation."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import registry
from evojax_llm.operators.merges.method import Merge
from evojax_llm.operators.merges.method import Parameter
from evojax_llm.population import leaves
from evojax_llm.population import stack


def checked(
  method: str,
  parents: stack.Population,
  base: stack.Genome | None,
  key: jax.Array | None,
  parameters: Mapping[str, Any] | None,
  options: Mapping[str, Any],
) -> Merge:
  """The merge of that name, if it can be applied to these.

  Raises:
    ValueError: saying what was given, what was expected and what to do.
  """
  merge = find(method)
  count = stack.size(parents)
  _check_arity(merge, count)
  _check_base(merge, parents, base)
  if merge.draws:
    _check_key(merge, key)
  check_options(merge, options)
  by_leaf = [n for n, v in (parameters or {}).items() if isinstance(v, Mapping)]
  if options.get('span') == 'genome' and by_leaf:
    raise ValueError(
      f'Got values by leaf for {by_leaf} of {method} over the whole genome; '
      "expected one value. Take span='tensor', or one number."
    )
  check_values(merge, parameters or {})
  _check_shapes(merge, parents, parameters or {}, count)
  return merge


def find(method: str) -> Merge:
  """The merge of that name.

  Raises:
    ValueError: if there is none.
  """
  if method not in registry.MERGES:
    raise ValueError(
      f'Got merge {method!r}; expected one of {sorted(registry.MERGES)}.'
    )
  return registry.MERGES[method]


def find_parameter(merge: Merge, name: str) -> Parameter:
  """The merge's parameter of that name.

  Raises:
    ValueError: if there is none.
  """
  return _entry(merge, 'parameter', name, merge.parameters)


def _entry(merge, kind, name, known, hint=''):
  if name not in known:
    raise ValueError(
      f'{merge.name} has no {kind} {name!r}; expected some of '
      f'{sorted(known)}.{hint}'
    )
  return known[name]


def check_options(merge: Merge, options: Mapping[str, Any]) -> None:
  """Refuses options and choices that are not in the table.

  Raises:
    ValueError: naming what there is.
  """
  for name, choice in options.items():
    hint = ' Parameters go into `parameters`.'
    choices = _entry(merge, 'option', name, merge.options, hint)
    number = isinstance(choices[0], int)
    fits = isinstance(choice, int) and choice > 0 if number else False
    if not fits and choice not in choices:
      wanted = 'a positive whole number' if number else f'one of {choices}'
      raise ValueError(
        f'Got {name}={choice!r} for {merge.name}; expected {wanted}.'
      )


def check_values(merge: Merge, parameters: Mapping[str, Any]) -> None:
  """Refuses parameters that there are not, and values that they cannot have.

  Args:
    merge: from `find`.
    parameters: by name, an array of any shape, or such by leaf. What is traced
      is known to the program only, and passes.

  Raises:
    ValueError: naming the parameter, the value and its range.
  """
  for name, value in parameters.items():
    entry = find_parameter(merge, name)
    for one in jax.tree.leaves(value):
      if isinstance(one, jax.core.Tracer):
        continue
      known = np.asarray(one, np.float32)
      outside = (known < entry.least) | (known > entry.most)
      wrong = known[outside | ~np.isfinite(known)]
      if wrong.size:
        raise ValueError(
          f'Got {name}={wrong.flat[0]:g} for {merge.name}; expected a finite '
          f'number {_range(entry)}: {entry.doc}.'
        )


def _range(parameter):
  low, high = (
    f'{bound:g}' if math.isfinite(bound) else ''
    for bound in (parameter.least, parameter.most)
  )
  if low and high:
    return f'from {low} to {high}'
  return f'of at least {low}' if low else 'of any size'


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


def _check_shapes(merge, parents, parameters, count):
  shapes = _tensor_shapes(parents)
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


def _tensor_shapes(parents):
  """By leaf name, (L,) below 'layers', else ()."""
  flat = jax.tree_util.tree_flatten_with_path(parents)[0]
  return {
    leaves.name(path): leaf.shape[1:2] if leaves.is_layered(path) else ()
    for path, leaf in flat
  }


def _check_shape(merge, name, value, allowed):
  if jnp.shape(value) not in allowed:
    raise ValueError(
      f'Got {name} of shape {jnp.shape(value)} for {merge.name}; expected '
      f'{" or ".join(map(str, allowed))}.'
    )
