"""Kernels in eight bits, for a base that is read and never written.

Every column of a kernel (one output) has its own step, 1/127 of its largest
weight. Activations, embedding and norms keep their types and products
accumulate in f32: weight-only quantisation as in LLM.int8() (arXiv 2208.07339),
without its outliers.
"""

from typing import Any

import jax
import jax.numpy as jnp

_STEPS = 127.0


def quantize(params: dict[str, Any]) -> dict[str, Any]:
  """Returns `params` with int8 kernels (..., in, out), f32 steps (..., out)."""
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
  step = jnp.where(step > 0, step, 1.0)  # Any step fits a column of zeros.
  rounded = jnp.round(kernel / step[..., None, :])
  return rounded.astype(jnp.int8), step
