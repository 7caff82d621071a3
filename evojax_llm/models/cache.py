"""Key and value cache of one member."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models.config import ModelConfig

_Stack = jax.Array | tuple[jax.Array, ...]
Keys = _Stack | dict[str, _Stack]


@flax.struct.dataclass
class Cache:
  """Keys and values of the tokens read so far.

  A key is seen by the position stored in its slot, not by the slot's index, so
  that rows padded left or right, or refilled, need no bookkeeping. The S slots
  are a ring: all rows write at one index, which wraps around.

  Attributes:
    k: (L, B, S, Kv, h) keys, rotated; L is that of hops where members are
      paths. Where layers differ an array for each stack of layers that have
      keys, by its name. In a ring of `init_ring`, a tuple of L arrays (B, Kv,
      S, h) in place of each array.
    v: values, as the keys.
    positions: (B, S) i32 position of the token in each slot; -1 if empty.
    index: () i32 next slot to be written.
  """

  k: Keys
  v: Keys
  positions: jax.Array
  index: jax.Array

  @property
  def separate(self) -> bool:
    """Whether it has an array a layer."""
    k = next(iter(self.k.values())) if isinstance(self.k, dict) else self.k
    return isinstance(k, tuple)


@flax.struct.dataclass
class Prefix:
  """Keys and values of T tokens that all rows begin with.

  Attributes:
    k: (L, T, Kv, h) keys, rotated, or such arrays by stack; tuples of L arrays
      (Kv, T, h) beside a ring.
    v: values, as the keys.
    positions: (T,) i32 position of each token; -1 if padding.
  """

  k: Keys
  v: Keys
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

  def empty() -> Keys:
    return _by_stack(
      config,
      lambda layers, c: jnp.zeros(
        (hops or layers, batch, length, c.num_kv_heads, c.head_dim), dtype
      ),
    )

  positions = jnp.full((batch, length), -1, jnp.int32)
  return Cache(empty(), empty(), positions, jnp.zeros((), jnp.int32))


def init_ring(
  config: ModelConfig, batch: int, length: int, dtype=jnp.float32
) -> Cache:
  """Returns an empty cache of an array (B, Kv, S, h) a layer.

  Products of attention take them as they are, and a layer is no slice of a
  stack that would have to be copied.
  """

  def empty() -> Keys:
    return _by_stack(
      config,
      lambda layers, c: tuple(
        jnp.zeros((batch, c.num_kv_heads, length, c.head_dim), dtype)
        for _ in range(layers)
      ),
    )

  positions = jnp.full((batch, length), -1, jnp.int32)
  return Cache(empty(), empty(), positions, jnp.zeros((), jnp.int32))


def bytes_per_token(
  config: ModelConfig, dtype=jnp.float32, hops: int | None = None
) -> int:
  """Returns the bytes that one token of one row takes in the cache."""
  numbers = _by_stack(
    config, lambda layers, c: (hops or layers) * c.num_kv_heads * c.head_dim
  )
  return 2 * sum(jax.tree.leaves(numbers)) * jnp.dtype(dtype).itemsize


def as_prefix(cache: Cache) -> Prefix:
  """Returns the first row of a cache as a prefix of other rows."""
  k, v = jax.tree.map(lambda leaf: leaf[:, 0], (cache.k, cache.v))
  return Prefix(k, v, cache.positions[0])


def _by_stack(config: ModelConfig, make: Callable) -> Any:
  """make(layers, config of them) of the layers that have keys, by stack."""
  found = {
    stack: make(len(layers), part)
    for stack, layers, part in config.parts()
    if 'k_proj' not in part.absent
  }
  if not config.stacks:
    return found[()]
  return {name: made for (name,), made in found.items()}
