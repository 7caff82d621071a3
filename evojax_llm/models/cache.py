"""Key and value cache of one member."""

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models.config import GemmaConfig


@flax.struct.dataclass
class Cache:
  """Keys and values of the tokens read so far.

  A slot is addressed by the position stored in it, never by its place, so rows
  padded left or right, or refilled, need no bookkeeping of their own. The slots
  are a ring: every row writes at the same index, which starts again at the
  first slot behind the last.

  Attributes:
    k: (L, B, S, Kv, h) keys, rotated.
    v: (L, B, S, Kv, h) values.
    positions: (B, S) i32 position of the token in each slot; -1 is empty.
    index: () i32, the next slot to be written, the same for every row.
  """

  k: jax.Array
  v: jax.Array
  positions: jax.Array
  index: jax.Array


@flax.struct.dataclass
class Prefix:
  """Keys and values of tokens that all rows begin with.

  Attributes:
    k: (L, T, Kv, h) keys, rotated.
    v: (L, T, Kv, h) values.
    positions: (T,) i32 position of each token; -1 is padding.
  """

  k: jax.Array
  v: jax.Array
  positions: jax.Array


def init_cache(
  config: GemmaConfig, batch: int, length: int, dtype=jnp.float32
) -> Cache:
  """An empty cache of `length` slots for `batch` rows."""
  shape = (
    config.num_layers,
    batch,
    length,
    config.num_kv_heads,
    config.head_dim,
  )
  return Cache(
    k=jnp.zeros(shape, dtype),
    v=jnp.zeros(shape, dtype),
    positions=jnp.full((batch, length), -1, jnp.int32),
    index=jnp.zeros((), jnp.int32),
  )


def bytes_per_token(config: GemmaConfig, dtype=jnp.float32) -> int:
  """Bytes that one token of one row takes in the cache."""
  width = config.num_kv_heads * config.head_dim
  return 2 * config.num_layers * width * jnp.dtype(dtype).itemsize


def as_prefix(cache: Cache) -> Prefix:
  """What the first row of a cache has read, as a prefix of other rows."""
  return Prefix(cache.k[:, 0], cache.v[:, 0], cache.positions[0])
