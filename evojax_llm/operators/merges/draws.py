"""Random words inside a merge: counter-based, and fused into its loop.

Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as easy
as 1, 2, 3, SC 2011), the generator of `jax.random`, written with jnp: as plain
arithmetic on an element's index it becomes part of the loop that uses it, so
that no array of random words is ever stored. One block of 64 bits decides for
four models at one element: a decision is 16 bits.

The words of an element depend on the key, its index in the tensor and the
model's position only. Chunking or sharding changes none of them.
"""

import math

import jax
import jax.numpy as jnp

# Chances are multiples of 1 / STEPS.
STEPS = 1 << 16
_PER_BLOCK = 4
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


# Traced once for a shape: a merge of many leaves asks for it time and again.
@jax.jit
def threefry(
  key: jax.Array, high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Two u32 arrays, one block for each counter (high, low) of u32.

  Their exclusive or is what `jax.random.bits` gives at that counter.
  """
  first, second = jax.random.key_data(key)
  schedule = (first, second, first ^ second ^ jnp.uint32(_PARITY))
  x, y = high + first, low + second
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x = x + y
      y = (y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation))
      y = y ^ x
    x = x + schedule[(group + 1) % 3]
    y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
  return x, y


def flat_indices(shape: tuple[int, ...], dtype=jnp.uint32) -> jax.Array:
  """Each element's index in the flattened tensor."""
  return jnp.arange(math.prod(shape), dtype=dtype).reshape(shape)


def decisions(
  key: jax.Array,
  shape: tuple[int, ...],
  models: int,
  start: jax.Array | int = 0,
) -> list[jax.Array]:
  """For each model, an i32 array of numbers uniform in [0, STEPS).

  `start` is the index in its tensor of the first element, u32.
  """
  low, found = flat_indices(shape) + jnp.uint32(start), []
  for block in range(-(-models // _PER_BLOCK)):
    x, y = threefry(key, jnp.uint32(block), low)
    for word in (x, y):
      found += [word & jnp.uint32(STEPS - 1), word >> jnp.uint32(16)]
  return [number.astype(jnp.int32) for number in found[:models]]


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """F32 array uniform in [0, 1), multiples of 2^-24."""
  word, _ = threefry(key, jnp.uint32(0), flat_indices(shape))
  return (word >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24


def steps(chance: jax.Array) -> jax.Array:
  """A chance as the nearest number of steps, i32 in [0, STEPS]."""
  return jnp.round(jnp.clip(chance, 0.0, 1.0) * STEPS).astype(jnp.int32)


def chance(steps_kept: jax.Array) -> jax.Array:
  """What a number of steps is as a chance, f32 in [0, 1]."""
  return steps_kept.astype(jnp.float32) / STEPS
