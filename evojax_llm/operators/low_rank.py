"""Low-rank noise: a member that is a seed, regenerated wherever it is needed.

For a matrix the noise is E = A B / sqrt(r) with A (in, r) and B (r, out) drawn
from N(0, 1), as in EGGROLL (arXiv 2511.16652): entries of variance one, for r
(in + out) random numbers. Vectors and scalars get full noise. Neither the
member nor E has to be formed to run the model (`as_adapter`) or to move the
centre (`update`). Leaves of two axes and more, beside the layer axis L, are
matrices over their last two axes.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import noise
from evojax_llm.population import leaves
from evojax_llm.population import stack

# Products of so small a rank are written out as sums.
_UNROLLED = 8
# Members whose noise is there at a time in an update.
CHUNK = 256


@flax.struct.dataclass
class Factors:
  """Noise a b of a leaf: a (..., in, r) and b (..., r, out) / sqrt(r), f32."""

  a: jax.Array
  b: jax.Array


def _is_noise(node):
  return isinstance(node, Factors)


def factors(
  key: jax.Array,
  genome: stack.Genome,
  rank: int = 1,
  *,
  layers: str | None = None,
) -> Any:
  """Returns the noise of one member: `Factors` for matrices, else f32 arrays.

  Args:
    key: () typed key of the member, from seed, generation and id.
    genome: any tree; only its shapes matter.
    rank: r.
    layers: key below which leaves have the axis L; None where none has it.

  Raises:
    ValueError: if the rank is not positive, or no leaf is below `layers`.
  """
  if rank < 1:
    raise ValueError(f'Got rank {rank}; expected at least one.')
  leaves.check_layers(genome, layers)

  def leaf_noise(index, path, leaf):
    def draw(stream, shape):
      return noise.normal(noise.words(key, stream, shape)[0])

    if leaf.ndim - leaves.is_layered(path, layers) < 2:
      return draw(2 * index, leaf.shape)
    *batch, fan_in, fan_out = leaf.shape
    return Factors(
      a=draw(2 * index, (*batch, fan_in, rank)),
      b=draw(2 * index + 1, (*batch, rank, fan_out))
      * jnp.float32(1.0 / math.sqrt(rank)),
    )

  return leaves.map_indexed(leaf_noise, genome)


def perturb(
  key: jax.Array,
  genome: stack.Genome,
  sigma: jax.Array | float = 0.1,
  rank: int = 1,
  *,
  relative: bool = True,
  rounding: str = 'nearest',
  layers: str | None = None,
) -> stack.Genome:
  """Adds seeded noise of rank r to every matrix: x + sigma E, formed.

  Args:
    key: () typed key of the member.
    genome: the centre, any tree.
    sigma: () standard deviation of every entry.
    rank: r of the noise.
    relative: whether sigma is a fraction of each matrix's root mean square.
    rounding: of bf16 leaves; see `noise.cast`.
    layers: as in `factors`.
  """
  noise.SIGMA.check_known(sigma, 'perturb')
  sigma = jnp.float32(sigma)
  made = factors(key, genome, rank, layers=layers)
  streams = 2 * len(jax.tree.leaves(genome))

  def add(index, path, leaf, change):
    length = sigma
    if relative:
      length = sigma * noise.root_mean_square(path, leaf, layers)
    if _is_noise(change):
      change = _product(change.a, change.b)
    new = leaf.astype(jnp.float32) + length * change
    spare = jnp.uint32(0)
    if rounding == 'stochastic' and leaf.dtype == jnp.bfloat16:
      spare, _ = noise.words(key, streams + index, leaf.shape)
    return noise.cast(new, leaf.dtype, spare, rounding)

  return leaves.map_indexed(add, genome, made)


def update(
  keys: jax.Array,
  weights: jax.Array,
  genome: stack.Genome,
  rank: int,
  *,
  layers: str | None = None,
) -> stack.Genome:
  """Returns sum_p w_p E_p of keys and weights (P,), f32, no member formed.

  For a matrix it is one product (in, C r) (C r, out) for each CHUNK of members,
  summed in their order. With weights alpha f_p / (P sigma), f the shaped
  fitness, it is the step of an evolution strategy. Only the shapes of `genome`
  matter.
  """

  def part(keys, weights):
    def contract(made):
      if not _is_noise(made):
        return jnp.einsum(
          'p,p...->...', weights, made, precision=jax.lax.Precision.HIGHEST
        )
      return jnp.einsum(
        'p...ir,p...ro->...io',
        made.a,
        made.b * weights.reshape(weights.shape + (1,) * (made.b.ndim - 1)),
        precision=jax.lax.Precision.HIGHEST,
      )

    members = jax.vmap(lambda key: factors(key, genome, rank, layers=layers))(
      keys
    )
    return jax.tree.map(contract, members, is_leaf=_is_noise)

  if len(keys) <= CHUNK:
    return part(keys, weights)
  # What fills up the last chunk weighs nothing.
  slots = jnp.arange(-(-len(keys) // CHUNK) * CHUNK).reshape(-1, CHUNK)
  weights = jnp.pad(weights, (0, slots.size - len(keys)))

  def add(total, at):
    more = part(keys[jnp.minimum(at, len(keys) - 1)], weights[at])
    return jax.tree.map(jnp.add, total, more), None

  zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), genome)
  return jax.lax.scan(add, zero, slots)[0]


def move(
  key: jax.Array,
  genome: stack.Genome,
  change: stack.Genome,
  *,
  rounding: str = 'nearest',
) -> stack.Genome:
  """Moves the centre by an f32 change, every leaf in its own type.

  The key matters with stochastic `rounding` alone; see `noise.cast`.
  """

  def add(index, path, leaf, by):
    del path
    spare, _ = noise.words(key, index, leaf.shape)
    return noise.cast(
      leaf.astype(jnp.float32) + by, leaf.dtype, spare, rounding
    )

  return leaves.map_indexed(add, genome, change)


def as_adapter(made: Any, sigma: jax.Array | float) -> dict[str, Any]:
  """Returns the noise of all kernels as factors of a
  `models.expression.LowRank`.

  y = x W + (x a)(sigma b): the member runs on the centre's matrices. `made` is
  what `factors` gives for a parameter tree, sigma () is absolute; noise of
  other leaves (norms) is left out.
  """
  adapter = {}
  for name, node in made.items():
    if not isinstance(node, dict):
      continue
    if _is_noise(node.get('kernel')):
      pair = node['kernel']
      adapter[name] = {'a': pair.a, 'b': pair.b * jnp.float32(sigma)}
    elif inner := as_adapter(node, sigma):
      adapter[name] = inner
  return adapter


def _product(a, b):
  """a b, in the loop that uses it where the rank is small."""
  rank = a.shape[-1]
  if rank > _UNROLLED:
    return jnp.einsum(
      '...ir,...ro->...io', a, b, precision=jax.lax.Precision.HIGHEST
    )
  # Or the normal numbers would be worked out anew for every element.
  a, b = jax.lax.optimization_barrier((a, b))
  return sum(a[..., :, r : r + 1] * b[..., r : r + 1, :] for r in range(rank))
