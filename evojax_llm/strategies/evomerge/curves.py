"""Positions between two parents by depth and by class of tensor.

EvoMerge (arXiv 2402.00070) interpolates attention along one curve over depth,
MLPs along another, and all other tensors at one position.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import parameters
from evojax_llm.population import stack

CURVES = ('cosine', 'default')
# Tensors of a class have this in their name, attention first.
CLASSES = ('self_attn', 'mlp')
# Through these values, spread evenly over depth.
DEFAULT = {'self_attn': (0, 0.5, 0.3, 0.7, 1), 'mlp': (1, 0.5, 0.7, 0.3, 0)}
# What a cosine curve is drawn from, evenly: (s, c).
SHIFTS = (0.0, 0.5, 1.0)
CYCLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 6.0)
DRAWN = tuple(itertools.product(SHIFTS, CYCLES))


def cosine(layers: int) -> np.ndarray:
  """Returns the curves of all `DRAWN`, (27, L) f32.

  v_l = cos(2 pi c l / (L - 1) + pi s), rescaled to 0 to 1 and rounded to two
  decimals; NaN where all of a curve is one number, as in a single layer.
  """
  # In double precision: what is constant up to rounding must show.
  depth = np.linspace(0.0, 1.0, layers)
  s, c = np.asarray(DRAWN).T[:, :, None]
  values = np.cos(2 * np.pi * c * depth + np.pi * s)
  low = values.min(axis=1, keepdims=True)
  reach = values.max(axis=1, keepdims=True) - low
  flat = reach < 1e-9
  scaled = np.round((values - low) / np.where(flat, 1.0, reach), 2)
  return np.where(flat, np.nan, scaled).astype(np.float32)


def positions(
  curve: str,
  genome: stack.Genome,
  drawn: jax.Array,
  rest: jax.Array,
  layers: str | None,
) -> dict[str, jax.Array]:
  """Returns t by leaf name, as `merges.lift.genome` takes it.

  Args:
    curve: one of CURVES.
    genome: one genome, or its shapes.
    drawn: (2,) i32 into `DRAWN`, of attention and of MLPs, for 'cosine'.
    rest: () f32, t of all other tensors.
    layers: key below which leaves have the axis L.

  Returns:
    (L,) f32, or () of a leaf without L.
  """
  filters: list[Any] = [
    {'filter': name, 'value': list(DEFAULT[name])} for name in CLASSES
  ]
  fixed = parameters.resolve(
    'slerp', genome, {'t': [*filters, {'value': 0.0}]}, layers=layers
  )['t']
  t = {}
  for name, along in fixed.items():
    which = [i for i, text in enumerate(CLASSES) if text in name]
    if not which or not along.ndim:
      t[name] = jnp.broadcast_to(rest, along.shape)
    elif curve == 'default':
      t[name] = jnp.asarray(along)
    else:
      values = cosine(len(along))
      chosen = jnp.asarray(values)[drawn[which[0]]]
      t[name] = jnp.where(jnp.isnan(chosen), rest, chosen)
  return t


def describe(curve: str, drawn: np.ndarray) -> dict[str, Any]:
  """Returns what is written down of a child's curves."""
  if curve == 'default':
    return {'curve': curve}
  both = zip(('attention', 'mlp'), drawn, strict=True)
  return {'curve': curve} | {
    name: dict(zip(('s', 'c'), DRAWN[which], strict=True))
    for name, which in both
  }
