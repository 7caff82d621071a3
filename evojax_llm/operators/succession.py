"""Succession: members move by their own and the population's experience.

The update is GENOME+'s and Model Swarms' (arXiv 2503.01155, 2410.11163), a
particle swarm with repulsion from the worst:

  r_k ~ U(0, 1), k = 0..3, for each particle and step
  a   = r phi / sum(r phi)
  v  <- a_0 v + a_1 (p - x) + a_2 (g - x) - a_3 (w - x)
  x  <- x + lambda v

with p the member's own best position, g the best and w the worst position of
any member so far; - a_3 (w - x) in the one paper is + a_3 (x - w) in the other.
Functions are for one particle; vmap them for a population.

r may be drawn for each particle (as written) or for each of its tensors, or be
one throughout. GENOME's released code draws it once a run: give every member
the same key. Restarts of stale particles are in `restarts`.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import selection
from evojax_llm.population import leaves
from evojax_llm.population import stack

DRAWS = ('particle', 'tensor', 'none')
STARTS = ('random', 'zero', 'best')


@flax.struct.dataclass
class Memory:
  """Best-particle memory: copies of genomes, which no step moves.

  P personal bests, with fitness (P,) and ids (P,), are None where no succession
  uses them; best and worst are one genome each of all time, with fitness () and
  id (), the best also with its fitness on tasks (K,), where known, and the
  generation () of its birth. Where no member had finite fitness yet, fitness is
  NaN and the id that of the first.
  """

  personal: Any
  personal_fitness: jax.Array | None
  personal_ids: jax.Array | None
  best: Any
  best_fitness: jax.Array
  best_id: jax.Array
  best_tasks: jax.Array | None
  best_generation: jax.Array
  worst: Any
  worst_fitness: jax.Array
  worst_id: jax.Array


def improves(new: jax.Array, old: jax.Array) -> jax.Array:
  """Whether fitness `new` beats `old`: strictly, NaN never does, all beat NaN.

  Elementwise; use improves(-new, -old) for the worst.
  """
  return jnp.isfinite(new) & ((new > old) | ~jnp.isfinite(old))


def start_memory(
  population: stack.Population,
  fitness: jax.Array,
  ids: jax.Array,
  tasks: jax.Array | None = None,
  *,
  personal: bool = True,
) -> Memory:
  """Memory of a first population (P, ...) with fitness (P,)."""
  best = _first_best(fitness, ids)
  worst = _first_best(-fitness, ids)
  return Memory(
    personal=jax.tree.map(jnp.copy, population) if personal else None,
    personal_fitness=jnp.copy(fitness) if personal else None,
    personal_ids=jnp.copy(ids) if personal else None,
    best=stack.take(population, best),
    best_fitness=fitness[best],
    best_id=ids[best],
    best_tasks=None if tasks is None else tasks[best],
    best_generation=jnp.int32(0),
    worst=stack.take(population, worst),
    worst_fitness=fitness[worst],
    worst_id=ids[worst],
  )


def _first_best(fitness, ids):
  return selection.ranking(fitness, ids)[0]


def remember_extremes(
  memory: Memory,
  population: stack.Population,
  fitness: jax.Array,
  ids: jax.Array,
  tasks: jax.Array | None = None,
  generation: jax.Array | int = 0,
) -> Memory:
  """Updates best and worst from M newly scored members, born in `generation`.

  Fitness (M,) is NaN where failed or empty, tasks are (M, K) where the memory
  knows them.
  """
  best, worst = _first_best(fitness, ids), _first_best(-fitness, ids)
  better = improves(fitness[best], memory.best_fitness)
  worse = improves(-fitness[worst], -memory.worst_fitness)

  def keep(changed, index, old):
    new = stack.take(population, index)
    return jax.tree.map(lambda n, o: jnp.where(changed, n, o), new, old)

  return memory.replace(
    best=keep(better, best, memory.best),
    best_fitness=jnp.where(better, fitness[best], memory.best_fitness),
    best_id=jnp.where(better, ids[best], memory.best_id),
    best_tasks=None
    if tasks is None
    else jnp.where(better, tasks[best], memory.best_tasks),
    best_generation=jnp.where(better, generation, memory.best_generation),
    worst=keep(worse, worst, memory.worst),
    worst_fitness=jnp.where(worse, fitness[worst], memory.worst_fitness),
    worst_id=jnp.where(worse, ids[worst], memory.worst_id),
  )


def remember_personal(
  memory: Memory,
  population: stack.Population,
  fitness: jax.Array,
  ids: jax.Array,
) -> Memory:
  """Updates the personal bests of P members that have just been scored."""
  better = improves(fitness, memory.personal_fitness)
  return memory.replace(
    personal=stack.select(better, population, memory.personal),
    personal_fitness=jnp.where(better, fitness, memory.personal_fitness),
    personal_ids=jnp.where(better, ids, memory.personal_ids),
  )


def draw_coefficients(
  key: jax.Array,
  weights: jax.Array,
  *,
  draws: str = 'particle',
  num_tensors: int | None = None,
  normalise: bool = True,
) -> jax.Array:
  """Coefficients of one particle and step: (4,) f32, or (num_tensors, 4).

  The weights phi (4,) are inertia, cognitive, social, repel. r ~ U(0, 1) is
  drawn once for the 'particle', for each 'tensor', or is one ('none').
  Normalised, as in both papers, a = r phi / sum(r phi), zero where the sum is
  not positive; else r phi.

  Raises:
    ValueError: if `draws` is unknown, or 'tensor' without their number.
  """
  if draws not in DRAWS:
    raise ValueError(f'Got draws {draws!r}; expected one of {DRAWS}.')
  if draws == 'none':
    drawn = jnp.ones_like(weights)
  elif draws == 'particle':
    drawn = jax.random.uniform(key, weights.shape, jnp.float32)
  elif num_tensors is None:
    raise ValueError(
      "Got draws 'tensor' without num_tensors; expected the number of leaves "
      'of the genome.'
    )
  else:
    shape = (num_tensors, *weights.shape)
    drawn = jax.random.uniform(key, shape, jnp.float32)
  products = drawn * weights
  if not normalise:
    return products
  total = jnp.sum(products, axis=-1, keepdims=True)
  return jnp.where(
    total > 0.0, products / jnp.where(total > 0, total, 1.0), 0.0
  )


def velocity(
  blend: jax.Array,
  old: stack.Genome,
  position: stack.Genome,
  personal: stack.Genome,
  best: stack.Genome,
  worst: stack.Genome,
) -> stack.Genome:
  """New velocity of one particle, in f32, kept in the type of `old`.

  The blend is (4,), or (leaves, 4) in the order of jax.tree.
  """

  def leaf_velocity(index, path, v, x, p, g, w):
    del path
    a = blend if blend.ndim == 1 else blend[index]
    here = x.astype(jnp.float32)
    new = (
      a[0] * v.astype(jnp.float32)
      + a[1] * (p.astype(jnp.float32) - here)
      + a[2] * (g.astype(jnp.float32) - here)
      - a[3] * (w.astype(jnp.float32) - here)
    )
    return new.astype(v.dtype)

  return leaves.map_indexed(leaf_velocity, old, position, personal, best, worst)


def step(
  position: stack.Genome, speed: stack.Genome, length: jax.Array | float
) -> stack.Genome:
  """One particle at x + lambda v, in f32, kept in the type of `position`."""
  length = jnp.float32(length)

  def leaf_step(x, v):
    moved = x.astype(jnp.float32) + length * v.astype(jnp.float32)
    return moved.astype(x.dtype)

  return jax.tree.map(leaf_step, position, speed)


def swarm(
  key: jax.Array,
  speed: stack.Genome,
  position: stack.Genome,
  personal: stack.Genome,
  best: stack.Genome,
  worst: stack.Genome,
  *,
  inertia: jax.Array | float = 0.2,
  cognitive: jax.Array | float = 0.2,
  social: jax.Array | float = 0.2,
  repel: jax.Array | float = 0.1,
  length: jax.Array | float = 0.5,
  draws: str = 'particle',
  normalise: bool = True,
) -> tuple[stack.Genome, stack.Genome]:
  """One step by inertia, to the own and the common best, from the worst.

  v <- a_0 v + a_1 (p - x) + a_2 (g - x) - a_3 (w - x) and x <- x + length v,
  with a of the four weights inertia, cognitive, social and repel; `draws`
  and `normalise` are those of `draw_coefficients`.

  Returns:
    The new velocity and the new position.
  """
  blend = draw_coefficients(
    key,
    jnp.asarray([inertia, cognitive, social, repel], jnp.float32),
    draws=draws,
    num_tensors=len(jax.tree.leaves(position)),
    normalise=normalise,
  )
  speed = velocity(blend, speed, position, personal, best, worst)
  return speed, step(position, speed, length)


def first_velocity(
  position: stack.Genome, target: stack.Genome
) -> stack.Genome:
  """The difference target - x, in the type of `position`."""

  def difference(x, y):
    gap = y.astype(jnp.float32) - x.astype(jnp.float32)
    return gap.astype(x.dtype)

  return jax.tree.map(difference, position, target)


def start_velocities(
  key: jax.Array,
  population: stack.Population,
  ids: jax.Array,
  *,
  start: str = 'random',
  best: stack.Genome | None = None,
) -> stack.Population:
  """First velocities (P, ...) of a population; not for one member.

  Towards another member drawn evenly ('random'), at rest ('zero'), or towards
  the 'best' genome. The key matters for 'random' alone.

  Raises:
    ValueError: if `start` is unknown, or 'best' without one.
  """
  if start not in STARTS:
    raise ValueError(f'Got velocity start {start!r}; expected one of {STARTS}.')
  if start == 'zero':
    return jax.tree.map(jnp.zeros_like, population)
  if start == 'best':
    if best is None:
      raise ValueError("Got start 'best' without `best`; pass the best genome.")
    return jax.vmap(first_velocity, in_axes=(0, None))(population, best)
  targets = stack.take(population, partners(key, ids))
  return jax.vmap(first_velocity)(population, targets)


def partners(key: jax.Array, ids: jax.Array) -> jax.Array:
  """Draws another member for each, evenly: (P,) i32 indices.

  A member moves on by a random number of positions in the order of ids (P,), -1
  in empty slots, which are never drawn; its own only if it is alone.
  """
  empty = ids < 0
  members = jnp.sum(~empty).astype(jnp.int32)
  draws = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids.astype(jnp.uint32))
  distance = jax.vmap(
    lambda k: jax.random.randint(
      k, (), 1, jnp.maximum(members, 2), dtype=jnp.int32
    )
  )(draws)
  order = jnp.lexsort((ids, empty)).astype(jnp.int32)
  rank = jnp.argsort(order).astype(jnp.int32)
  return order[(rank + distance) % jnp.maximum(members, 1)]
