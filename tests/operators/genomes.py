"""Small adapter-like genomes for the operator tests."""

import jax
import jax.numpy as jnp

LAYERS, RANK = 3, 2
DTYPES = (jnp.float32, jnp.bfloat16)


def population(members: int, dtype=jnp.float32, seed: int = 0):
  """P genomes of one adapted matrix and a plain vector."""
  shapes = {
    'layers': {'mlp': {'a': (LAYERS, 5, RANK), 'b': (LAYERS, RANK, 4)}},
    'coefficients': (6,),
  }
  flat, structure = jax.tree.flatten(
    shapes, is_leaf=lambda node: isinstance(node, tuple)
  )
  key = jax.random.key(seed)
  leaves = [
    (0.1 + i)
    * jax.random.normal(
      jax.random.fold_in(key, i), (members, *shape), jnp.float32
    )
    for i, shape in enumerate(flat)
  ]
  return jax.tree.unflatten(structure, [leaf.astype(dtype) for leaf in leaves])


def member(dtype=jnp.float32, seed: int = 0):
  return jax.tree.map(lambda leaf: leaf[0], population(1, dtype, seed))
