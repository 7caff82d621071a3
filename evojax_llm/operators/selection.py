"""Selection: which members are drawn, as parents or to survive.

These functions see the fitness (P,) of a whole population, so they are not
lifted with vmap over members (over several draws they may be). They return
indices, which are valid whatever the fitness. Fitness is maximised, and a
member whose fitness is not finite has failed.

Draws are addressed by member id, and ties go to the lower id, so reordering
the members changes the indices alone.

Chances of roulette, in classes that exhaust one another in this order:
  1. fitness above zero: in proportion to fitness. If any fitness is negative,
     all are first shifted so that the lowest becomes zero.
  2. fitness zero (after the shift; all of them if all are equal): evenly.
  3. failed: evenly.
A failed member is thus chosen only when the others do not suffice.
"""

import jax
import jax.numpy as jnp

METHODS = ('roulette', 'tournament', 'truncation', 'rank', 'universal')

# Classes of candidates; a lower class is exhausted before a higher one.
ELITE, _POSITIVE, _ZERO, _FAILED, EXCLUDED = range(-1, 4)


def gumbel(key: jax.Array, ids: jax.Array, *rounds: int) -> jax.Array:
  """Returns Gumbel noise of each id, (P,) f32, or (rounds, P)."""
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids.astype(jnp.uint32))
  return jax.vmap(lambda k: jax.random.gumbel(k, rounds, jnp.float32))(keys).T


def seen(name: str, values: jax.Array, *axes: str) -> jax.Array:
  """Returns what a selection sees of all members, or a list of it, as f32.

  Raises:
    ValueError: it has not these axes.
  """
  values = jnp.asarray(values, jnp.float32)
  if values.ndim != len(axes):
    wanted = ', '.join(axes) + ',' * (len(axes) == 1)
    raise ValueError(
      f'Got {name} of shape {values.shape}; expected ({wanted}).'
    )
  return values


def default_ids(fitness: jax.Array, ids: jax.Array | None) -> jax.Array:
  """Returns the ids (P,) i32, or indices where there are none."""
  if ids is None:
    return jnp.arange(fitness.shape[0], dtype=jnp.int32)
  return jnp.asarray(ids)


