"""Properties of a genome's leaves that operators read from their paths.

A leaf below a key 'layers' has the layer axis L (after P, in a population) and
so holds L matrices. A leaf named 'b' is the second factor of an adapter, whose
change of the model is a b. Leaves named 'kernel', 'a' or 'b' are (..., in,
out), where Hugging Face and PEFT store (out, in); others are as stored there.
"""

from collections.abc import Callable
from typing import Any

import jax

LAYERS = 'layers'
FACTORS = ('a', 'b')


def _names(path: tuple[Any, ...]) -> list[Any]:
  return [getattr(entry, 'key', getattr(entry, 'idx', None)) for entry in path]


def _last(path: tuple[Any, ...]) -> Any:
  return _names(path)[-1] if path else None


def name(path: tuple[Any, ...]) -> str:
  """Returns a tree path as text, such as 'layers/mlp/up_proj/kernel'."""
  return '/'.join(map(str, _names(path)))


def module(path: tuple[Any, ...]) -> str:
  """Returns `name` of the module: one text for both factors of an adapter."""
  names = _names(path)
  return '/'.join(map(str, names[:-1] if _last(path) in FACTORS else names))


def row_axis(path: tuple[Any, ...], rank: int) -> int:
  """Returns the axis along a row of a matrix as stored, (out, in).

  It is -2 for a matrix kept as (in, out), else -1; `rank` is the number of
  axes without L.
  """
  return -2 if rank > 1 and _last(path) in ('kernel', *FACTORS) else -1


def is_layered(path: tuple[Any, ...], layers: str | None) -> bool:
  """Whether the leaf at a path has the layer axis L.

  It has where it is below a key `layers`; with None no leaf has.
  """
  return layers is not None and layers in _names(path)[:-1]


def check_layers(genome: Any, layers: str | None) -> None:
  """Refuses a key below which a genome or population has no leaf.

  'layers' passes: that of spaces, whether or not their genomes have layers.

  Raises:
    ValueError: no leaf is below it.
  """
  paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(genome)[0]]
  if layers in (None, LAYERS) or any(is_layered(p, layers) for p in paths):
    return
  raise ValueError(
    f'Got layers {layers!r}, but no leaf is below {layers!r}; expected a key '
    f'above some of {", ".join(map(name, paths[:5]))}, or None.'
  )


def is_second_factor(path: tuple[Any, ...]) -> bool:
  """Whether the leaf at a path is the second factor of an adapter."""
  return _last(path) == 'b'


def is_factors(node: Any) -> bool:
  """Whether a node of a tree holds the two factors of one matrix."""
  return isinstance(node, dict) and set(node) == set(FACTORS)


def has_factors(genome: Any) -> bool:
  """Whether a genome has adapter factors."""
  paths = jax.tree_util.tree_flatten_with_path(genome)[0]
  return any(is_second_factor(path) for path, _ in paths)


def map_indexed(function: Callable[..., Any], genome: Any, *others: Any) -> Any:
  """Maps function(index, path, leaf, *other_leaves) over the leaves.

  The index counts leaves in jax.tree order; random keys are made of it.
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(genome)
  columns = [structure.flatten_up_to(other) for other in others]
  results = [
    function(index, path, leaf, *(column[index] for column in columns))
    for index, (path, leaf) in enumerate(flat)
  ]
  return jax.tree.unflatten(structure, results)
