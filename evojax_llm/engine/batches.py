"""Packs encoded items into a few fixed shapes.

Rows are sorted into length buckets and cut into batches of one size each, so
that a run needs one compiled program a bucket. All of it happens once, on the
host; the arrays then stay on the device for the whole run.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from evojax_llm.engine import prefix_tree
from evojax_llm.tasks.tokens import common_start

# One more bucket is opened only if it saves at least this share of the padded
# tokens; a program costs seconds to compile.
_LEAST_SAVING = 0.25
_MAX_BUCKETS = 4
# Rows of a likelihood program have at least one of these lengths, and short
# items share one; longer ones for the sake of a shared start stop at the last.
_SHORTEST_ROWS = (32, 48, 64, 80, 96, 128)
_LONGEST_TO_SHARE = 1024
# Where attention is cheap also these, and the longest: they leave less empty.
_LONGER_ROWS = (192, 256, 384, 512)
# Where attention costs a token as much as everything else (a model of a million
# parameters, measured on a CPU; larger models get there later).
ATTENTION_DOUBLES_AT = 320
# Most batches of a call: enough for what a member costs once a call, few enough
# to see a run move.
BATCHES_PER_CALL = 8


@dataclasses.dataclass(frozen=True)
class LikelihoodBatch:
  """J batches of rows, to be read by one call of a likelihood program; all i32.

  Attributes:
    tokens: (J, B, T), padded right.
    positions: (J, B, T), -1 where padded.
    until: (J, B, T), which columns see a token (see `prefix_tree`); 0 where
      padded.
    row: (J, U) of the columns in which something is read.
    column: (J, U) of them; its logits predict the next token.
    kept: (N,) which of the J x U are no padding, in their order.
    count: () how many of the N there are; what follows is padding.
    source: (Q,) which of the N each read is of.
    target: (Q,) token whose log-probability is read.
    owner: (Q,) the continuation a read belongs to; -1 is padding.
  """

  tokens: np.ndarray
  positions: np.ndarray
  until: np.ndarray
  row: np.ndarray
  column: np.ndarray
  kept: np.ndarray
  count: np.ndarray
  source: np.ndarray
  target: np.ndarray
  owner: np.ndarray

  def reads(self, batch: int) -> tuple[np.ndarray, ...]:
    """Row, column, target and owner of each read of one of the J batches."""
    at = self.kept[self.source]
    own = (self.owner >= 0) & (at // self.row.shape[1] == batch)
    of_read = at[own] % self.row.shape[1]
    row, column = self.row[batch, of_read], self.column[batch, of_read]
    return row, column, self.target[own], self.owner[own]


def length_buckets(lengths: Sequence[int]) -> list[int]:
  """A few row lengths that hold all rows with little padding.

  Lengths are rounded up to multiples of 8. Buckets are merged while a merge
  adds less than a quarter of padding, and until at most four are left.
  """
  rounded = np.maximum(8, -(-np.asarray(lengths) // 8) * 8)
  tops, counts = np.unique(rounded, return_counts=True)
  tops, counts = list(map(int, tops)), list(map(int, counts))
  total = sum(t * c for t, c in zip(tops, counts, strict=True))
  while len(tops) > 1:
    added = [(tops[i + 1] - tops[i]) * counts[i] for i in range(len(tops) - 1)]
    cheapest = int(np.argmin(added))
    small = added[cheapest] < _LEAST_SAVING * total
    if not small and len(tops) <= _MAX_BUCKETS:
      break
    tops.pop(cheapest)
    moved = counts.pop(cheapest)
    counts[cheapest] += moved
    total += added[cheapest]
  return tops


def by_bucket(lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
  """(T, indices of the rows) of each length bucket that is not empty."""
  if not len(lengths):
    return []
  tops = length_buckets(lengths)
  buckets = [
    (top, [i for i, n in enumerate(lengths) if low < max(n, 1) <= top])
    for low, top in zip([0, *tops], tops, strict=False)
  ]
  return [(top, rows) for top, rows in buckets if rows]


def pack_likelihood(
  continuations: Sequence[prefix_tree.Continuation],
  rows_per_batch,
  pad_id: int = 0,
  *,
  families: Sequence[int] | None = None,
  share: bool = True,
  attention_doubles_at: int = ATTENTION_DOUBLES_AT,
) -> list[LikelihoodBatch]:
  """Packs (prompt, continuation) pairs whose log-likelihoods are wanted.

  A row holds the prompts of one or more items as a forest (see `prefix_tree`),
  each with its continuations branching off behind it.

  Args:
    continuations: token ids of each prompt, not empty, and of what follows.
    rows_per_batch: most rows of a batch, as a function of T.
    pad_id: token that stands where there is none.
    families: of each continuation; prompts of one family share a row, and what
      they all begin with. One family by default.
    share: False for rows of one text each, as a model without `until` needs
      them: only continuations that differ in their last token share a row.
    attention_doubles_at: columns of a row at which a token costs twice as much
      as in a short one.
  """
  for owner, (prompt, continuation) in enumerate(continuations):
    if not prompt or not continuation:
      raise ValueError(
        f'continuation {owner} has {len(prompt)} prompt and '
        f'{len(continuation)} continuation tokens; expected one of each.'
      )
  if share:
    rows, lengths = _forests(continuations, families, attention_doubles_at)
  else:
    rows, lengths = _texts(continuations)
  packed = []
  for top, indices in by_bucket(lengths):
    calls = _cut([rows[i] for i in indices], int(rows_per_batch(top)))
    columns = [_columns(call) for call in calls]
    # The same shapes for all calls.
    counts = [
      (
        max(map(len, found)),
        sum(map(len, found)),
        sum(len(reads) for own in found for reads in own.values()),
      )
      for found in columns
    ]
    most = [max(of) for of in zip(*counts, strict=True)]
    packed += [
      _stack(call, found, top, most, pad_id)
      for call, found in zip(calls, columns, strict=True)
    ]
  return packed


def _cut(
  rows: list[prefix_tree.Row], most: int
) -> list[list[list[prefix_tree.Row]]]:
  """Calls of J batches of at most B rows, J and B the same for all of them."""
  # Somewhat smaller batches, where that leaves fewer rows empty.
  fewest = -(-len(rows) // max(1, most))
  batches = min(
    range(fewest, 2 * fewest + 1), key=lambda n: n * -(-len(rows) // n)
  )
  calls = -(-batches // BATCHES_PER_CALL)
  per_call = -(-batches // calls)
  size = -(-len(rows) // (calls * per_call))
  cut = [rows[i * size : (i + 1) * size] for i in range(calls * per_call)]
  return [cut[i : i + per_call] for i in range(0, len(cut), per_call)]


def _columns(call: list[list[prefix_tree.Row]]) -> list[dict]:
  """Of each batch (row, column) -> the (target, owner) that are read there."""
  found: list[dict[tuple[int, int], list[tuple[int, int]]]] = []
  for batch in call:
    found.append({})
    for r, row in enumerate(batch):
      for column, target, owner in row.reads:
        found[-1].setdefault((r, column), []).append((target, owner))
  return found


def _stack(
  call: list[list[prefix_tree.Row]],
  columns: list[dict],
  length: int,
  most: Sequence[int],
  pad_id: int,
) -> LikelihoodBatch:
  """The arrays of one call, padded to (B, length) tokens and most (U, N, Q)."""
  size = max(map(len, call))
  arrays = [prefix_tree.arrays(batch, size, length, pad_id) for batch in call]
  in_batch, in_call, reads = most
  at = np.zeros((2, len(call), in_batch), np.int32)
  kept = np.zeros(in_call, np.int32)
  table = np.zeros((reads, 3), np.int32)  # source, target, owner
  table[:, 2] = -1
  done = [0, 0]
  for j, own in enumerate(columns):
    n, q = done
    at[:, j, : len(own)] = np.reshape(list(own), (-1, 2)).T
    kept[n : n + len(own)] = j * in_batch + np.arange(len(own))
    rows = [(n + i, *read) for i, of in enumerate(own.values()) for read in of]
    table[q : q + len(rows)] = np.reshape(rows, (-1, 3))
    done = [n + len(own), q + len(rows)]
  source, target, owner = table.T.copy()
  return LikelihoodBatch(
    *map(np.stack, zip(*arrays, strict=True)),
    *at,
    kept,
    np.int32(done[0]),
    source,
    target,
    owner,
  )


def _texts(
  continuations: Sequence[prefix_tree.Continuation],
) -> tuple[list[prefix_tree.Row], list[int]]:
  """Rows of one text each, and their lengths."""
  owners: dict[tuple[int, ...], list[int]] = {}
  for owner, (prompt, scored) in enumerate(continuations):
    owners.setdefault((*prompt, *scored[:-1]), []).append(owner)
  rows = [
    prefix_tree.lay_out([continuations[o] for o in group], group)
    for group in owners.values()
  ]
  return rows, [len(row.tokens) for row in rows]


def _forests(continuations, families, doubles_at):
  """Rows of as many items as there is room for, and how long they may be."""
  items: dict[int, dict[tuple[int, ...], list[int]]] = {}
  for owner, (prompt, _) in enumerate(continuations):
    family = items.setdefault(families[owner] if families else 0, {})
    family.setdefault(tuple(prompt), []).append(owner)
  parts = []
  for family in items.values():
    groups = list(family.values())
    sizes = [
      prefix_tree.size([continuations[owner] for owner in group])
      for group in groups
    ]
    shared = common_start(list(family))
    for top, found in _fill_rows(sizes, shared, doubles_at):
      own = [groups[i] for i in found], [sizes[i] for i in found], shared
      parts.append((*own, top, prefix_tree.fill(own[1], top, shared)))
  if doubles_at > ATTENTION_DOUBLES_AT:
    # Items of families that come into one bucket fill its rows.
    tops = length_buckets([part[3] for part in parts for _ in part[4]])
    for i, (groups, sizes, shared, top, _) in enumerate(parts):
      top = min(n for n in tops if n >= top)
      filled = prefix_tree.fill(sizes, top, shared)
      parts[i] = groups, sizes, shared, top, filled
  rows, lengths = [], []
  for groups, _, _, _, together in parts:
    filled = []
    for members in together:
      owners = [owner for m in members for owner in groups[m]]
      filled.append(
        prefix_tree.lay_out([continuations[o] for o in owners], owners)
      )
    rows += filled
    lengths += [max(len(row.tokens) for row in filled)] * len(filled)
  return rows, lengths


def _fill_rows(
  sizes: Sequence[int], shared: int, doubles_at: int
) -> list[tuple[int, list[int]]]:
  """The length of the rows of each bucket, and which items share them.

  Short rows are cheap to attend to and long ones leave less room empty. Of a
  few lengths, the one with the least work for all rows is taken.
  """
  best, least = [], math.inf
  shortest_rows = list(_SHORTEST_ROWS)
  if doubles_at > ATTENTION_DOUBLES_AT:
    # None longer than what the memory was planned for.
    longest = longest_row(sizes, shared)
    shortest_rows += [n for n in _LONGER_ROWS if n < longest] + [longest]
  for shortest in shortest_rows:
    floor = max(shortest, _row_to_share(shared))
    made = by_bucket([max(size, floor) for size in sizes])
    work = sum(
      len(prefix_tree.fill([sizes[i] for i in indices], top, shared))
      * top
      * (1 + top / doubles_at)
      for top, indices in made
    )
    if work < least:
      best, least = made, work
  return best


def _row_to_share(shared: int) -> int:
  """Columns of a row for the sake of a start of so many, read once a row."""
  return min(3 * shared, _LONGEST_TO_SHARE)


def longest_row(sizes: Sequence[int], shared: int) -> int:
  """Columns at most of the rows of a family of items that share a start."""
  return max(*sizes, _SHORTEST_ROWS[-1], _row_to_share(shared))
