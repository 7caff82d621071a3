"""Parameters that differ by depth and by module, resolved into arrays.

On the host, once, before anything is compiled. As in mergekit, a value is one
of
  a number;
  a list of numbers, a gradient over depth: the list is spread evenly over
    [0, 1] and read by linear interpolation at l / (L - 1) for layer l, at 1 in
    a model of one layer, and at 0 outside of the layers;
  a list of {'filter': text, 'value': number or gradient}: the first entry
    whose text occurs in the leaf's name, such as 'mlp/up_proj'; an entry
    without 'filter' (or with '*') takes what is left;
and `PerModel` of k such values for parameters that parents have each.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import numbers
from typing import Any

import jax
import numpy as np

from evojax_llm.operators.merges import check
from evojax_llm.operators.operator import Merge
from evojax_llm.population import leaves
from evojax_llm.population import stack


@dataclasses.dataclass(frozen=True)
class PerModel:
  """One value for each of k parents, in their order."""

  values: Sequence[Any]


def resolve(
  method: str | Merge,
  genome: stack.Genome,
  values: Mapping[str, Any],
  *,
  layers: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns arrays for every leaf, as `lift.genome` takes them.

  A value is a number; a list of numbers, a gradient over depth; a list of
  {'filter': text in the leaf's name, 'value': number or gradient}; or
  `PerModel` of k such.

  Returns:
    For one genome (arrays or shapes), by parameter and leaf name f32, () or
    (k,) with L in front where the leaf has it.

  Raises:
    ValueError: if a value is not of this kind or out of its range, no entry
      matches a leaf, or no leaf is below `layers`.
  """
  merge = check.find(method)
  leaves.check_layers(genome, layers)
  flat = jax.tree_util.tree_flatten_with_path(genome)[0]
  arrays = {
    name: {
      leaves.name(path): _for_leaf(merge, name, value, path, leaf, layers)
      for path, leaf in flat
    }
    for name, value in values.items()
  }
  check.check_values(merge, arrays)
  return arrays


def _for_leaf(merge, name, value, path, leaf, layers):
  per_model = check.find_parameter(merge, name).per_model
  depths = _depths(leaves.is_layered(path, layers), leaf)
  if not isinstance(value, PerModel):
    return _found(name, value, leaves.name(path), depths)
  if not per_model:
    raise ValueError(
      f'Got a value for each model for {name!r} of {merge.name}; expected one '
      'for all.'
    )
  columns = [_found(name, v, leaves.name(path), depths) for v in value.values]
  return np.stack(columns, axis=-1)


def _depths(layered, leaf):
  """Where between 0 and 1 each layer is, (L,); () outside of the layers."""
  if not layered:
    return np.float64(0.0)
  layers = leaf.shape[0]
  return np.linspace(0.0, 1.0, layers) if layers > 1 else np.ones(1)


def _found(name, value, leaf, depths):
  found = read(name, value, leaf, depths)
  if found is None:
    raise ValueError(
      f'No entry for {name!r} matches the leaf {leaf}; add one without a '
      "'filter' for all that is left."
    )
  return found


def read(
  name: str, value: Any, leaf: str, depths: np.ndarray
) -> np.ndarray | None:
  """Returns a value, see above, at depths (...) of a leaf, as f32 (...).

  None if it is a list of filters, and none of them matches the leaf's name.

  Raises:
    ValueError: the value is not of this kind.
  """
  if isinstance(value, numbers.Real):
    return np.full(np.shape(depths), value, np.float32)
  if not isinstance(value, Sequence) or isinstance(value, str) or not value:
    raise ValueError(
      f'Got {value!r} for {name!r}; expected a number, a list of numbers or a '
      "list of {'filter': ..., 'value': ...}."
    )
  if all(isinstance(entry, numbers.Real) for entry in value):
    marks = np.linspace(0.0, 1.0, len(value))
    return np.asarray(np.interp(depths, marks, value), np.float32)
  for entry in value:
    if not isinstance(entry, Mapping) or 'value' not in entry:
      raise ValueError(
        f'Got the entry {entry!r} for {name!r}; expected '
        "{'filter': text, 'value': number or gradient}."
      )
    wanted = entry.get('filter') or '*'
    if wanted == '*' or wanted in leaf:
      return read(name, entry['value'], leaf, depths)
  return None
