"""Attention of one new token a row to the keys of its slot, and to a prefix.

Written for one member and mapped over members. Keys lie as the products want
them, (row, key head, column, width), so that nothing is transposed.
"""

import jax
import jax.numpy as jnp

from evojax_llm.models.linear import softcap as soft_cap

IMPLEMENTATIONS = ('plain',)
# Finite, so that a row that sees no key stays finite.
_MASKED = -1e30


def decode_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: jax.Array,
  query_positions: jax.Array,
  *,
  scale: float,
  prefix: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  window: int | jax.Array | None = None,
  softcap: float | None = None,
  columns: jax.Array | None = None,
  implementation: str = 'plain',
) -> jax.Array:
  """Returns what each query reads, (B, Kv, G, h) in the type of q.

  A query sees the keys of positions from 0 to its own, within its window.

  Args:
    q: (B, Kv, G, h), the G query heads of each key head.
    k: (B, Kv, S, h) keys.
    v: (B, Kv, S, h) values.
    positions: (B, S) i32 of the keys; -1 for an empty column.
    query_positions: (B,) i32; -1 for a slot without work, whose result is
      finite and means nothing.
    scale: of the scores.
    prefix: keys (Kv, T, h), values and positions (T,) that all rows share.
    window: keys that a query sees, its own included; None for all.
    softcap: see `linear.softcap`.
    columns: () i32, columns in use: those behind are empty. All by default.
    implementation: 'plain', which reads all columns.
  """
  del columns
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation is {implementation!r}; expected one of '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )
  parts = [('bksh', k, v)]
  if prefix is not None:
    keys, values, first = prefix
    parts.insert(0, ('ksh', keys, values))
    first = jnp.broadcast_to(first, (positions.shape[0], first.shape[0]))
    positions = jnp.concatenate([first, positions], axis=-1)
  scores = [
    jnp.einsum(
      f'bkgh,{axes}->bkgs', q, keys, preferred_element_type=jnp.float32
    )
    for axes, keys, _ in parts
  ]
  scores = soft_cap(jnp.concatenate(scores, axis=-1) * scale, softcap)
  distance = query_positions[:, None] - positions
  visible = (positions >= 0) & (distance >= 0)
  if window is not None:
    visible = visible & (distance < window)
  scores = jnp.where(visible[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
  border = weights.shape[-1] - k.shape[2]
  weights = [weights[..., border:]] + [weights[..., :border]] * (border > 0)
  return sum(
    jnp.einsum(
      f'bkgs,{axes}->bkgh', part, values, preferred_element_type=jnp.float32
    )
    for part, (axes, _, values) in zip(weights, parts[::-1], strict=True)
  ).astype(q.dtype)
