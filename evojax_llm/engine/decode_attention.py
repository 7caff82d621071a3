"""Attention of one new token a row over a cache of keys and values.

The softmax is taken apart, so that keys in several arrays need not be laid
side by side: of each part the largest score, the sum of the weights and their
sum of the values, which are added up under a common maximum.

Source: FlashAttention, algorithm 1 (arXiv 2205.14135).
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from evojax_llm.models.linear import softcap as capped

IMPLEMENTATIONS = ('plain', 'pallas', 'interpreted')
# Scores of keys that a query does not see. Finite, so that a query that sees
# no key stays finite.
MASKED = -1e30


class Part(NamedTuple):
  """Attention over a part of the keys; all f32.

  Attributes:
    top: (..., G) largest score.
    total: (..., G) sum of exp(score - top).
    values: (..., G, h) sum of exp(score - top) times the value.
  """

  top: jax.Array
  total: jax.Array
  values: jax.Array


def decode_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: jax.Array,
  query_positions: jax.Array,
  *,
  prefix: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  window: jax.Array | None = None,
  softcap: float | None = None,
  scale: float,
  implementation: str = 'plain',
  blocks: Any = None,
) -> jax.Array:
  """Returns what each query gathers, (B, Kv, G, h) in the type of q.

  Written for one member; a population is its `vmap`.

  Args:
    q: (B, Kv, G, h) the G query heads of each key head.
    k: (B, Kv, S, h) keys.
    v: (B, Kv, S, h) values.
    positions: (B, S) i32 of the keys; -1 where there is none.
    query_positions: (B,) i32; -1 for a row without work, which gets zeros.
    prefix: keys and values (Kv, T, h) that all rows see before their own, and
      their positions (T,).
    window: () i32 number of keys that a query sees, its own included; None for
      all.
    softcap: c in c * tanh(scores / c).
    scale: multiplies the scores.
    implementation: 'plain'; 'pallas', a kernel for GPUs; or 'interpreted', the
      same kernel on any device, slowly.
    blocks: `decode_kernel.Blocks`, by default chosen by size.

  Raises:
    ValueError: there is no such implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'Got implementation {implementation!r}; expected one of '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )

  def visible(key_positions):
    distance = query_positions[:, None] - key_positions
    seen = (key_positions >= 0) & (distance >= 0)
    return seen if window is None else seen & (distance < window)

  def part(axes, k, v, visible):
    return _part(axes, q, k, v, visible, scale, softcap)

  first, seen = None, visible(positions)
  if prefix is not None:
    # One product for all rows, which read the keys once.
    first = part('kth', prefix[0], prefix[1], visible(prefix[2][None]))
  if implementation != 'plain':
    from evojax_llm.engine import decode_kernel  # Not needed on other devices.

    return decode_kernel.attend(
      q,
      k,
      v,
      positions,
      query_positions,
      seen,
      first,
      window=window,
      softcap=softcap,
      scale=scale,
      interpret=implementation == 'interpreted',
      blocks=blocks,
    )
  found = part('bkth', k, v, seen)
  if first is not None:
    found = _together(first, found)
  # A query that sees a key has a total of at least 1.
  y = found.values / jnp.maximum(found.total, 1.0)[..., None]
  return y.astype(q.dtype)


def _part(axes, q, k, v, visible, scale, softcap) -> Part:
  """Attention of q (B, Kv, G, h) over keys that `visible` (B, T) says."""
  scores = jnp.einsum(
    f'bkgh,{axes}->bkgt', q, k, preferred_element_type=jnp.float32
  )
  visible = visible[:, None, None]
  scores = jnp.where(visible, capped(scores * scale, softcap), MASKED)
  top = scores.max(axis=-1)
  weights = jnp.where(visible, jnp.exp(scores - top[..., None]), 0.0)
  values = jnp.einsum(
    f'bkgt,{axes}->bkgh',
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return Part(top, weights.sum(axis=-1), values)


def _together(a: Part, b: Part) -> Part:
  """Attention over the keys of both parts."""
  top = jnp.maximum(a.top, b.top)
  of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
  return Part(
    top,
    of_a * a.total + of_b * b.total,
    of_a[..., None] * a.values + of_b[..., None] * b.values,
  )
