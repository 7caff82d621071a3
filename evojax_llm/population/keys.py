"""Addressed randomness: a key says who draws, when and what for.

Keys are never consumed in order. Reordering, chunking or sharding members
therefore changes nobody's draw, and a resumed run draws what the unbroken run
would have drawn. Threefry (JAX's default) is required: other generators give
other bits under vmap.
"""

import zlib

import jax
import jax.numpy as jnp


def purpose_code(purpose: str) -> int:
  """The 31-bit number a purpose is folded in as; stable between versions."""
  return zlib.crc32(purpose.encode()) & 0x7FFFFFFF


def key_for(
  seed_key: jax.Array,
  generation: jax.Array | int,
  member_id: jax.Array | int,
  purpose: str,
) -> jax.Array:
  """Key of one draw.

  Args:
    seed_key: () typed key of the run.
    generation: () i32.
    member_id: () i32 id of the member (or place) that draws.
    purpose: what is drawn, for example 'mutation'.

  Returns:
    () typed key; vmap over `member_id` for several members.
  """
  key = jax.random.fold_in(seed_key, _data(generation))
  key = jax.random.fold_in(key, purpose_code(purpose))
  # The member last: under vmap the other two are folded in once for all.
  return jax.random.fold_in(key, _data(member_id))


def keys_for(
  seed_key: jax.Array,
  generation: jax.Array | int,
  member_ids: jax.Array,
  purpose: str,
) -> jax.Array:
  """(P,) keys, one for each of `member_ids` (P,)."""
  return jax.vmap(key_for, in_axes=(None, None, 0, None))(
    seed_key, generation, member_ids, purpose
  )


def _data(value):
  # fold_in takes unsigned words; empty places have the id -1.
  return jnp.asarray(value, jnp.int32).astype(jnp.uint32)
