"""Noise for mutations, drawn in the loop that uses it.

`jax.random` writes its numbers to memory before they are read. Here the
generator is plain arithmetic on the number of each element (merges.draws), so
that XLA makes one loop of drawing and using. Words are addressed by key, stream
(a leaf, say) and element: neither sharding nor vmap changes one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Parameter
from evojax_llm.population import leaves

# The largest number below one in f32; the normal numbers end at 5.4 for it.
_BELOW_ONE = 1.0 - 2.0**-24

SIGMA = Parameter('sigma', 0.1, 'deviation; of the root mean square', 0.0)
ROUNDINGS = ('nearest', 'stochastic')


def words(
  key: jax.Array, stream: int, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Two independent u32 arrays of random words for the elements of an array.

  Args:
    key: () typed Threefry key, used for nothing else.
    stream: which of the arrays that draw with this key.
    shape: of the array; fewer than 2^31 elements.

  Raises:
    ValueError: if the key is of another generator or the array is too large.
  """
  if str(jax.random.key_impl(key)) != 'threefry2x32':
    raise ValueError(
      f'Got a key of {jax.random.key_impl(key)}; expected threefry2x32, which '
      'alone draws the same under vmap. Make keys with '
      "jax.random.key(seed, impl='threefry2x32')."
    )
  if math.prod(shape) >= 2**31:
    raise ValueError(
      f'Got shape {shape}; expected fewer than 2^31 elements. Split the leaf.'
    )
  return draws.threefry(key, jnp.uint32(stream), draws.flat_indices(shape))


def bernoulli(word: jax.Array, rate: jax.Array) -> jax.Array:
  """True with probability `rate`, to 2^-31; one word each."""
  return _chosen(word, _half_width(rate))


def normal(word: jax.Array) -> jax.Array:
  """f32 standard normal numbers; one word each."""
  return _normal(word, jnp.float32(2.0**31))


def masked_normal(
  word: jax.Array, rate: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Standard normal numbers and whether each counts, out of one u32 word each.

  The word is a point of an interval; the middle `rate` of it counts, and where
  in this middle the point lies gives the normal number. Below a rate of 1e-5
  the numbers come in fewer than 2^15 steps.
  """
  half = _half_width(rate)
  return _normal(word, half), _chosen(word, half)


def _half_width(rate):
  """() f32: half of the 2^32 words that count, a whole number."""
  rate = jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0)
  return jnp.round(rate * jnp.float32(2.0**31))


def _chosen(word, half):
  # Words within `half` of zero, as signed numbers. Twice 2^31 wraps to zero;
  # the last word that counts does not.
  half = half.astype(jnp.uint32)
  last = half + half - jnp.uint32(1)
  return (word + half <= last) & (half > 0)


def _normal(word, half):
  signed = jax.lax.bitcast_convert_type(word, jnp.int32).astype(jnp.float32)
  point = (signed + jnp.float32(0.5)) / jnp.maximum(half, 1.0)
  point = jnp.clip(point, -_BELOW_ONE, _BELOW_ONE)
  return jnp.float32(math.sqrt(2.0)) * jax.lax.erf_inv(point)


def root_mean_square(
  path: tuple[Any, ...], leaf: jax.Array, layers: str | None = None
) -> jax.Array:
  """Returns the root mean square of each matrix of one member's leaf.

  f32 that broadcasts against the leaf: (L, 1, ...) below the key `layers`, else
  (1, ...).
  """

  def of_matrix(x):
    x = x.astype(jnp.float32)
    (square,) = tensors.sums([x * x])
    return jnp.sqrt(square / max(x.size, 1)).reshape((1,) * x.ndim)

  layered = leaves.is_layered(path, layers)
  return (jax.vmap(of_matrix) if layered else of_matrix)(leaf)


def cast(
  value: jax.Array, dtype: Any, word: jax.Array, rounding: str
) -> jax.Array:
  """f32 values in the type of a leaf.

  'stochastic' `rounding` goes up or down so that the mean is the value, by 16
  bits of a u32 `word` each: 'nearest' loses changes smaller than half a step of
  bf16, this keeps them on average. Leaves of 32 and 64 bits need none of it.

  Raises:
    ValueError: if the rounding is unknown or not to be had for `dtype`.
  """
  if rounding not in ROUNDINGS:
    raise ValueError(f'Got rounding {rounding!r}; expected one of {ROUNDINGS}.')
  if rounding == 'nearest' or dtype in (jnp.float32, jnp.float64):
    return value.astype(dtype)
  if dtype != jnp.bfloat16:
    raise ValueError(
      f'Got a leaf of {jnp.dtype(dtype).name} to round stochastically; '
      "expected float32 or bfloat16, or rounding='nearest'."
    )
  bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
  low = jnp.uint32(0xFFFF)
  moved = (bits + (word & low)) & ~low
  rounded = jax.lax.bitcast_convert_type(moved, jnp.float32)
  # Noise in the low bits of an infinity would make it a NaN.
  return jnp.where(jnp.isfinite(value), rounded, value).astype(dtype)
