"""Fitness sharing and attraction: M2N2's competition for examples (GECCO 2025).

S is the (P, items) matrix of scores, not negative, of each member on each
example; members that solve what few others solve are fitter:

  z_j  = sum_k S_kj
  F_ij = c_j S_ij / z_j^alpha        f_i = sum_j F_ij
  g(A, B) = sum_j max(0, F_Bj - F_Aj)

A mate B is drawn by its attraction g to A, which was drawn by f. With alpha = 0
fitness is not shared. A member with a score that is not finite has failed; it
uses nothing up.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import selection
from evojax_llm.operators.operator import Parameter

ALPHA = Parameter(
  'alpha', 1.0, 'how strongly members compete', 0.0, span=(0.0, 3.0)
)


def shares(
  scores: jax.Array,
  alpha: jax.Array | float = 1.0,
  capacity: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns what each member gets of each example: F (P, items) f32.

  Zero for an example that no member solves, NaN in rows of failed members.

  Args:
    scores: (P, items) f32 or bool.
    alpha: () f32, how strongly members compete.
    capacity: c, () or (items,) f32; one for scores of 0 and 1.
  """
  ALPHA.check_known(alpha, 'fitness sharing')
  scores = selection.seen('scores', scores, 'P', 'items')
  alive = jnp.all(jnp.isfinite(scores), axis=1, keepdims=True)
  known = jnp.where(alive, scores, 0.0)
  used = jnp.sum(known, axis=0)
  share = jnp.where(
    used > 0.0,
    jnp.float32(capacity)
    * jnp.where(used > 0.0, used, 1.0) ** -jnp.float32(alpha),
    0.0,
  )
  return jnp.where(alive, known * share, jnp.nan)


def not_negative(scores: jax.Array) -> jax.Array:
  """Lifts examples with scores below zero, as of errors, to a lowest of zero.

  Takes and returns (P, items) f32; failed members have no say.
  """
  lowest = jnp.min(jnp.where(jnp.isfinite(scores), scores, 0.0), axis=0)
  return scores - jnp.minimum(lowest, 0.0)


def shared_fitness(
  scores: jax.Array,
  alpha: jax.Array | float = 1.0,
  capacity: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns the fitness f shared on examples, (P,) f32; NaN where failed."""
  return jnp.sum(shares(scores, alpha, capacity), axis=1)


def attraction(shared: jax.Array, index: jax.Array) -> jax.Array:
  """Returns g(A, .) (P,) of all members to the one at an index, of `shares`.

  Zero to itself, NaN for failed members. A failed A has nothing, and is
  attracted by all that others have.
  """
  own = jnp.nan_to_num(shared[index])
  return jnp.sum(jnp.maximum(shared - own, 0.0), axis=1)


def mates(
  key: jax.Array,
  scores: jax.Array,
  ids: jax.Array | None = None,
  alpha: jax.Array | float = 1.0,
  capacity: jax.Array | float = 1.0,
  *,
  attract: bool = True,
  eligible: jax.Array | None = None,
) -> jax.Array:
  """Draws two parents, the first by shared fitness, the second by attraction.

  Without `attract`, both are drawn by shared fitness. Where no member attracts
  the first, all others are drawn evenly. `eligible` (P,) bool are those that
  can be drawn; all by default.

  Returns:
    (2,) i32 indices, different unless there is one such member alone.
  """
  shared = shares(scores, alpha, capacity)
  ids = selection.default_ids(shared[:, 0], ids)
  fitness = jnp.sum(shared, axis=1)
  first = selection.roulette(
    jax.random.fold_in(key, 0), fitness, 1, ids, eligible=eligible
  )[0]
  others = jnp.arange(ids.shape[0]) != first
  if eligible is not None:
    others = others & eligible
  second = selection.roulette(
    jax.random.fold_in(key, 1),
    attraction(shared, first) if attract else fitness,
    1,
    ids,
    eligible=others,
  )[0]
  return jnp.stack([first, jnp.where(jnp.any(others), second, first)])


def survivors(
  scores: jax.Array,
  ids: jax.Array,
  count: int,
  alpha: jax.Array | float = 1.0,
  capacity: jax.Array | float = 1.0,
) -> jax.Array:
  """Removes the least fit one by one until `count` are left: (P,) bool.

  What a member leaves behind is shared anew before the next one goes. Members
  that failed go first, of equals the lowest id; ids (P,) i32 are -1 where there
  is no member.
  """

  def remove(_, alive):
    fitness = shared_fitness(
      jnp.where(alive[:, None], scores, jnp.nan), alpha, capacity
    )
    fitness = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    least = jnp.lexsort((ids, fitness, ~alive))[0]
    return alive.at[least].set(alive[least] & (jnp.sum(alive) <= count))

  alive = jnp.asarray(ids) >= 0
  return jax.lax.fori_loop(0, max(0, alive.shape[0] - count), remove, alive)
