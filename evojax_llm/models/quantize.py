"""Kernels in eight bits: the base of a search is read and never written.

Every column of a kernel, that is every output, has a step of its own: the
largest of its weights is 127 steps. Activations, embedding and norms keep their
types, and products accumulate in f32, so that memory and the reading of weights
shrink and nothing else changes (weight-only quantisation as in LLM.int8(),
arXiv 2208.07339, without its outliers).
"""

from typing import Any

import jax
import jax.numpy as jnp

_STEPS = 127.0


def quantize(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters with int8 kernels (..., in, out) and f32 steps (..., out).

  Args:
    params: parameter tree; kernels in any floating type.
  """
  return {
    name: _quantize(node) if isinstance(node, dict) else node
    for name, node in params.items()
  }


def _quantize(node: dict[str, Any]) -> dict[str, Any]:
  if 'kernel' not in node:
    return quantize(node)
  kernel, step = _round(node['kernel'])
  return {**node, 'kernel': kernel, 'step': step}


@jax.jit
def _round(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  kernel = kernel.astype(jnp.float32)
  step = jnp.max(jnp.abs(kernel), axis=-2) / _STEPS
  # A column of zeros has any step.
  step = jnp.where(step > 0, step, 1.0)
  rounded = jnp.round(kernel / step[..., None, :])
  return rounded.astype(jnp.int8), step
