"""Queues of prompts that are to be continued, in a few fixed shapes.

A queue holds prompts of one length bucket that begin alike. Its prompts are
read a few at a time into slots, as slots become free, so that no long answer
holds up the others. All of this happens once, on the host; the arrays then stay
on the device for the whole run.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
import zlib

import jax
import numpy as np

from evojax_llm.engine.batches import by_bucket
from evojax_llm.population.sharding import place
from evojax_llm.tasks.tokens import common_start

# A common beginning has a program of its own from this length on.
_SHORTEST_SHARED = 16
# Prefixes are padded to a multiple, so that tasks may share a program.
_PREFIX_STEP = 16
# Prompts of a queue: what it makes is kept on the device for all of them.
_MOST_PROMPTS = 4096
# A refill reads a part of the slots: often enough to keep them busy, and with
# enough tokens at a time to keep the device busy.
_REFILL_SHARE = 4
# Queues that go together have at most so many times the tokens, padded.
_MOST_PADDING = 1.5


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt to be continued.

  Attributes:
    ids: its tokens, at least one.
    limit: tokens to make at most, at least one.
    stops: strings that end the text; the tokens that hold one are kept.
    item: name of the item, which addresses its random draws.
    group: prompts of a group may begin alike, those of others are not compared.
  """

  ids: tuple[int, ...]
  limit: int
  stops: tuple[str, ...] = ()
  item: str = ''
  group: int = 0


