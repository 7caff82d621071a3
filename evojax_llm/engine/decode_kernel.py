"""A GPU kernel for the attention of one new token a row over a cache.

One program a row and key head goes through the columns that the row sees, a
block at a time, and reads keys and values of these once.

Sources: FlashAttention, algorithm 1 (arXiv 2205.14135); FlashAttention-2
(arXiv 2307.08691) for the division at the end.
"""

import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from evojax_llm.engine.decode_attention import MASKED
from evojax_llm.engine.decode_attention import Part
from evojax_llm.models.linear import softcap as capped

# A tensor core's product has at least so many rows.
_LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How a program goes through the columns.

  Attributes:
    columns: of one block, a power of two and at least 16.
    warps: of one program.
    stages: blocks that are read ahead.
    exact: whether columns between the first and the last that a row sees are
      left out if it does not see them. Reads then wait for the positions.
  """

  columns: int
  warps: int = 4
  stages: int = 3
  exact: bool = True


def default_blocks(width: int, dtype) -> Blocks:
  """Returns blocks of 16 KiB of keys: several programs fit on a core."""
  column = _power_of_two(width) * jnp.dtype(dtype).itemsize
  return Blocks(columns=min(128, max(16, (1 << 14) // column)))


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: jax.Array,
  query_positions: jax.Array,
  visible: jax.Array,
  first: Part | None,
  *,
  window: jax.Array | None,
  softcap: float | None,
  scale: float,
  interpret: bool,
  blocks: Blocks | None,
) -> jax.Array:
  """Returns what each query gathers, (B, Kv, G, h) in the type of q.

  Args:
    q: (B, Kv, G, h) queries.
    k: (B, Kv, S, h) keys.
    v: (B, Kv, S, h) values.
    positions: (B, S) i32 of the keys.
    query_positions: (B,) i32.
    visible: (B, S) bool, what these and the window say: no column outside of
      its first and last is read.
    first: attention to go on from, over other keys.
    window: () i32, or None.
    softcap: of the scores, or None.
    scale: of the scores.
    interpret: whether to run on any device, slowly.
    blocks: None for those of `default_blocks`.
  """
  rows, key_heads, groups, width = q.shape
  length = k.shape[2]
  blocks = blocks or default_blocks(width, k.dtype)
  column = jnp.arange(length, dtype=jnp.int32)
  limit = jnp.iinfo(jnp.int32).max if window is None else window
  numbers = jnp.stack(
    [
      query_positions,
      jnp.where(visible, column, length).min(axis=1),
      jnp.where(visible, column + 1, 0).max(axis=1),
      jnp.broadcast_to(jnp.asarray(limit, jnp.int32), (rows,)),
    ],
    axis=1,
  )
  heads = max(_LEAST_ROWS, _power_of_two(groups))
  wide = _power_of_two(width)

  def of_row(*shape):
    zeros = (0,) * len(shape)
    return pl.BlockSpec((None, *shape), lambda row, head: (row, *zeros))

  def of_head(*shape):
    zeros = (0,) * len(shape)
    return pl.BlockSpec(
      (None, None, *shape), lambda row, head: (row, head, *zeros)
    )

  states = (of_head(heads), of_head(heads), of_head(heads, wide))
  kernel = functools.partial(
    _kernel,
    groups=groups,
    width=width,
    softcap=softcap,
    scale=scale,
    blocks=blocks,
  )
  return pl.pallas_call(
    kernel,
    grid=(rows, key_heads),
    in_specs=[
      of_row(4),
      of_row(length),
      of_head(heads, wide),
      of_head(length, wide),
      of_head(length, wide),
      *(states if first is not None else ()),
    ],
    out_specs=of_head(heads, wide),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=triton.CompilerParams(
      num_warps=blocks.warps, num_stages=blocks.stages
    ),
    interpret=interpret,
    name='decode_attention',
  )(numbers, positions, q, k, v, *(first or ()))


def _kernel(
  numbers_ref,
  positions_ref,
  q_ref,
  k_ref,
  v_ref,
  *refs,
  groups,
  width,
  softcap,
  scale,
  blocks,
):
  """The program of a row and key head.

  Refs: numbers (4,), positions (S,), q (heads, wide), k and v (S, wide), a Part
  to go on from, out (heads, wide). Heads and width are powers of two; what is
  behind the G heads and h numbers is neither read nor written.
  """
  *first, out_ref = refs
  query, begin, end, window = (numbers_ref[i] for i in range(4))
  heads, wide = q_ref.shape
  head = jnp.arange(heads, dtype=jnp.int32) < groups
  inner = (jnp.arange(wide, dtype=jnp.int32) < width)[None]

  def both(rows):
    mask = rows[:, None]
    return mask if wide == width else mask & inner

  q = triton.load(q_ref, mask=both(head), other=0.0)
  if first:
    top = triton.load(first[0], mask=head, other=MASKED)
    total = triton.load(first[1], mask=head, other=0.0)
    values = triton.load(first[2], mask=both(head), other=0.0)
  else:
    top = jnp.full((heads,), MASKED, jnp.float32)
    total = jnp.zeros((heads,), jnp.float32)
    values = jnp.zeros((heads, wide), jnp.float32)

  def go_on(block, state):
    top, total, values = state
    start = begin + block * blocks.columns
    here = pl.ds(start, blocks.columns)
    inside = start + jnp.arange(blocks.columns, dtype=jnp.int32) < end
    at = triton.load(positions_ref.at[here], mask=inside, other=-1)
    distance = query - at
    visible = (at >= 0) & (distance >= 0) & (distance < window)
    read = both(visible if blocks.exact else inside)
    k = triton.load(k_ref.at[here, :], mask=read, other=0.0)
    scores = triton.dot(q, k.T).astype(jnp.float32)
    scores = capped(scores * scale, softcap)
    scores = jnp.where(visible[None], scores, MASKED)
    new = jnp.maximum(top, scores.max(axis=1))
    fade = jnp.exp(top - new)
    weights = jnp.exp(scores - new[:, None])
    weights = jnp.where(visible[None], weights, 0.0)
    v = triton.load(v_ref.at[here, :], mask=read, other=0.0)
    values = fade[:, None] * values + triton.dot(weights.astype(v.dtype), v)
    return new, fade * total + weights.sum(axis=1), values

  count = jax.lax.div(end - begin + (blocks.columns - 1), blocks.columns)
  _, total, values = jax.lax.fori_loop(
    0, jnp.maximum(count, 0), go_on, (top, total, values)
  )
  out = values / jnp.maximum(total, 1.0)[:, None]
  triton.store(out_ref, out.astype(out_ref.dtype), mask=both(head))


def _power_of_two(number: int) -> int:
  """Returns the least power of two that is not smaller."""
  return 1 << (number - 1).bit_length()
