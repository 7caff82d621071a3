"""Selection: which members become parents, which survive.

These functions see a whole population's fitness (P,), not one member, so they
are not lifted with vmap over members (though over several draws they may be).
They return places, never genomes, and are total: whatever the fitness, the
places returned are valid. Fitness is maximised, and a member whose fitness is
not finite has failed.

Draws are addressed by member id, and ties go to the lower id, so reordering
the members reorders nothing but the places.

Chances of roulette, in classes that exhaust one another in this order:
  1. fitness above zero: in proportion to fitness. If any fitness is negative,
     all are first shifted so that the lowest becomes zero.
  2. fitness zero (after the shift; all of them if all are equal): evenly.
  3. failed: evenly.
A failed member is thus chosen only when the others do not suffice.
"""

import jax
import jax.numpy as jnp

METHODS = ('roulette', 'tournament', 'truncation', 'rank')

# Classes of candidates; a lower class is exhausted before a higher one.
_ELITE, _POSITIVE, _ZERO, _FAILED, _EXCLUDED = range(-1, 4)


def _noise(key, ids):
  """(P,) Gumbel noise of each id."""
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids.astype(jnp.uint32))
  return jax.vmap(lambda k: jax.random.gumbel(k, (), jnp.float32))(keys)


def _round_noise(key, ids, rounds):
  """(rounds, P) Gumbel noise of each id in each of several rounds."""
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids.astype(jnp.uint32))
  return jax.vmap(lambda k: jax.random.gumbel(k, (rounds,), jnp.float32))(
    keys
  ).T


def _default_ids(fitness, ids):
  if ids is None:
    return jnp.arange(fitness.shape[0], dtype=jnp.int32)
  return ids


def _classes(fitness):
  """(P,) i32 class and (P,) f32 logarithm of the chance within it."""
  finite = jnp.isfinite(fitness)
  known = jnp.where(finite, fitness, jnp.inf)
  lowest = jnp.min(known)
  shifted = jnp.where(lowest < 0.0, fitness - lowest, fitness)
  positive = finite & (shifted > 0.0)
  group = jnp.where(positive, _POSITIVE, jnp.where(finite, _ZERO, _FAILED))
  chance = jnp.log(jnp.where(positive, shifted, 1.0))
  return group.astype(jnp.int32), chance


def ranking(fitness: jax.Array, ids: jax.Array | None = None) -> jax.Array:
  """Places from the fittest to the least fit, failed ones last.

  Args:
    fitness: (P,) f32.
    ids: (P,) i32, for ties; the places by default.

  Returns:
    (P,) i32.
  """
  ids = _default_ids(fitness, ids)
  known = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
  failed = (~jnp.isfinite(fitness)).astype(jnp.int32)
  return jnp.lexsort((ids, -known, failed)).astype(jnp.int32)


def truncation(
  fitness: jax.Array, count: int, ids: jax.Array | None = None
) -> jax.Array:
  """The `count` fittest, (count,) i32 places, best first."""
  return ranking(fitness, ids)[:count]


def roulette(
  key: jax.Array,
  fitness: jax.Array,
  count: int,
  ids: jax.Array | None = None,
  *,
  replace: bool = False,
) -> jax.Array:
  """Draws in proportion to fitness.

  Without replacement this is Gumbel top-k over log fitness, which has the
  law of successive draws.

  Args:
    key: () typed key.
    fitness: (P,) f32.
    count: how many; at most P without replacement.
    ids: (P,) i32 that address the draws; the places by default.
    replace: whether a member may be drawn twice.

  Returns:
    (count,) i32 places in the order drawn.

  Raises:
    ValueError: if more members are asked for than there are.
  """
  ids = _default_ids(fitness, ids)
  group, chance = _classes(fitness)
  if replace:
    best = group == jnp.min(group)
    score = _round_noise(key, ids, count) + chance
    return jnp.argmax(jnp.where(best, score, -jnp.inf), axis=1).astype(
      jnp.int32
    )
  _check_count(count, fitness)
  score = chance + _noise(key, ids)
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
  return roulette(key, _rank_chances(fitness, ids), count, ids, replace=replace)


def _rank_chances(fitness, ids):
  """(P,) f32: P for the fittest, then P - 1, ...; NaN where failed."""
  order = ranking(fitness, ids)
  places = jnp.arange(fitness.shape[0], 0, -1, dtype=jnp.int32)
  chances = jnp.zeros(fitness.shape, jnp.float32)
  chances = chances.at[order].set(places.astype(jnp.float32))
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
) -> jax.Array:
  """Repeatedly the fittest of a few: `entrants` drawn evenly from the rest.

  The winner is taken out, as in GENOME's released code, so no member is drawn
  twice. With fewer left than `entrants`, all of them compete.

  Returns:
    (count,) i32 places in the order drawn.

  Raises:
    ValueError: if more members are asked for than there are.
  """
  _check_count(count, fitness)
  ids = _default_ids(fitness, ids)
  eligible = jnp.ones(fitness.shape, bool)
  return _tournaments(
    key, fitness, count, ids, eligible, jnp.int32(0), entrants
  )


