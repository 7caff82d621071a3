"""How the next token is chosen from its logits.

Greedy, or drawn at a temperature from what top-k and top-p leave. A draw is
addressed by (seed, member, item, step): neither the slot, nor the neighbours,
nor the order of the work changes a sample.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

_BITS = 31  # of a probability as an i32; the sign is never set.


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to sample; a temperature of 0 is greedy.

  Attributes:
    temperature: that logits are divided by.
    top_p: only the likeliest tokens that together have this probability.
    top_k: only so many of the likeliest tokens; 0 for all.
    seed: of all draws.

  Raises:
    ValueError: a number that means nothing.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0

  def __post_init__(self):
    wrong = [
      f'{name}={getattr(self, name)} (expected {expected})'
      for name, expected, fine in (
        ('temperature', 'at least 0', 0 <= self.temperature < float('inf')),
        ('top_p', 'above 0, at most 1', 0 < self.top_p <= 1),
        ('top_k', 'at least 0', self.top_k >= 0),
      )
      if not fine
    ]
    if wrong:
      raise ValueError('sampling: ' + ', '.join(wrong) + '.')

  @property
  def greedy(self) -> bool:
    """Whether the likeliest token is taken, always."""
    return self.temperature == 0

  def arrays(self) -> 'SamplingArrays | None':
    """What a compiled program reads, so that no setting compiles anew."""
    if self.greedy:
      return None
    return SamplingArrays(
      temperature=jnp.float32(self.temperature),
      top_p=jnp.float32(self.top_p),
      top_k=jnp.int32(self.top_k),
      key=jax.random.key(self.seed),
    )


@flax.struct.dataclass
class SamplingArrays:
  """A `Sampling` on the device: temperature () f32 above 0, top_p () f32, top_k
  () i32, key ().
  """

  temperature: jax.Array
  top_p: jax.Array
  top_k: jax.Array
  key: jax.Array


def keys(
  sampling: SamplingArrays,
  members: jax.Array,
  items: jax.Array,
  steps: jax.Array,
) -> jax.Array:
  """Keys (...) of draws, by member id, item id and number of the token made."""

  def one(member, item, step):
    key = jax.random.fold_in(sampling.key, member)
    return jax.random.fold_in(jax.random.fold_in(key, item), step)

  return jnp.vectorize(one)(members, items, steps)


def sample(
  logits: jax.Array, sampling: SamplingArrays, keys: jax.Array
) -> jax.Array:
  """Draws tokens (...) i32 of logits (..., V) f32, with a key (...) each.

  Logits are divided by the temperature, then cut to the top k, then what is
  left to the smallest set of likeliest tokens whose probability reaches top p,
  in the order of transformers. Tokens that tie with the last one stay in.
  """
  shape = logits.shape[:-1]
  logits = logits.reshape(-1, logits.shape[-1]) / sampling.temperature
  probs = jax.nn.softmax(logits, axis=-1)
  count = jnp.where(sampling.top_k > 0, sampling.top_k, probs.shape[-1])
  ones = jnp.ones_like(probs)
  probs = _keep_top(probs, ones, count.astype(jnp.float32))
  whole = jnp.sum(probs, axis=-1, keepdims=True)
  probs = jnp.where(
    sampling.top_p < 1,
    _keep_top(probs, probs, sampling.top_p * whole[..., 0]),
    probs,
  )
  draw = jax.vmap(lambda key, logits: jax.random.categorical(key, logits))
  kept = jnp.where(probs > 0, logits, -jnp.inf)
  return draw(keys.reshape(-1), kept).astype(jnp.int32).reshape(shape)


def _keep_top(
  probs: jax.Array, weights: jax.Array, enough: jax.Array
) -> jax.Array:
  """Sets all but the largest values, up to a total weight, to zero.

  The smallest value that stays results from bisection over the bits of a float,
  which order as the floats do: exact, and cheaper than to sort a vocabulary.
  """
  bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

  def weigh(threshold):
    return jnp.sum(
      jnp.where(bits >= threshold[..., None], weights, 0.0), axis=-1
    )

  def narrow(i, threshold):
    higher = threshold | (1 << (_BITS - 1 - i))
    return jnp.where(weigh(higher) >= enough, higher, threshold)

  start = jnp.zeros(probs.shape[:-1], jnp.int32)
  threshold = jax.lax.fori_loop(0, _BITS, narrow, start)
  return jnp.where(bits >= threshold[..., None], probs, 0.0)
