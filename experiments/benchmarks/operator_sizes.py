"""What operators are measured on: populations at the shapes of Gemma-2-2B."""

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp

from evojax_llm.operators import noise
from evojax_llm.population import leaves
from evojax_llm.population import stack

# (in, out) of the matrices of a layer.
GEMMA_2_2B = {
  'q_proj': (2304, 2048),
  'k_proj': (2304, 1024),
  'v_proj': (2304, 1024),
  'o_proj': (2048, 2304),
  'gate_proj': (2304, 9216),
  'up_proj': (2304, 9216),
  'down_proj': (9216, 2304),
}
_TINY = {'q_proj': (12, 16), 'down_proj': (20, 12)}


@dataclasses.dataclass(frozen=True, eq=False)
class Size:
  """A population.

  Attributes:
    note: what it is, for the table.
    members: P.
    layers: L.
    matrices: (in, out) by name.
    rank: of adapters; 0 for the matrices themselves.
    parents: of merges that take any number.
    populations: how many of them are there, for operators to read.
  """

  note: str
  members: int
  layers: int
  matrices: Mapping[str, tuple[int, int]]
  rank: int
  parents: int
  populations: int

  def shapes(self) -> stack.Genome:
    """The tree of shapes of one genome."""
    shapes = {}
    for name, (fan_in, fan_out) in self.matrices.items():
      if self.rank:
        shapes[name] = {
          'a': (self.layers, fan_in, self.rank),
          'b': (self.layers, self.rank, fan_out),
        }
      else:
        shapes[name] = {'kernel': (self.layers, fan_in, fan_out)}
    return {'layers': shapes}

  def make(self, seed: int) -> stack.Population:
    """Normal numbers, leaves (P, ...) f32, in buffers of their own."""
    return _make(self, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _make(size, key):
  flat, structure = jax.tree.flatten(
    size.shapes(), is_leaf=lambda node: isinstance(node, tuple)
  )
  drawn = [
    noise.normal(noise.words(key, i, (size.members, *shape))[0])
    for i, shape in enumerate(flat)
  ]
  return jax.tree.unflatten(structure, drawn)


def elements(genome: stack.Genome, *, second_only: bool = False) -> int:
  """Numbers in a tree, or in its factors B if it has some."""
  second_only = second_only and leaves.has_factors(genome)
  return sum(
    jnp.size(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(genome)[0]
    if not second_only or leaves.is_second_factor(path)
  )


SIZES: Mapping[str, Size] = {
  'lora10': Size(
    '10 adapters of Gemma-2-2B, rank 8', 10, 26, GEMMA_2_2B, 8, 2, 3
  ),
  'lora40': Size(
    '40 adapters of Gemma-2-2B, rank 8', 40, 26, GEMMA_2_2B, 8, 2, 3
  ),
  'layer4': Size(
    'one layer of Gemma-2-2B, 4 models', 1, 1, GEMMA_2_2B, 0, 4, 4
  ),
  'tiny': Size('a few numbers, for tests', 3, 2, _TINY, 2, 2, 3),
}