def _tournaments(key, fitness, count, ids, eligible, elites, entrants):
  """`count` tournaments, of which all compete in the first `elites`."""
  order = ranking(fitness, ids)
  strength = (
    jnp.zeros_like(order)
    .at[order]
    .set(jnp.arange(order.shape[0], dtype=order.dtype))
  )

  def play(left, at):
    round_index, noise = at
    # Of those left, the `entrants` with the highest noise.
    by_noise = jnp.lexsort((ids, -noise, ~left))
    place_in_draw = (
      jnp.zeros_like(order)
      .at[by_noise]
      .set(jnp.arange(order.shape[0], dtype=order.dtype))
    )
    enters = left & ((place_in_draw < entrants) | (round_index < elites))
    # A failed member may enter, but one that lives beats it.
    rounds_left = jnp.where(enters, strength, order.shape[0])
    winner = jnp.argmin(rounds_left).astype(jnp.int32)
    return left.at[winner].set(False), winner

  rounds = jnp.arange(count, dtype=jnp.int32)
  _, winners = jax.lax.scan(
    play, eligible, (rounds, _round_noise(key, ids, count))
  )
  return winners


def elite_count(
  share: jax.Array | float,
  members: jax.Array | int,
  *,
  least: int = 1,
  rounding='floor',
) -> jax.Array:
  """Number of elites for a share of the members.

  Args:
    share: () fraction of the members.
    members: () i32, what the share is of.
    least: guard; GENOME's released code has none, and its default share of
      0.02 makes no elite among ten.
    rounding: 'floor' (GENOME) or 'round' (GENOME+).

  Returns:
    () i32 in [least, members].

  Raises:
    ValueError: if `rounding` is neither.
  """
  if rounding not in ('floor', 'round'):
    raise ValueError(f"Got rounding {rounding!r}; expected 'floor' or 'round'.")
  exact = jnp.float32(share) * jnp.float32(members)
  # A share of 0.1 of ten is one elite, also in f32.
  whole = jnp.round(exact) if rounding == 'round' else jnp.floor(exact + 1e-4)
  return jnp.clip(whole.astype(jnp.int32), least, members)


def survivors(
  key: jax.Array,
  fitness: jax.Array,
  eligible: jax.Array,
  count: int,
  ids: jax.Array,
  elites: jax.Array | int = 1,
  *,
  method: str = 'roulette',
  entrants: int = 3,
) -> jax.Array:
  """(mu + lambda): the elites, then the rest by `method`, nobody twice.

  Args:
    key: () typed key.
    fitness: (P + M,) f32 of members and proposals together.
    eligible: (P + M,) bool; false for empty slots.
    count: P, the number of survivors; at most the number eligible.
    ids: (P + M,) i32; may repeat only where not eligible.
    elites: () i32, the fittest that survive whatever is drawn.
    method: one of METHODS.
    entrants: size of a tournament.

  Returns:
    (count,) i32 places, ordered by id, so that the order carries no meaning.
    A failed member survives only if too few others are eligible.

  Raises:
    ValueError: if `method` is unknown or there are fewer places than `count`.
  """
  if method not in METHODS:
    raise ValueError(f'Got selection {method!r}; expected one of {METHODS}.')
  _check_count(count, fitness)
  elites = jnp.asarray(elites, jnp.int32)
  fitness = jnp.where(eligible, fitness, jnp.nan)
  order = jnp.lexsort((ids, ranking_key(fitness), ~eligible))
  position = (
    jnp.zeros(order.shape, jnp.int32)
    .at[order]
    .set(jnp.arange(order.shape[0], dtype=jnp.int32))
  )
  if method == 'tournament':
    chosen = _tournament_survivors(
      key, fitness, eligible, count, ids, elites, entrants
    )
  else:
    if method == 'truncation':
      group = jnp.zeros(fitness.shape, jnp.int32)
      score = -position.astype(jnp.float32)
    else:
      if method == 'rank':
        group, chance = _classes(_rank_chances(fitness, ids))
      else:
        group, chance = _classes(fitness)
      score = chance + _noise(key, ids)
    is_elite = eligible & (position < elites)
    group = jnp.where(is_elite, _ELITE, group)
    group = jnp.where(eligible, group, _EXCLUDED)
    chosen = jnp.lexsort((ids, -score, group))[:count]
  return chosen[jnp.argsort(ids[chosen])].astype(jnp.int32)


def _tournament_survivors(key, fitness, eligible, count, ids, elites, entrants):
  # Failed members stand aside while there are others: drawn three at a time
  # they could win, as a group of failed entrants has a winner too.
  alive = eligible & jnp.isfinite(fitness)
  playing = jnp.where(jnp.sum(alive) >= count, alive, eligible)
  return _tournaments(key, fitness, count, ids, playing, elites, entrants)


def ranking_key(fitness: jax.Array) -> jax.Array:
  """(P,) f32 that sorts ascending from the fittest to failed members."""
  return jnp.where(jnp.isfinite(fitness), -fitness, jnp.inf)


def _check_count(count, fitness):
  if count > fitness.shape[0]:
    raise ValueError(
      f'Got {count} members to draw out of {fitness.shape[0]}; expected no '
      'more than that. Draw with replacement or enlarge the population.'
    )
