"""Addressed randomness: a key is made of generation, member and purpose.

Keys are never consumed in order, so reordering, chunking or sharding members
changes no draw, and a resumed run draws what an unbroken one would. Threefry
(JAX's default) is required: other generators give other bits under vmap.
"""

import zlib

import jax
import jax.numpy as jnp


def purpose_code(purpose: str) -> int:
  """Returns the 31-bit number of a purpose; stable between versions."""
  return zlib.crc32(purpose.encode()) & 0x7FFFFFFF


def key_for(
  seed_key: jax.Array,
  generation: jax.Array | int,
  member_id: jax.Array | int,
  purpose: str,
) -> jax.Array:
  """Returns the key of one draw.

  Args:
    seed_key: () typed key of the run.
    generation: () i32.
    member_id: () i32 id of the member (or slot) that draws.
    purpose: what is drawn, for example 'mutation'.
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
  """Returns (P,) keys, one for each of `member_ids` (P,)."""
  return jax.vmap(key_for, in_axes=(None, None, 0, None))(
    seed_key, generation, member_ids, purpose
  )


def _data(value):
  # fold_in takes unsigned words; empty slots have the id -1.
  return jnp.asarray(value, jnp.int32).astype(jnp.uint32)
