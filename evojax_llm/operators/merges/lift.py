"""Merges of whole genomes, and of many members at once.

A leaf with the layer axis L in front (below the key `layers`) is L tensors;
every other leaf is one tensor. Adapters are merged factor by factor.

A parameter is () or (k,) for all tensors alike, or differs by leaf:
{leaves.name(path): array}, the array with L in front where the leaf has it
(`parameters.resolve` makes such). Draws are addressed: a tensor's key is the
given key with the crc of the leaf's name and the layer folded in.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import check
from evojax_llm.operators.merges import small
from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.operator import Merge
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import stack

Parameters = Mapping[str, Any]


def genome(
  method: str | Merge,
  parents: stack.Population | Sequence[stack.Genome],
  base: stack.Genome | None = None,
  *,
  key: jax.Array | None = None,
  parameters: Parameters | None = None,
  layers: str | None = None,
  first: jax.Array | int = 0,
  **options: Any,
) -> stack.Genome:
  """Merges k parents into one child.

  Args:
    method: a name in `registry.MERGES`, or what else `registry.find` takes.
    parents: a list of k genomes, or leaves (k, ...) or (k, L, ...).
    base: a genome, for methods that take one.
    key: () typed key, for methods that draw.
    parameters: by name, each () or (k,) for all tensors alike, or by leaf as
      `resolve` makes it; the defaults of the table for the rest.
    layers: key below which leaves have the axis L; None where none has it.
    first: layer of a model that is the first of the L, where they are a part.
    **options: static choices of the table.

  Returns:
    A genome in the parents' types.

  Raises:
    ValueError: if arity, base, key, a parameter or an option is not what the
      table says, or shapes do not fit. Values of parameters are looked at where
      they are known; in a program they are cut to their range.
  """
  if isinstance(parents, (list, tuple)):
    parents = stack.stack(parents)
  parents, base = jax.tree.map(jnp.asarray, (parents, base))
  merge = check.checked(method, parents, base, key, parameters, options, layers)
  given = {
    name: _cut(parameter, (parameters or {}).get(name, parameter.default))
    for name, parameter in merge.parameters.items()
  }
  if merge.whole and options.pop('span', 'tensor') == 'genome':
    return merge.whole(parents, **given)
  cuts = {}
  if 'cuts' in merge.signature:
    cuts = _shared_cuts(given, layers, parents, base)
  merge_leaf = functools.partial(
    _merge_leaf, merge, options, key, given, cuts, layers, first
  )
  if base is None:
    return leaves.map_indexed(merge_leaf, parents)
  return leaves.map_indexed(merge_leaf, parents, base)


def population(
  method: str | Merge,
  pool: stack.Population,
  rows: jax.Array,
  base: stack.Genome | None = None,
  *,
  keys: jax.Array | None = None,
  parameters: Parameters | None = None,
  batch: int | None = None,
  layers: str | None = None,
  **options: Any,
) -> stack.Population:
  """Merges M children, each of its own k parents in a shared pool.

  Args:
    method: as in `merge`.
    pool: P genomes, leaves (P, ...).
    rows: (M, k) i32 indices of the parents in the pool.
    base: one genome, shared.
    keys: (M,) typed keys, for methods that draw.
    parameters: as in `merge`, every array with M in front; a number counts for
      all children.
    batch: so many children at a time, which bounds the memory for parents
      gathered from the pool; all of them by default.
    layers: as in `merge`.
    **options: static choices of the table.

  Raises:
    ValueError: as in `merge`, an index is outside of the pool where it is
      known, or rows, keys or an array lack the axis M.
  """
  pool, rows = jax.tree.map(jnp.asarray, pool), jnp.asarray(rows)
  children = _check_children(rows, keys, stack.size(pool))
  check.check_values(check.find(method), parameters or {})

  def child(row, key, values):
    parents = jax.tree.map(lambda leaf: leaf[row], pool)
    return genome(
      method,
      parents,
      base,
      key=key,
      parameters=values,
      layers=layers,
      **options,
    )

  values = jax.tree.map(
    lambda value: _by_child(value, children), dict(parameters or {})
  )
  each = (rows, keys, values)
  if batch is None:
    return jax.vmap(child)(*each)
  return jax.lax.map(lambda one: child(*one), each, batch_size=batch)


def _cut(parameter, value):
  """The value as f32, or by leaf, kept to what the parameter can be."""
  if isinstance(value, Mapping):
    return {leaf: _cut(parameter, one) for leaf, one in value.items()}
  value = jnp.asarray(value, jnp.float32)
  if math.isinf(parameter.low) and math.isinf(parameter.high):
    return value
  return jnp.clip(value, parameter.low, parameter.high)


def _check_children(rows, keys, size):
  """The number of children."""
  shape = jnp.shape(rows)
  if len(shape) != 2 or not jnp.issubdtype(rows.dtype, jnp.integer):
    raise ValueError(
      f'Got rows of {rows.dtype}{list(shape)}; expected whole numbers (M, k), '
      'the indices of the k parents of each of M children.'
    )
  if not isinstance(rows, jax.core.Tracer):
    each = np.unique(np.asarray(rows))
    outside = each[(each < 0) | (each >= size)].tolist()
    if outside:
      raise ValueError(
        f'Got rows with {outside} for a pool of {size} genomes; expected '
        f'indices 0 to {size - 1}.'
      )
  if keys is not None and jnp.shape(keys)[:1] != shape[:1]:
    raise ValueError(
      f'Got keys of shape {jnp.shape(keys)} for {shape[0]} children; expected '
      'one typed key for each.'
    )
  return shape[0]


def _by_child(value, children):
  """An array (M, ...) of a parameter."""
  value = jnp.asarray(value, jnp.float32)
  if not value.ndim:
    return jnp.broadcast_to(value, (children,))
  if value.shape[0] != children:
    raise ValueError(
      f'Got a parameter of shape {value.shape} for {children} children; '
      'expected a number for all of them, or their number in front.'
    )
  return value


def _shared_cuts(parameters, layers, parents, base):
  """The cuts of `sparsify` by leaf, of all tensors that share a search."""
  groups, shapes = {}, {}
  whole = sum(jnp.size(leaf) for leaf in jax.tree.leaves((parents, base)))

  def add(index, path, parents, base):
    del index
    layered = leaves.is_layered(path, layers)
    inputs = [*parents, base] if layered else [*parents[:, None], base[None]]
    size = inputs[0][0].size
    if not small.shares(size, whole):
      return
    name = leaves.name(path)
    values, over_layers = _of_leaf(parameters, name)

    def ranks(values):
      gamma = values.get('gamma')
      return sparsify.ranks(len(parents), size, values['density'], gamma)

    # Numbers of a leaf with no layers count for the one that it is here.
    over_layers = over_layers if layered else dict.fromkeys(over_layers)
    mapped = jax.vmap(ranks, (over_layers,), axis_size=len(inputs[0]))(values)
    groups[name] = sparsify.group(inputs, mapped)
    shapes[name] = layered

  leaves.map_indexed(add, parents, base)
  if not groups:
    return {}
  found = dict(zip(groups, small.top(list(groups.values())), strict=True))
  return {
    name: cuts if shapes[name] else jax.tree.map(lambda x: x[0], cuts)
    for name, cuts in found.items()
  }


def _of_leaf(parameters, name):
  """The parameters of a leaf, and which axis is the layers' where it has it."""
  by_leaf = {n for n, v in parameters.items() if isinstance(v, Mapping)}
  values = {n: v[name] if n in by_leaf else v for n, v in parameters.items()}
  return values, {n: 0 if n in by_leaf else None for n in values}


