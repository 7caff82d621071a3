"""Groups of tensors that share genes: by depth, by module, or both."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import merged_options
from evojax_llm.models.config import Stack
from evojax_llm.population import leaves

OTHER = 'other'


@dataclasses.dataclass(frozen=True)
class Groups:
  """G groups, and of every leaf the groups that its tensors are in.

  A tensor's number is the group's at `low` times 1 - share, plus that at
  `high` times share; between the knots of a curve share is not zero.

  Attributes:
    names: (G,) such as 'model', 'layers 0-3' or 'layer 2, q_proj'.
    low: by leaf name, (L,) i32, or () of a leaf without the axis L.
    high: likewise.
    share: likewise, f32.
  """

  names: tuple[str, ...]
  low: Mapping[str, np.ndarray]
  high: Mapping[str, np.ndarray]
  share: Mapping[str, np.ndarray]

  def spread(self, numbers: jax.Array) -> dict[str, jax.Array]:
    """Returns numbers (G, ...) by leaf name, (L, ...) or (...)."""
    return {leaf: self._of(leaf, numbers) for leaf in self.low}

  def _of(self, leaf, numbers):
    low, high = (jnp.asarray(x[leaf]) for x in (self.low, self.high))
    share = jnp.asarray(self.share[leaf], jnp.float32)
    share = share.reshape(share.shape + (1,) * (numbers.ndim - 1))
    mixed = numbers[low] * (1.0 - share) + numbers[high] * share
    return jnp.where(share > 0.0, mixed, numbers[low])


def make(
  text: str, layers: int, tree: Any, stacks: Sequence[Stack] = ()
) -> Groups:
  """Makes the groups of a text.

  Args:
    text: one of 'model', 'layer', 'layers:K' (blocks of K) and 'knots:K' (a
      curve through K knots over depth, as mergekit's gradients), with or
      without one of 'class' (each projection) and 'filters:A/B' (names with
      the text A, with B, the others), and a comma between the two.
    layers: L.
    tree: one genome of tensors, of which the names count.
    stacks: those of the model, where layers differ in shape.

  Raises:
    ValueError: a part is unknown or does not suit the model.
  """
  depth, module = parts(text)
  of_stack = {stack.name: stack.layers for stack in stacks}
  # By leaf, the layers that it has; None of a leaf without the axis L.
  names: dict[str, np.ndarray | None] = {}
  for path, _ in jax.tree.leaves_with_path(tree):
    name, own = leaves.name(path), None
    if leaves.is_layered(path, leaves.LAYERS):
      stack = name.partition(f'{leaves.LAYERS}/')[2].partition('/')[0]
      own = np.array(of_stack.get(stack, range(layers)))
    names[name] = own
  check_depth(depth, layers)
  of_depth, positions = _by_depth(depth, layers)
  of_module, place = _by_module(module, list(names))
  width = len(of_module)

  # As in mergekit, where a curve is at its beginning outside of the layers, and
  # what follows them is merged as the last of them are.
  last = 0 if depth.startswith('knots') else -1

  def group(leaf: str, which: int) -> np.ndarray:
    own = names[leaf]
    if own is None:
      own = last if 'final' in leaf else 0
    return np.asarray(positions[which][own] * width + place[leaf], np.int32)

  return Groups(
    tuple(
      ', '.join(filter(None, (one, other))) or 'model'
      for one in of_depth
      for other in of_module
    ),
    {leaf: group(leaf, 0) for leaf in names},
    {leaf: group(leaf, 1) for leaf in names},
    {
      leaf: np.asarray(0.0 if own is None else positions[2][own], np.float32)
      for leaf, own in names.items()
    },
  )


def parts(text: str) -> tuple[str, str]:
  """The part that is of depth, and the one that is of modules."""
  depth, module = [], []
  for part in merged_options.names(text):
    kind = part.partition(':')[0]
    if kind in ('model', 'layer', 'layers', 'knots'):
      depth.append(part)
    elif kind in ('class', 'filters'):
      module.append(part)
    else:
      raise ValueError(
        f"Got the group {part!r}; expected 'model', 'layer', 'layers:K' or "
        "'knots:K', and behind a comma 'class' or 'filters:A/B'."
      )
  if len(depth) > 1 or len(module) > 1 or not (depth or module):
    raise ValueError(
      f'Got groups {text!r}; expected one of depth (model, layer, layers:K, '
      'knots:K), one of modules (class, filters:A/B), or one of each.'
    )
  return (depth or ['model'])[0], (module or [''])[0]


def _whole(part: str, least: int) -> int:
  """The number K behind the colon."""
  text = part.partition(':')[2]
  if not text.isdecimal() or int(text) < least:
    raise ValueError(
      f'Got groups {part!r}; expected a whole number from {least} on behind '
      'the colon.'
    )
  return int(text)


def check(text: str) -> None:
  """Refuses a text that suits no model."""
  depth, module = parts(text)
  if ':' in depth:
    _whole(depth, 2 if depth.startswith('knots') else 1)
  if module.startswith('filters') and not module.partition(':')[2].strip('/'):
    raise ValueError(f"Got groups {module!r}; expected 'filters:A/B'.")


def check_depth(text: str, layers: int) -> None:
  """Refuses blocks of layers that do not divide a model's L."""
  depth, _ = parts(text)
  if depth.startswith('layers') and layers % _whole(depth, 1):
    sizes = [n for n in range(1, layers + 1) if not layers % n]
    raise ValueError(
      f'Got groups {depth!r} for a model of {layers} layers; expected a block '
      f'size that divides them: {", ".join(map(str, sizes))}.'
    )


def _by_depth(part: str, layers: int):
  """Names, and (L,) indices below and above each layer and its share."""
  depth, zeros = np.arange(layers), np.zeros(layers)
  if part.startswith('knots'):
    count = _whole(part, 2)
    at = np.linspace(0.0, count - 1.0, layers) if layers > 1 else zeros + 1.0
    low = np.minimum(at.astype(int), count - 2)
    names = [f'knot {k}' for k in range(count)]
    return names, (low, low + 1, at - low)
  if part == 'model':
    return [''], (zeros.astype(int),) * 2 + (zeros,)
  size = _whole(part, 1) if part.startswith('layers') else 1
  names = [f'layer {layer}' for layer in depth]
  if size > 1:
    names = [f'layers {n}-{n + size - 1}' for n in range(0, layers, size)]
  return names, (depth // size,) * 2 + (zeros,)


def _by_module(part: str, names: Sequence[str]):
  """Names of groups, and the index of each leaf's."""
  if not part:
    return [''], dict.fromkeys(names, 0)
  kind, _, text = part.partition(':')
  if kind == 'class':
    found = {name: module_of(name) for name in names}
  else:
    filters = [piece.strip() for piece in text.split('/') if piece.strip()]
    found = {
      name: next((one for one in filters if one in name), OTHER)
      for name in names
    }
    for one in filters:
      if one not in found.values():
        raise ValueError(
          f'Got groups {part!r}, and no tensor is the first to match {one!r}; '
          f'expected a text in names such as {", ".join(list(names)[:4])}.'
        )
  groups = list(dict.fromkeys(found.values()))
  return groups, {name: groups.index(of) for name, of in found.items()}


@functools.cache
def module_of(name: str) -> str:
  """The module that a leaf belongs to: 'q_proj' of 'layers/.../q_proj/a'."""
  parts = name.split('/')
  return parts[-2] if len(parts) > 1 else parts[0]
