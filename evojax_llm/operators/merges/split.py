"""M2N2's crossover (GECCO 2025): spherical, with the sides of a split swapped.

Elements before the split are interpolated at t, those from it on at 1 - t, so
that one part leans to parent one and the rest to parent two. As published the
genome is one vector, with one angle and one split; per tensor, each has its
own.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter
from evojax_llm.population import stack


def split_slerp(
  parents: jax.Array, *, t: jax.Array, split: jax.Array
) -> jax.Array:
  """Spherical, the sides of a split swapped, tensor by tensor.

  `t` () is where on the arc the part before the split is, `split` () the share
  of the elements before it; 1 is slerp. Parents whose angle has a sine of at
  most 1e-6 are interpolated linearly; a zero parent is at right angles.
  """
  return split_slerp_whole(parents, t=t, split=split)


def split_slerp_whole(
  parents: stack.Population, *, t: jax.Array, split: jax.Array
) -> stack.Genome:
  """Over the whole genome as one vector, leaves (2, ...) in jax.tree order."""
  leaves, structure = jax.tree.flatten(parents)
  t, split = jnp.float32(t), jnp.float32(split)
  pairs = [tensors.unstacked(leaf) for leaf in leaves]
  found = [tensors.sums([x * x, x * y, y * y]) for x, y in pairs]
  xx, xy, yy = map(tensors.total, zip(*found, strict=True))
  lengths = tensors.divisor(jnp.sqrt(xx)) * tensors.divisor(jnp.sqrt(yy))
  angle = jnp.arccos(jnp.clip(xy / lengths, -1.0, 1.0))
  sine = jnp.sin(angle)
  is_linear = sine <= 1e-6
  safe = jnp.where(is_linear, 1.0, sine)
  near = jnp.where(is_linear, 1.0 - t, jnp.sin((1.0 - t) * angle) / safe)
  far = jnp.where(is_linear, t, jnp.sin(t * angle) / safe)
  # Counted leaf by leaf: a model has more elements than an i32 can count.
  left = split * sum(pair[0].size for pair in pairs)
  children = []
  for leaf, (x, y) in zip(leaves, pairs, strict=True):
    before = draws.flat_indices(x.shape).astype(jnp.float32) < left
    child = jnp.where(before, near, far) * x + jnp.where(before, far, near) * y
    children.append(child.astype(leaf.dtype))
    left = left - x.size
  return jax.tree.unflatten(structure, children)


SPLIT_SLERP = Merge(
  'split_slerp',
  split_slerp,
  'M2N2, GECCO 2025',
  (
    takes.T,
    Parameter('split', 0.5, 'share of the elements before the split', 0.0, 1.0),
    takes.choice('span', 'what is one vector', 'tensor', 'genome'),
  ),
  parents=(2, 2),
  whole=split_slerp_whole,
)
