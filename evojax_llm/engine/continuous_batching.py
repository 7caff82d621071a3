"""The program that continues the prompts of a queue: continuous batching.

Each member has B slots. A slot reads a prompt, makes tokens until its answer
ends, and is then free for the next prompt of the same member, whatever its
neighbours do. One program does it all, so that the device never waits for the
host:

  while there is work:
    while enough slots are free and prompts wait:  read R prompts of each member
    until then:                        make one token in every slot

All slots of a member write their keys at the same column of the cache, which is
a ring: a prompt that is read late owns later columns than its neighbours, and
attention goes by the positions that are stored with the keys. Writing a token
is thus one dynamic slice update, never a scatter. Where the ring is separate
arrays (`cache.init_ring`), it begins anew at the first column whenever prompts
are read and no slot is in work: until it wraps, a row's columns are neighbours.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.engine import sampling as sampling_lib
from evojax_llm.engine.sampling import SamplingArrays
from evojax_llm.engine.unembedding import Unembedding
from evojax_llm.models.cache import Cache

# Prompts are read when three of four that could be read at most can be.
_REFILL_WHEN = (3, 4)


@flax.struct.dataclass
class Slots:
  """State of the work on a queue of N prompts; P members, B slots each.

  Attributes:
    cache: with a leading P, but for the index.
    entry: (P, B) i32, the prompt that a slot works on; -1 where it is free.
    token: (P, B) i32, the token to be read next, at `position` (P, B) i32.
    made: (P, B) i32, tokens made, `token` included.
    next: (P,) i32, the first prompt that waits.
    out: (P, N, new) i32, the tokens made for each prompt; -1 behind the end.
    finite: (P,) bool, whether all logits that were read were finite.
    refills: () i32, times that prompts were read.
    steps: () i32, times that a token was made in every slot.
    busy: () i32, slots that were not free, summed over the steps.
  """

  cache: Cache
  entry: jax.Array
  token: jax.Array
  position: jax.Array
  made: jax.Array
  next: jax.Array
  out: jax.Array
  finite: jax.Array
  refills: jax.Array
  steps: jax.Array
  busy: jax.Array


def empty_slots(cache: Cache, slots: int, prompts: int, new: int) -> Slots:
  """Returns free slots (P, B) of a queue of N prompts that is done."""
  members = cache.positions.shape[0]
  zero = jnp.zeros((), jnp.int32)
  per_slot = jnp.zeros((members, slots), jnp.int32)
  return Slots(
    cache=cache,
    entry=per_slot - 1,
    token=per_slot,
    position=per_slot,
    made=per_slot,
    next=jnp.full((members,), prompts, jnp.int32),
    out=jnp.full((members, prompts, new), -1, jnp.int32),
    finite=jnp.ones(members, bool),
    refills=zero,
    steps=zero,
    busy=zero,
  )


def restart(slots: Slots, active: jax.Array) -> Slots:
  """Returns the slots at the start of a queue, for `active` (P,) members."""
  prompts = slots.out.shape[1]
  zero = jnp.zeros((), jnp.int32)
  return slots.replace(
    entry=jnp.full_like(slots.entry, -1),
    next=jnp.where(active, 0, prompts).astype(jnp.int32),
    out=jnp.full_like(slots.out, -1),
    finite=jnp.ones_like(slots.finite),
    refills=zero,
    steps=zero,
    busy=zero,
  )


def clean(slots: Slots, again: jax.Array) -> Cache:
  """Returns the cache, emptied if a member has failed and work begins `again`.

  What is not finite would spoil the next work where it stands masked. A loop of
  one or no turn, since the cache is then changed in place.
  """
  cache = slots.cache
  failed = (again & jnp.any(~slots.finite)).astype(jnp.int32)
  kv = jax.lax.fori_loop(
    0,
    failed,
    lambda _, kv: jax.tree.map(jnp.zeros_like, kv),
    (cache.k, cache.v),
  )
  return cache.replace(k=kv[0], v=kv[1])


def working(slots: Slots) -> jax.Array:
  """Returns () bool, whether any prompt waits or is in work."""
  waiting = slots.next < slots.out.shape[1]
  return jnp.any(waiting) | jnp.any(slots.entry >= 0)


def stop_entries(slots: Slots, stopped: jax.Array) -> Slots:
  """Frees the slots that work on prompts (P, N) bool whose text has ended."""
  entry = jnp.maximum(slots.entry, 0)
  ended = jnp.take_along_axis(stopped, entry, axis=1)
  return slots.replace(entry=jnp.where(ended, -1, slots.entry))


def advance(
  forward: Callable,
  step: Callable,
  unembed: Unembedding,
  new_cache: Callable[[int, int], Cache],
  queue: dict[str, jax.Array],
  slots: Slots,
  members: jax.Array,
  sampling: SamplingArrays | None,
  most_steps: jax.Array,
  *,
  refill: int,
  stop_ids: tuple[int, ...],
) -> Slots:
  """Works on a queue until it is done, or for so many steps.

  Args:
    forward: (tokens, positions, cache) (P, R, T) -> hidden, cache.
    step: (tokens, positions, cache) (P, B) -> hidden (P, B, D), cache.
    unembed: makes tokens of hidden states.
    new_cache: makes an empty cache of P members, by rows and length.
    queue: the arrays of a `Queue`.
    slots: state of the work.
    members: (P,) i32 ids, which address draws.
    sampling: how to choose tokens; None for the likeliest.
    most_steps: () i32.
    refill: R, prompts of a member read at a time, static.
    stop_ids: tokens that end an answer and are not part of it, static.
  """
  prompts, length = queue['tokens'].shape
  lanes = jnp.arange(members.shape[0], dtype=jnp.int32)[:, None]
  stops = jnp.array(stop_ids, jnp.int32)
  last_step = slots.steps + most_steps

  def waiting(s: Slots) -> jax.Array:
    return prompts - s.next

  def may_refill(s: Slots) -> jax.Array:
    free = jnp.sum(s.entry < 0, axis=1)
    most = jnp.minimum(waiting(s), refill)
    now = jnp.sum(jnp.minimum(free, most))
    share, whole = _REFILL_WHEN
    enough = whole * now >= share * jnp.sum(most)
    return (now > 0) & (enough | ~jnp.any(s.entry >= 0))

  def choose(hidden: jax.Array, entry: jax.Array, made: jax.Array):
    """Returns the next token (P, rows) of each row, and finite members."""
    if sampling is None:
      token, best = unembed.likeliest(hidden)
    else:
      logits = unembed(hidden)
      best = jnp.max(logits, axis=-1)
      items = queue['items'][jnp.maximum(entry, 0)]
      ids = jnp.broadcast_to(members[:, None], entry.shape)
      keys = sampling_lib.keys(sampling, ids, items, made)
      token = sampling_lib.sample(logits, sampling, keys)
    finite = jnp.all((entry < 0) | jnp.isfinite(best), axis=-1)
    return token, finite

  def record(s: Slots, entry, token, made, finite):
    """Keeps tokens; returns slots and the entries (P, rows) that go on."""
    ended = jnp.any(token[..., None] == stops, axis=-1)
    keep = (entry >= 0) & ~ended
    out = s.out.at[lanes, jnp.where(keep, entry, prompts), made].set(
      token, mode='drop'
    )
    more = made + 1 < queue['limits'][jnp.maximum(entry, 0)]
    alive = s.finite & finite
    entry = jnp.where(keep & more & alive[:, None], entry, -1)
    # A member that fails is done with all of its prompts.
    return s.replace(
      out=out,
      finite=alive,
      next=jnp.where(alive, s.next, prompts).astype(jnp.int32),
    ), entry

  def read(s: Slots) -> Slots:
    """Reads the next prompts of each member into free slots."""
    free = s.entry < 0
    rows = jnp.arange(refill, dtype=jnp.int32)
    count = jnp.minimum(
      jnp.sum(free, axis=1, dtype=jnp.int32), jnp.minimum(waiting(s), refill)
    )
    new = rows < count[:, None]
    # Ties go to the lowest index: free slots in order, then the others.
    chosen = jax.lax.top_k(free.astype(jnp.float32), refill)[1]
    entry = jnp.where(new, s.next[:, None] + rows, -1)
    index = jnp.clip(entry, 0, prompts - 1)
    positions = queue['positions'][index]
    hidden, fresh = forward(
      queue['tokens'][index], positions, new_cache(refill, length)
    )
    token, finite = choose(hidden[..., -1, :], entry, jnp.zeros_like(entry))
    if s.cache.separate:
      busy = jnp.any(s.entry >= 0)
      index = jnp.where(busy, s.cache.index, length)
      cache = s.cache.replace(index=index)
      cache = write_columns(cache, fresh, chosen, new)
    else:
      cache = write_rows(s.cache, fresh, chosen, new)
    s = s.replace(
      cache=cache, next=s.next + count, refills=s.refills + jnp.int32(1)
    )
    s, entry = record(s, entry, token, jnp.zeros_like(entry), finite)

    def put(old: jax.Array, value: jax.Array) -> jax.Array:
      where = jnp.where(new, chosen, old.shape[1])
      return old.at[lanes, where].set(value, mode='drop')

    return s.replace(
      entry=put(s.entry, entry),
      token=put(s.token, token),
      position=put(s.position, positions[..., -1] + 1),
      made=put(s.made, jnp.ones_like(entry)),
    )

  @jax.named_scope('make_tokens')
  def make(s: Slots) -> Slots:
    """Makes one token in every slot."""
    position = jnp.where(s.entry >= 0, s.position, -1)
    hidden, cache = step(s.token, position, s.cache)
    token, finite = choose(hidden, s.entry, s.made)
    busy = jnp.sum(s.entry >= 0, dtype=jnp.int32)
    s, entry = record(s, s.entry, token, s.made, finite)
    return s.replace(
      cache=cache,
      entry=entry,
      token=token,
      position=s.position + 1,
      made=s.made + 1,
      steps=s.steps + jnp.int32(1),
      busy=s.busy + busy,
    )

  def go_on(s: Slots) -> jax.Array:
    return working(s) & ((s.steps < last_step) | may_refill(s))

  def steady(s: Slots) -> jax.Array:
    busy = jnp.any(s.entry >= 0)
    return busy & (s.steps < last_step) & ~may_refill(s)

  def turn(s: Slots) -> Slots:
    s = jax.lax.while_loop(may_refill, read, s)
    return jax.lax.while_loop(steady, make, s)

  return jax.lax.while_loop(go_on, turn, slots)


def write_rows(
  cache: Cache, rows: Cache, slots: jax.Array, new: jax.Array
) -> Cache:
  """Puts prompts into slots, so that they end just before the next column.

  What the slots held is gone; the rest of the ring is empty.

  Args:
    cache: (P, L, B, S, Kv, h) keys and values.
    rows: (P, L, R, T, Kv, h) of the prompts, T at most S.
    slots: (P, R) i32 slot of each row, none twice for a member.
    new: (P, R) bool; other rows are left out.
  """
  columns = cache.positions.shape[-1]
  members, count, length = rows.positions.shape
  start = (cache.index - length) % columns

  def around(leaf: jax.Array, axis: int, fill) -> jax.Array:
    pad = [(0, 0)] * leaf.ndim
    pad[axis] = (0, columns - length)
    leaf = jnp.pad(leaf, pad, constant_values=fill)
    return jnp.roll(leaf, start, axis)

  fresh = (
    *(jax.tree.map(lambda x: around(x, 3, 0), kv) for kv in (rows.k, rows.v)),
    around(rows.positions, 2, -1),
  )

  def put(i, old):
    member, row = i // count, i % count
    slot, wanted = slots[member, row], new[member, row]

    def one(old: jax.Array, fresh: jax.Array, axis: int) -> jax.Array:
      """Moves a row; `axis` is where the rows stand."""
      source = [member] + [0] * (old.ndim - 1)
      source[axis] = row
      size = (1, *fresh.shape[1:axis], 1, *fresh.shape[axis + 1 :])
      target = [member] + [0] * (old.ndim - 1)
      target[axis] = slot
      value = jnp.where(
        wanted,
        jax.lax.dynamic_slice(fresh, source, size),
        jax.lax.dynamic_slice(old, target, size),
      )
      return jax.lax.dynamic_update_slice(old, value, target)

    return tuple(
      jax.tree.map(lambda *pair, axis=axis: one(*pair, axis), *pair)
      for *pair, axis in zip(old, fresh, (2, 2, 1), strict=True)
    )

  old = (cache.k, cache.v, cache.positions)
  k, v, positions = jax.lax.fori_loop(0, members * count, put, old)
  return cache.replace(k=k, v=v, positions=positions)


def write_columns(
  cache: Cache, rows: Cache, slots: jax.Array, new: jax.Array
) -> Cache:
  """Does what `write_rows` does to a cache of L arrays (P, B, Kv, S, h).

  Only the columns of the prompts are written; what else the slots held is empty
  by its positions.
  """
  columns = cache.positions.shape[-1]
  members, count, length = rows.positions.shape
  lanes = jnp.arange(members, dtype=jnp.int32)[:, None, None]
  # Out of bounds, and so dropped, where a row is left out.
  where = jnp.where(new, slots, cache.positions.shape[1])[..., None]
  own = jnp.arange(length, dtype=jnp.int32)
  own = (cache.index - length + own) % columns

  def put(fresh: jax.Array, layers: tuple[jax.Array, ...]) -> tuple:
    return tuple(
      old.at[lanes, where, :, own].set(
        fresh[:, i].astype(old.dtype), mode='drop', unique_indices=True
      )
      for i, old in enumerate(layers)
    )

  empty = jnp.full((members, count, columns), -1, jnp.int32)
  return cache.replace(
    k=jax.tree.map(put, rows.k, cache.k),
    v=jax.tree.map(put, rows.v, cache.v),
    positions=cache.positions.at[lanes[..., 0], where[..., 0]].set(
      empty.at[..., own].set(rows.positions), mode='drop', unique_indices=True
    ),
  )