def _merge_leaf(
  merge,
  options,
  key,
  parameters,
  cuts,
  layers,
  first,
  index,
  path,
  parents,
  *base,
):
  del index
  layered = leaves.is_layered(path, layers)
  name = leaves.name(path)
  values, over_layers = _of_leaf(parameters, name)
  if name in cuts:
    values['cuts'], over_layers['cuts'] = cuts[name], 0
  if merge.by_row:
    rank = parents.ndim - 1 - layered
    options = {**options, 'axis': leaves.row_axis(path, rank)}

  def apply(parents, base, key, values):
    drawn = {'key': key} if merge.draws else {}
    return merge(parents, *base, **drawn, **values, **options)

  key = _leaf_key(merge, key, path, layered)
  if not layered:
    return apply(parents, base, key, values)
  tensor_keys = None
  if merge.draws:
    tensor_keys = _layer_keys(merge, key, parents.shape[1], first)
  mapped = jax.vmap(apply, in_axes=(1, 0, 0, over_layers))
  return mapped(parents, base, tensor_keys, values)


def _leaf_key(merge, key, path, layered):
  """The key of a leaf; those that share a draw share the key."""
  if not merge.draws or merge.scope == 'genome':
    return key
  if merge.scope == 'layer':
    name = leaves.LAYERS if layered else ''
  elif merge.scope == 'matrix':
    name = leaves.module(path)
  else:
    name = leaves.name(path)
  return jax.random.fold_in(key, keys.purpose_code(name))


def _layer_keys(merge, key, layers, first):
  if merge.scope == 'genome':
    return jnp.broadcast_to(key, (layers,))
  each = jnp.asarray(first, jnp.uint32) + jnp.arange(layers, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, each)