def classes(fitness: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns classes (P,) i32, and log chances within them (P,) f32."""
  finite = jnp.isfinite(fitness)
  known = jnp.where(finite, fitness, jnp.inf)
  lowest = jnp.min(known)
  shifted = jnp.where(lowest < 0.0, fitness - lowest, fitness)
  positive = finite & (shifted > 0.0)
  group = jnp.where(positive, _POSITIVE, jnp.where(finite, _ZERO, _FAILED))
  chance = jnp.log(jnp.where(positive, shifted, 1.0))
  return group.astype(jnp.int32), chance


def ranking(fitness: jax.Array, ids: jax.Array | None = None) -> jax.Array:
  """Returns indices (P,) i32, fittest first, failed last; ids break ties."""
  fitness = seen('fitness', fitness, 'P')
  ids = default_ids(fitness, ids)
  return jnp.lexsort((ids, ranking_key(fitness))).astype(jnp.int32)


def truncation(
  fitness: jax.Array, count: int, ids: jax.Array | None = None
) -> jax.Array:
  """Returns the `count` fittest, (count,) i32 indices, best first."""
  fitness = seen('fitness', fitness, 'P')
  check_count(count, fitness)
  return ranking(fitness, ids)[:count]


def roulette(
  key: jax.Array,
  fitness: jax.Array,
  count: int,
  ids: jax.Array | None = None,
  *,
  replace: bool = False,
  eligible: jax.Array | None = None,
) -> jax.Array:
  """Draws in proportion to fitness: (count,) i32 indices in the order drawn.

  Without replacement this is Gumbel top-k over log fitness, which has the law
  of successive draws. Draws are addressed by `ids` (P,) i32, indices by
  default; members that are not `eligible` (P,) are drawn for want of others
  alone. If any fitness is negative, all are first shifted so that the lowest
  becomes zero; zeros come after what is above zero, and members that failed
  (NaN or infinite) last.

  Raises:
    ValueError: if more members are asked for than there are, or less than none,
      or fitness is not (P,).
  """
  fitness = seen('fitness', fitness, 'P')
  check_count(count, fitness, replace)
  ids = default_ids(fitness, ids)
  group, chance = classes(fitness)
  if eligible is not None:
    group, chance = classes(jnp.where(eligible, fitness, jnp.nan))
    group = jnp.where(eligible, group, EXCLUDED)
  if replace:
    best = group == jnp.min(group)
    score = gumbel(key, ids, count) + chance
    return jnp.argmax(jnp.where(best, score, -jnp.inf), axis=1).astype(
      jnp.int32
    )
  score = chance + gumbel(key, ids)
  return jnp.lexsort((ids, -score, group))[:count].astype(jnp.int32)


def rank(
  key: jax.Array,
  fitness: jax.Array,
  count: int,
  ids: jax.Array | None = None,
  *,
  replace: bool = False,
) -> jax.Array:
  """Draws in proportion to rank: the fittest of n has chance n, the last 1.

  As `roulette`, but insensitive to the scale of fitness. Failed members come
  last, drawn evenly.
  """
  fitness = seen('fitness', fitness, 'P')
  return roulette(key, rank_chances(fitness, ids), count, ids, replace=replace)


def rank_chances(fitness: jax.Array, ids: jax.Array | None = None) -> jax.Array:
  """Returns n for the fittest of n, then n - 1, ..., (P,); NaN where failed."""
  order = ranking(fitness, ids)
  ranks = jnp.arange(fitness.shape[0], 0, -1, dtype=jnp.int32)
  chances = jnp.zeros(fitness.shape, jnp.float32)
  chances = chances.at[order].set(ranks.astype(jnp.float32))
  # Counted from the last that lives, so that it has chance one.
  failed = jnp.sum(~jnp.isfinite(fitness)).astype(jnp.float32)
  return jnp.where(jnp.isfinite(fitness), chances - failed, jnp.nan)


def tournament(
  key: jax.Array,
  fitness: jax.Array,
  count: int,
  ids: jax.Array | None = None,
  *,
  entrants: int = 3,
  replace: bool = False,
  eligible: jax.Array | None = None,
  elites: jax.Array | int = 0,
) -> jax.Array:
  """Chooses repeatedly the fittest of `entrants`, drawn evenly from the rest.

  The winner leaves, as in GENOME's released code; with `replace` it stays. With
  fewer left than `entrants`, and in the first `elites` () rounds, all of them
  compete. The entrants of one tournament are different members, of the
  `eligible` (P,) bool. Otherwise as `roulette`.

  Raises:
    ValueError: if no member enters, or more are asked for than there are.
  """
  fitness = seen('fitness', fitness, 'P')
  check_count(count, fitness, replace)
  if entrants < 1:
    raise ValueError(
      f'Got tournaments of {entrants} entrants; expected at least one.'
    )
  ids = default_ids(fitness, ids)
  if eligible is None:
    eligible = jnp.ones(fitness.shape, bool)
  strength = positions_in(ranking(fitness, ids))

  def play(left, at):
    round_index, noise = at
    # Of those left, the `entrants` with the highest noise.
    position = positions_in(jnp.lexsort((ids, -noise, ~left)))
    enters = left & ((position < entrants) | (round_index < elites))
    # A failed member may enter, but one that lives beats it.
    rounds_left = jnp.where(enters, strength, fitness.shape[0])
    winner = jnp.argmin(rounds_left).astype(jnp.int32)
    return (left if replace else left.at[winner].set(False)), winner

  rounds = jnp.arange(count, dtype=jnp.int32)
  _, winners = jax.lax.scan(play, eligible, (rounds, gumbel(key, ids, count)))
  return winners


def positions_in(order: jax.Array) -> jax.Array:
  """Returns the position of each index in an order of all, (P,) i32."""
  positions = jnp.arange(order.shape[0], dtype=jnp.int32)
  return jnp.zeros(order.shape, jnp.int32).at[order].set(positions)


def universal(
  key: jax.Array,
  fitness: jax.Array,
  count: int,
  ids: jax.Array | None = None,
  *,
  replace: bool = True,
) -> jax.Array:
  """Turns a wheel with `count` pointers once (stochastic universal sampling).

  With replacement (Baker, "Reducing bias and inefficiency in the selection
  algorithm", 1987) a member whose share of the wheel is e / count is drawn
  floor(e) or ceil(e) times. Without, shares are capped at one draw, and what is
  cut off goes to the others of the class in proportion. Args and errors are
  those of `roulette`; the ids are the order around the wheel and of the result.
  """
  fitness = seen('fitness', fitness, 'P')
  check_count(count, fitness, replace)
  ids = default_ids(fitness, ids)
  group, chance = classes(fitness)
  if not replace:
    return spin(key, group, chance, count, ids)
  around = jnp.argsort(ids)
  best = group == jnp.min(group)
  share = jnp.where(
    best, jnp.exp(chance - jnp.max(chance, where=best, initial=-jnp.inf)), 0.0
  )[around]
  ends = jnp.cumsum(share)
  pointers = (_pointers(key, count) / count) * ends[-1]
  hit = jnp.searchsorted(ends, pointers, side='right')
  # Rounding may put a pointer at the very end, beyond the last share.
  last = around.shape[0] - 1 - jnp.argmax(share[::-1] > 0.0)
  return around[jnp.minimum(hit, last)].astype(jnp.int32)


def _pointers(key, count):
  """(count,) f32: 0, 1, ... moved by one draw from [0, 1)."""
  return jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(
    key, (), jnp.float32
  )


def spin(
  key: jax.Array,
  group: jax.Array,
  chance: jax.Array,
  count: int,
  ids: jax.Array,
) -> jax.Array:
  """Samples as `universal` without replacement, class after class.

  Args:
    key: () typed key.
    group: (P,) i32 classes; EXCLUDED is never expected.
    chance: (P,) f32 logarithm of the chance within a class.
    count: at most P.
    ids: (P,) i32; may repeat where excluded.
  """
  expected = jnp.zeros(chance.shape, jnp.float32)
  left = jnp.float32(count)
  for one in (ELITE, _POSITIVE, _ZERO, _FAILED):
    inside = group == one
    highest = jnp.max(chance, where=inside, initial=-jnp.inf)
    weight = jnp.where(inside, jnp.exp(chance - highest), 0.0)
    size = jnp.sum(inside).astype(jnp.float32)
    share = _capped(weight, jnp.minimum(left, size))
    expected = jnp.where(
      left < size, expected + share, jnp.where(inside, 1.0, expected)
    )
    left = jnp.maximum(left - size, 0.0)
  around = jnp.argsort(ids)
  ends = jnp.cumsum(expected[around])
  # Pointers passed at the end of each share, and so inside of it.
  passed = jnp.searchsorted(_pointers(key, count), ends, side='left')
  hits = (
    jnp.zeros(ids.shape, passed.dtype)
    .at[around]
    .set(jnp.diff(passed, prepend=0))
  )
  # Rounding may move a pointer across an edge: certain members come first, and
  # if one was hit twice the next of the class fills up.
  order = jnp.lexsort((ids, group, hits == 0, expected < 1.0))[:count]
  return order[jnp.argsort(ids[order])].astype(jnp.int32)


def _capped(weight, total):
  """min(1, c w), with c so that they sum to `total`.

  The k heaviest are certain, for the smallest k that leaves no other above
  one. (P,) f32; `total` is at most the number of weights above zero.
  """
  heaviest = jnp.sort(weight)[::-1]
  # Summed from the lightest, so that nothing cancels.
  rest = jnp.cumsum(heaviest[::-1])[::-1]
  certain = jnp.arange(weight.shape[0], dtype=jnp.float32)
  factor = (total - certain) / jnp.maximum(rest, 1e-30)
  k = jnp.argmax(factor * heaviest <= 1.0 + 1e-6)
  return jnp.minimum(weight * factor[k], 1.0)


def ranking_key(fitness: jax.Array) -> jax.Array:
  """Returns keys (P,) f32 that sort from the fittest to failed members."""
  return jnp.where(jnp.isfinite(fitness), -fitness, jnp.inf)


def check_count(count: int, fitness: jax.Array, replace: bool = False) -> None:
  """Refuses a count below zero, or above P without replacement."""
  members = fitness.shape[0]
  if count < 0 or (count > members and not replace):
    wanted = '0 or more' if replace else f'0 to {members}'
    advice = ' Draw with replacement or enlarge the population.'
    raise ValueError(
      f'Got {count} members to draw out of {members}; expected {wanted}.'
      f'{advice if count > 0 else ""}'
    )
