"""The generators of EvoGM: perceptrons from rows of coefficients to others."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class Generator(nn.Module):
  """A perceptron of five hidden layers, with ReLU between and tanh at the end.

  Attributes:
    width: W; the hidden layers have W, 2 W, 2 W, 2 W, W neurons.
  """

  width: int

  @nn.compact
  def __call__(self, rows: jax.Array) -> jax.Array:
    """Maps rows (M, D) f32 to rows in [-1, 1]."""
    hidden = rows
    for factor in (1, 2, 2, 2, 1):
      hidden = nn.relu(nn.Dense(factor * self.width)(hidden))
    return jnp.tanh(nn.Dense(rows.shape[-1])(hidden))


def draw(
  key: jax.Array, generator: Generator, active: jax.Array, count: int
) -> Any:
  """Draws the parameters of some generators, leaves (count, ...) f32.

  All layers begin as PyTorch's do, U(-1, 1) / sqrt(inputs). Of the D inputs of
  the first one only those count that are 1 in `active` (D,) f32; the others,
  0, are always zero.
  """
  shapes = jax.eval_shape(generator.init, key, active[None])
  leaves, structure = jax.tree.flatten(shapes)
  # One draw for all layers compiles in a fraction of the time of many.
  numbers = sum(leaf.size for leaf in leaves)
  chances = jax.random.uniform(key, (count, numbers), jnp.float32, -1.0, 1.0)
  drawn, offset = [], 0
  for leaf in leaves:
    part = chances[:, offset : offset + leaf.size]
    drawn.append(part.reshape(count, *leaf.shape))
    offset += leaf.size

  def scale(path, leaf):
    layer = shapes['params'][path[1].key]
    inputs = jnp.float32(layer['kernel'].shape[0])
    if path[1].key == 'Dense_0':
      inputs = jnp.sum(active)
    return leaf * jax.lax.rsqrt(inputs)

  drawn = jax.tree.unflatten(structure, drawn)
  return jax.tree.map_with_path(scale, drawn)
