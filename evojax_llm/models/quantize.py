"""Kernels in eight bits, for a base that is read and never written.

Every column of a kernel (one output) has its own step, 1/127 of its largest
weight. Activations, embedding and norms keep their types and products
accumulate in f32: weight-only quantisation as in LLM.int8() (arXiv 2208.07339),
without its outliers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_STEPS = 127.0


@jax.jit
def round_kernel(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds a kernel (..., in, out) to int8 and steps (..., out) f32."""
  kernel = kernel.astype(jnp.float32)
  step = jnp.max(jnp.abs(kernel), axis=-2) / _STEPS
  step = jnp.where(step > 0, step, 1.0)  # Any step fits a column of zeros.
  rounded = jnp.round(kernel / step[..., None, :])
  return rounded.astype(jnp.int8), step


def quantize(
  params: dict[str, Any],
  rounded: Callable[[jax.Array], tuple[jax.Array, jax.Array]] = round_kernel,
) -> dict[str, Any]:
  """Returns parameters with int8 kernels (..., in, out) and f32 steps.

  Args:
    params: parameter tree; kernels in any floating type.
    rounded: makes kernel and step; a caller may remember what it made.
  """
  if 'kernel' in params:
    kernel, step = rounded(params['kernel'])
    return {**params, 'kernel': kernel, 'step': step}
  return {
    name: quantize(node, rounded) if isinstance(node, dict) else node
    for name, node in params.items()
  }