@dataclasses.dataclass(frozen=True)
class Queue:
  """N prompts in the order in which they are read.

  Attributes:
    owner: (N,) i32 index of each prompt.
    stops: N tuples of the strings that end each text.
    slots: B, prompts that are in work at a time.
    refill: R, prompts that are read at a time.
    columns: S, tokens of a prompt and its continuation that a slot holds.
    new: most tokens that a prompt makes.
    inputs: arrays on the device: tokens (N, T) i32, padded left, without the
      common beginning; positions (N, T) i32, -1 where padded; limits (N,) i32;
      items (N,) i32 ids that address random draws.
    prefix: tokens and positions (1, T) i32 of the common beginning, on the
      device, or None.
    prompt_tokens: tokens of the prompts, padding and prefix not counted.
    prefix_tokens: of the common beginning.
  """

  owner: np.ndarray
  stops: list[tuple[str, ...]]
  slots: int
  refill: int
  columns: int
  new: int
  inputs: dict[str, jax.Array]
  prefix: dict[str, jax.Array] | None
  prompt_tokens: int
  prefix_tokens: int

  @property
  def most_steps(self) -> int:
    """Tokens that a slot makes at most."""
    return -(-len(self.owner) // self.slots) * self.new

  @property
  def shape(self) -> tuple:
    """What a compiled program depends on."""
    prefix = self.prefix and self.prefix['tokens'].shape
    tokens = self.inputs['tokens'].shape
    return (tokens, prefix, self.slots, self.refill, self.columns, self.new)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """Returns how many tokens all prompts begin with; 0 for a few.

  Every prompt keeps one token of its own at least: the last one is read anew
  for the token that follows it.
  """
  if len(prompts) < 2:
    return 0
  length = min(common_start(prompts), min(map(len, prompts)) - 1)
  return length if length >= _SHORTEST_SHARED else 0


def pack_queues(
  prompts: Sequence[Prompt],
  slots: Callable[[int, int], int],
  rows: Callable[[int, int], int],
  sharding: jax.sharding.Sharding,
  pad_id: int = 0,
  join: bool = False,
) -> list[Queue]:
  """Packs prompts into queues and puts them on the device.

  `slots` and `rows` are the most prompts in work, and read, at a time, by the
  tokens of a prompt and those that it makes. The queues' `owner` refers to the
  order of the prompts. With `join`, buckets of a group go together where all of
  their prompts find slots: a step costs less for many than twice for half.

  Raises:
    ValueError: a prompt without a token, or a limit below one.
  """
  for index, prompt in enumerate(prompts):
    if not prompt.ids or prompt.limit < 1:
      raise ValueError(
        f'prompt {index} has {len(prompt.ids)} tokens and may make '
        f'{prompt.limit}; expected at least one of each.'
      )

  def pack(part: list[int], top: int, shared: int, prefix: Any) -> Queue:
    """Packs prompts of at most `top` tokens behind a common beginning."""
    count, new = len(part), max(prompts[i].limit for i in part)
    own = [prompts[i].ids[shared:] for i in part]
    items = [zlib.crc32(prompts[i].item.encode()) & 0x7FFFFFFF for i in part]
    inputs = {
      'tokens': np.full((count, top), pad_id, np.int32),
      'positions': np.full((count, top), -1, np.int32),
      'limits': np.array([prompts[i].limit for i in part], np.int32),
      'items': np.array(items, np.int32),
    }
    for row, ids in enumerate(own):
      start = top - len(ids)
      inputs['tokens'][row, start:] = ids
      inputs['positions'][row, start:] = shared + np.arange(len(ids))
    most = _even(count, slots(top, new))
    share = most if count <= most else -(-most // _REFILL_SHARE)
    return Queue(
      owner=np.array(part, np.int32),
      stops=[prompts[i].stops for i in part],
      slots=most,
      refill=_even(share, rows(top, new)),
      columns=top + new,
      new=new,
      inputs=place(inputs, sharding),
      prefix=prefix,
      prompt_tokens=sum(map(len, own)),
      prefix_tokens=shared,
    )

  queues = []
  for indices, shared in _groups(prompts):
    prefix = None
    if shared:
      prefix = place(
        _prefix(prompts[indices[0]].ids[:shared], pad_id), sharding
      )
    lengths = [len(prompts[i].ids) - shared for i in indices]
    buckets = by_bucket(lengths)
    if join:
      new = max(prompts[i].limit for i in indices)
      buckets = _joined(buckets, lambda top, new=new: slots(top, new))
    for top, bucket in buckets:
      # Long answers first: they would be the last to end.
      bucket = sorted(
        (indices[i] for i in bucket), key=lambda i: -prompts[i].limit
      )
      queues += [pack(part, top, shared, prefix) for part in _parts(bucket)]
  return queues


def _groups(prompts: Sequence[Prompt]) -> list[tuple[list[int], int]]:
  """(indices, tokens of the common beginning) of prompts to go together."""
  by_group: dict[int, list[int]] = {}
  for index, prompt in enumerate(prompts):
    by_group.setdefault(prompt.group, []).append(index)
  rest, groups = [], []
  for indices in by_group.values():
    shared = common_prefix([prompts[i].ids for i in indices])
    if shared:
      groups.append((indices, shared))
    else:
      rest += indices
  return groups + ([(rest, 0)] if rest else [])


def _joined(
  buckets: list[tuple[int, list[int]]], slots: Callable[[int], int]
) -> list[tuple[int, list[int]]]:
  """Puts (T, rows) into the bucket of the next length where that pays."""
  joined: list[tuple[int, list[int]]] = []
  for top, rows in sorted(buckets):
    if joined:
      together = joined[-1][1] + rows
      apart = joined[-1][0] * len(joined[-1][1]) + top * len(rows)
      if (
        len(together) <= slots(top)
        and top * len(together) <= _MOST_PADDING * apart
      ):
        joined[-1] = (top, together)
        continue
    joined.append((top, rows))
  return joined


def _parts(bucket: list[int]) -> list[list[int]]:
  """The indices in parts of one size, but for the last."""
  count = -(-len(bucket) // _MOST_PROMPTS)
  size = -(-len(bucket) // max(1, count))
  return [bucket[i : i + size] for i in range(0, len(bucket), max(1, size))]


def _prefix(ids: Sequence[int], pad_id: int) -> dict[str, np.ndarray]:
  length = -(-len(ids) // _PREFIX_STEP) * _PREFIX_STEP
  tokens = np.full((1, length), pad_id, np.int32)
  positions = np.full((1, length), -1, np.int32)
  tokens[0, : len(ids)] = ids
  positions[0, : len(ids)] = np.arange(len(ids))
  return {'tokens': tokens, 'positions': positions}


def _even(count: int, most: int) -> int:
  """The size of parts of at most `most` that leave the last one nearly full."""
  return -(-count // -(-count // most))
