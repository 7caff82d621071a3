"""Crossover and mutation of numbers within bounds (Deb et al., 2002).

Genomes are trees of numbers, each with a lowest and a highest value in trees of
the same structure. Whole numbers stay whole, and nothing leaves its bounds;
what was outside is brought in first.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import noise
from evojax_llm.population import stack


def sbx(
  key: jax.Array,
  one: stack.Genome,
  two: stack.Genome,
  low: stack.Genome,
  high: stack.Genome,
  eta: jax.Array | float = 15.0,
) -> stack.Genome:
  """Simulated binary crossover within bounds: one child of two parents.

  A gene is crossed with chance 1/2, and then that of either child, by chance;
  else it is the first parent's. The spread is cut on the side of the child, so
  that none lies outside.

  Args:
    key: () typed key.
    one, two: parents.
    low, high: bounds, leaves that broadcast against the parents'.
    eta: () index of the distribution; the larger, the nearer to the parents.
  """

  def cross(draw, bits, x, y, low, high):
    first, last = jnp.minimum(x, y), jnp.maximum(x, y)
    gap = last - first
    above = bits % 2 == 1
    room = jnp.where(above, high - last, first - low)
    spread = 1.0 + 2.0 * room / jnp.where(gap > 0.0, gap, 1.0)
    part = draw * (2.0 - spread ** -(eta + 1.0))
    beta = jnp.where(part <= 1.0, part, 1.0 / (2.0 - part))
    beta = beta ** (1.0 / (eta + 1.0))
    child = 0.5 * (x + y + jnp.where(above, beta, -beta) * gap)
    return jnp.where((bits // 2 % 2 == 1) & (gap > 0.0), child, x)

  eta = jnp.float32(eta)
  return _by_gene(key, cross, low, high, one, two)


def polynomial(
  key: jax.Array,
  genome: stack.Genome,
  low: stack.Genome,
  high: stack.Genome,
  eta: jax.Array | float = 20.0,
  gene_rate: jax.Array | float = 1.0,
) -> stack.Genome:
  """Polynomial mutation within bounds; whole numbers move by one at least.

  Args:
    key: () typed key.
    genome: any tree.
    low, high: bounds, leaves that broadcast against the genome's.
    eta: () index of the distribution; the larger, the smaller the changes.
    gene_rate: () probability that a gene changes.
  """

  def mutate(draw, bits, x, low, high):
    span = high - low
    down = draw < 0.5
    room = jnp.where(down, high - x, x - low) / jnp.where(span > 0, span, 1.0)
    tail = jnp.where(down, 2.0 * draw, 2.0 - 2.0 * draw)
    kept = tail + (1.0 - tail) * room ** (eta + 1.0)
    change = (1.0 - kept ** (1.0 / (eta + 1.0))) * span
    change = jnp.where(down, -change, change)
    return x + jnp.where(noise.bernoulli(bits, gene_rate), change, 0.0)

  eta, gene_rate = jnp.float32(eta), jnp.float32(gene_rate)
  return _by_gene(key, mutate, low, high, genome, steps=True)


def _by_gene(key, change, low, high, genome, *others, steps=False):
  """Maps change(draw, bits, gene, ..., low, high) over genes in f32.

  A draw is in [0, 1), bits are a u32 word. With `steps`, a whole number that
  changes at all changes by one at least.
  """
  leaves, structure = jax.tree.flatten(genome)
  made = []
  for index, (leaf, *rest) in enumerate(
    zip(leaves, *map(jax.tree.leaves, (*others, low, high)), strict=True)
  ):
    *more, lowest, highest = (x.astype(jnp.float32) for x in rest)
    genes = [
      jnp.clip(x.astype(jnp.float32), lowest, highest) for x in (leaf, *more)
    ]
    word, bits = noise.words(key, index, leaf.shape)
    draw = (word >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    new = change(draw, bits, *genes, lowest, highest)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      if steps:
        least = genes[0] + jnp.sign(new - genes[0])
        farther = jnp.abs(new - genes[0]) > 1.0
        new = jnp.where(farther, new, least)
      new = jnp.round(new)
    made.append(jnp.clip(new, lowest, highest).astype(leaf.dtype))
  return jax.tree.unflatten(structure, made)
