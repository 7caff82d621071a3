"""Linear map and norm of a layer, with an optional low-rank adapter."""

from collections.abc import Callable
from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from evojax_llm.models.rope import Rope


def matmul(
  x: jax.Array, w: jax.Array, step: jax.Array | None = None
) -> jax.Array:
  """X (..., in) times w (in, out), accumulated in f32, in the type of x.

  Args:
    x: (..., in).
    w: (in, out); integers where there is a step.
    step: (out,) f32 that the columns of w are multiplied by.
  """
  # Accelerators accumulate in f32 whatever the result is kept in: one that is
  # rounded behind the product may be written in f32 first. On a CPU that form
  # is the faster one.
  rounds_late = step is not None or jax.default_backend() == 'cpu'
  kept = jnp.float32 if rounds_late else x.dtype
  y = jnp.einsum(
    '...i,io->...o', x, w.astype(x.dtype), preferred_element_type=kept
  )
  return (y if step is None else y * step).astype(x.dtype)


def parameter(
  module: nn.Module, name: str, start: Callable, shape: tuple[int, ...]
) -> jax.Array:
  """Returns a parameter of a module; `start(key, shape, f32)` makes a new one.

  Of one that is there, `nn.Module.param` traces `start` to compare shapes: a
  fifth of all tracing. Those of files are compared by `hub`.
  """
  if module.has_variable('params', name):
    return module.get_variable('params', name)
  return module.param(name, start, shape, jnp.float32)


class Linear(nn.Module):
  """y = x W, with a member's low rank added where it has one.

  W is the parameter `kernel` (in, out), or kernel * step where there is a
  parameter `step` (out,) (see `quantize`). With `use_bias` there is a parameter
  `bias` (out,). What is added depends on the member's variables (see
  `expression`):

    lora/a (in, R), lora/b (R, out): y = x W + (x a) b, b already scaled.
    gates/gate (R,): y = x W + ((x a) gate) b, with `a` and `b` parameters
      beside the kernel, the same for all members.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.normal(0.02)
    shape = x.shape[-1], self.features
    kernel = parameter(self, 'kernel', start, shape)
    y = matmul(x, kernel, self.get_variable('params', 'step'))
    if self.use_bias:
      zeros = nn.initializers.zeros_init()
      bias = parameter(self, 'bias', zeros, (self.features,))
      y = y + bias.astype(y.dtype)
    if self.has_variable('lora', 'a'):
      a = self.get_variable('lora', 'a')
      b = self.get_variable('lora', 'b')
      y = y + matmul(matmul(x, a), b)
    elif self.has_variable('gates', 'gate'):
      gate = self.get_variable('gates', 'gate').astype(x.dtype)
      a = self.get_variable('params', 'a')
      b = self.get_variable('params', 'b')
      y = y + matmul(matmul(x, a) * gate, b)
    return y


class RMSNorm(nn.Module):
  """x / rms(x) * (offset + scale) over the last axis, computed in f32.

  Gemma stores scales around 0, other families around 1.
  """

  eps: float
  offset: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.constant(1.0 - self.offset)
    scale = parameter(self, 'scale', start, (x.shape[-1],))
    y = over_rms(x, self.eps)
    scale = scale.astype(jnp.float32)
    return (y * (self.offset + scale if self.offset else scale)).astype(x.dtype)


def over_rms(x: jax.Array, eps: float) -> jax.Array:
  """Returns x / rms(x) over the last axis, in f32."""
  y = x.astype(jnp.float32)
  return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Cap * tanh(x / cap), or x where there is no cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def unembed(
  hidden: jax.Array, matrix: jax.Array, cap: float | None
) -> jax.Array:
  """Returns logits (..., V) f32 of hidden states (..., D), soft-capped.

  The matrix is (V, D).
  """
  logits = jnp.einsum(
    '...d,vd->...v',
    hidden,
    matrix.astype(hidden.dtype),
    preferred_element_type=jnp.float32,
  )
  return softcap(logits, cap)


def frequencies(rope: Rope, head_dim: int) -> jax.Array:
  """Returns radians a position, (head_dim / 2,) f32."""
  half = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  plain = 1.0 / (rope.base**half)
  if rope.kind == 'linear':
    return plain / rope.factor
  if rope.kind == 'proportional':
    turning = int(rope.share * head_dim // 2)
    still = jnp.zeros(head_dim // 2 - turning, jnp.float32)
    return jnp.concatenate([plain[:turning] / rope.factor, still])
  low, high = rope.bounds
  if rope.kind == 'llama3':
    turns = rope.original * plain / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  else:
    ends = [
      head_dim
      * math.log(rope.original / (turns * 2 * math.pi))
      / (2 * math.log(rope.base))
      for turns in (high, low)
    ]
    if rope.whole:
      ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], head_dim - 1)
    width = last - first or 0.001
    at = jnp.arange(head_dim // 2, dtype=jnp.float32)
    kept = 1.0 - jnp.clip((at - first) / width, 0.0, 1.0)
  return plain / rope.factor * (1.0 - kept) + plain * kept


def rope_tables(
  positions: jax.Array, ropes: Sequence[Rope], head_dim: int
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine tables of each rotary embedding.

  Args:
    positions: (B, T) i32.
    ropes: the distinct `Rope`s of the model, S of them.
    head_dim: h.

  Returns:
    cos and sin, each (S, B, T, 1, h / 2) f32.
  """
  inverse = jnp.stack([frequencies(rope, head_dim) for rope in ropes])
  angles = (
    positions.astype(jnp.float32)[None, :, :, None, None]
    * inverse[:, None, None, None, :]
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if all(rope.magnitude == 1 for rope in ropes):
    return cos, sin
  magnitude = jnp.asarray([rope.magnitude for rope in ropes], jnp.float32)
  magnitude = magnitude[:, None, None, None, None]
  return cos * magnitude, sin * magnitude


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotary embedding of x (B, T, heads, h), in which halves are paired."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
