"""Soft tokens of images among the embeddings of a text."""

from typing import Any

import jax
import jax.numpy as jnp

# In parameter trees, beside those of the model.
NAME = 'soft_tokens'


def beside(params: dict[str, Any], soft: jax.Array | None) -> dict[str, Any]:
  """Returns parameters with soft tokens (n, S, D) beside them, if any."""
  return params if soft is None else {**params, NAME: soft}


def put(
  soft: jax.Array,
  x: jax.Array,
  tokens: jax.Array,
  visible: jax.Array,
  vocab_size: int,
  start: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
  """Puts soft tokens in their places, where those of an image see each other.

  Which other tokens they see, and are seen by, stays as it is.

  Args:
    soft: (n, S, D) the soft tokens of n images.
    x: (B, T, D) embeddings; any where a soft token comes.
    tokens: (B, T) i32; V + i S + j for soft token j of image i, whose tokens
      are neighbours.
    visible: (B, T, keys) bool, the keys that a query sees.
    vocab_size: V.
    start: () i32, where the keys of these tokens begin.

  Returns:
    x and visible.
  """
  at = tokens - vocab_size
  rows = jnp.take(soft.reshape(-1, soft.shape[-1]), jnp.maximum(at, 0), axis=0)
  x = jnp.where((at >= 0)[..., None], rows.astype(x.dtype), x)
  # The column in which an image begins; -1 of text.
  first = jnp.arange(tokens.shape[-1], dtype=jnp.int32) - at % soft.shape[1]
  first = jnp.where(at >= 0, first, -1)
  together = (first[:, :, None] == first[:, None]) & (at >= 0)[:, None]
  where = (0, 0, start)
  own = jax.lax.dynamic_slice(visible, where, together.shape) | together
  return x, jax.lax.dynamic_update_slice(visible, own, where)
