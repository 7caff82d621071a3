"""Key and value cache of one member."""

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models.config import ModelConfig


@flax.struct.dataclass
class Cache:
  """Keys and values of the tokens read so far.

  A key is seen by the position stored in its slot, not by the slot's index, so
  that rows padded left or right, or refilled, need no bookkeeping. The S slots
  are a ring: all rows write at one index, which wraps around.

  Attributes:
    k: (L, B, S, Kv, h) keys, rotated; L is that of hops where members are
      paths. In a ring of `init_ring`, L arrays (B, Kv, S, h).
    v: values, as the keys.
    positions: (B, S) i32 position of the token in each slot; -1 if empty.
    index: () i32 next slot to be written.
  """

  k: jax.Array | tuple[jax.Array, ...]
  v: jax.Array | tuple[jax.Array, ...]
  positions: jax.Array
  index: jax.Array

  @property
  def separate(self) -> bool:
    """Whether it has an array a layer."""
    return isinstance(self.k, tuple)


@flax.struct.dataclass
class Prefix:
  """Keys and values of T tokens that all rows begin with.

  Attributes:
    k: (L, T, Kv, h) keys, rotated; L arrays (Kv, T, h) beside such a ring.
    v: values, as the keys.
    positions: (T,) i32 position of each token; -1 if padding.
  """

  k: jax.Array | tuple[jax.Array, ...]
  v: jax.Array | tuple[jax.Array, ...]
  positions: jax.Array


def init_cache(
  config: ModelConfig,
  batch: int,
  length: int,
  dtype=jnp.float32,
  hops: int | None = None,
) -> Cache:
  """Returns an empty cache of `length` slots for `batch` rows.

  `hops` is of paths; without it there is one entry a layer.
  """
  c = config
  shape = (hops or c.num_layers, batch, length, c.num_kv_heads, c.head_dim)
  return Cache(
    k=jnp.zeros(shape, dtype),
    v=jnp.zeros(shape, dtype),
    positions=jnp.full((batch, length), -1, jnp.int32),
    index=jnp.zeros((), jnp.int32),
  )


def init_ring(
  config: ModelConfig, batch: int, length: int, dtype=jnp.float32
) -> Cache:
  """Returns an empty cache of an array (B, Kv, S, h) a layer.

  Products of attention take them as they are, and a layer is no slice of a
  stack that would have to be copied.
  """
  c = config
  shape = (batch, c.num_kv_heads, length, c.head_dim)
  k, v = (
    tuple(jnp.zeros(shape, dtype) for _ in range(c.num_layers)) for _ in 'kv'
  )
  positions = jnp.full((batch, length), -1, jnp.int32)
  return Cache(k, v, positions, jnp.zeros((), jnp.int32))


def bytes_per_token(
  config: ModelConfig, dtype=jnp.float32, hops: int | None = None
) -> int:
  """Returns the bytes that one token of one row takes in the cache."""
  width = config.num_kv_heads * config.head_dim
  return 2 * (hops or config.num_layers) * width * jnp.dtype(dtype).itemsize


def as_prefix(cache: Cache) -> Prefix:
  """Returns the first row of a cache as a prefix of other rows."""
  return Prefix(cache.k[:, 0], cache.v[:, 0], cache.positions[0])
