"""What operators need to know of a genome's leaves, read from their paths.

Leaves below a key 'layers' carry the layer axis L in front (before it, in a
population, P), so that one leaf holds L matrices. A leaf named 'b' is the
second factor of an adapter; its size is the adapter's mass, because the change
of the model is a b. A leaf named 'kernel', 'a' or 'b' is (..., in, out), where
Hugging Face and PEFT store (out, in); every other leaf is as stored there.
"""

from collections.abc import Callable
from typing import Any

import jax

LAYERS = 'layers'
SECOND_FACTOR = 'b'
FACTORS = ('a', 'b')
TRANSPOSED = ('kernel', *FACTORS)


def _names(path: tuple[Any, ...]) -> list[Any]:
  return [getattr(entry, 'key', getattr(entry, 'idx', None)) for entry in path]


def _last(path: tuple[Any, ...]) -> Any:
  return _names(path)[-1] if path else None


def name(path: tuple[Any, ...]) -> str:
  """A jax.tree_util path as text, such as 'layers/mlp/up_proj/kernel'."""
  return '/'.join(map(str, _names(path)))


def module(path: tuple[Any, ...]) -> str:
  """As `name`, but the same for both factors of an adapted matrix."""
  names = _names(path)
  return '/'.join(map(str, names[:-1] if _last(path) in FACTORS else names))


def row_axis(path: tuple[Any, ...], rank: int) -> int:
  """The axis along a row of one matrix as others store it, (out, in).

  Args:
    path: where the leaf is.
    rank: number of axes of the matrix, without L.

  Returns:
    -2 for a matrix kept as (in, out), else -1.
  """
  return -2 if rank > 1 and _last(path) in TRANSPOSED else -1


def is_layered(path: tuple[Any, ...], layers: str | None = LAYERS) -> bool:
  """Whether the leaf at a jax.tree_util path has the layer axis L.

  Args:
    path: where the leaf is.
    layers: key below which leaves have it; None where none has it.
  """
  return layers is not None and layers in _names(path)[:-1]


def is_second_factor(path: tuple[Any, ...]) -> bool:
  """Whether the leaf at a jax.tree_util path is a factor B."""
  return _last(path) == SECOND_FACTOR


def has_factors(genome: Any) -> bool:
  """Whether a genome is made of adapter factors."""
  paths = jax.tree_util.tree_flatten_with_path(genome)[0]
  return any(is_second_factor(path) for path, _ in paths)


def map_indexed(function: Callable[..., Any], genome: Any, *others: Any) -> Any:
  """Maps function(index, path, leaf, *other_leaves) over the leaves.

  The index counts the leaves in jax.tree order; it addresses a leaf's key.
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(genome)
  columns = [structure.flatten_up_to(other) for other in others]
  results = [
    function(index, path, leaf, *(column[index] for column in columns))
    for index, (path, leaf) in enumerate(flat)
  ]
  return jax.tree.unflatten(structure, results)
