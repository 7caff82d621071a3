"""Packs encoded items into a few fixed shapes.

Rows are sorted into length buckets and cut into batches of one size each, so
that a run needs one compiled program a bucket. All of it happens once, on the
host; the arrays then stay on the device for the whole run.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from evojax_llm.fitness import trees

# One more bucket is opened only if it saves at least this share of the padded
# tokens; a program costs seconds to compile.
_WORTH_A_PROGRAM = 0.25
_MAX_BUCKETS = 4
# Rows of a likelihood program are at least so long, and short items share one;
# longer ones for the sake of a shared start stop here.
_SHORTEST_ROW = 64
_LONGEST_TO_SHARE = 1024


@dataclasses.dataclass(frozen=True)
class LikelihoodBatch:
  """Rows to be read by a likelihood program.

  Attributes:
    tokens: (B, T) i32, padded right.
    positions: (B, T) i32, -1 where padded.
    until: (B, T) i32, which columns see a token (see `trees`); 0 where padded.
    row: (Q,) i32 row of each read.
    column: (Q,) i32 column of each read; its logits predict the next token.
    target: (Q,) i32 token whose log-probability is read.
    owner: (Q,) i32 index of the continuation a read belongs to; -1 is padding.
  """

  tokens: np.ndarray
  positions: np.ndarray
  until: np.ndarray
  row: np.ndarray
  column: np.ndarray
  target: np.ndarray
  owner: np.ndarray


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
    small = added[cheapest] < _WORTH_A_PROGRAM * total
    if not small and len(tops) <= _MAX_BUCKETS:
      break
    tops.pop(cheapest)
    moved = counts.pop(cheapest)
    counts[cheapest] += moved
    total += added[cheapest]
  return tops


def _by_bucket(lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
  """(T, indices of the rows) of each bucket."""
  if not len(lengths):
    return []
  tops = length_buckets(lengths)
  buckets = [
    (top, [i for i, n in enumerate(lengths) if low < max(n, 1) <= top])
    for low, top in zip([0, *tops], tops, strict=False)
  ]
  return [(top, rows) for top, rows in buckets if rows]


def _bucketed(
  lengths: Sequence[int], rows_per_batch
) -> list[tuple[int, int, list[int]]]:
  """(T, B, row indices) of each batch; batches of a bucket share B."""
  batches = []
  for top, rows in _by_bucket(lengths):
    most = max(1, int(rows_per_batch(top)))
    count = -(-len(rows) // most)
    size = -(-len(rows) // count)
    batches += [
      (top, size, rows[i : i + size]) for i in range(0, len(rows), size)
    ]
  return batches


def pack_likelihood(
  continuations: Sequence[trees.Continuation],
  rows_per_batch,
  pad_id: int = 0,
  *,
  families: Sequence[int] | None = None,
  share: bool = True,
) -> list[LikelihoodBatch]:
  """Packs (prompt, continuation) pairs whose log-likelihoods are wanted.

  A row holds the prompts of one or more items as a forest (see `trees`), each
  with its continuations branching off behind it.

  Args:
    continuations: token ids of each prompt and of what follows it; the prompt
      has at least one token.
    rows_per_batch: most rows of a batch, as a function of T.
    pad_id: token that stands where there is none.
    families: of each continuation; prompts of one family share a row, and what
      they all begin with. One family by default.
    share: False for rows of one text each, as a model without `until` needs
      them: only continuations that differ in their last token share a row.
  """
  for owner, (prompt, continuation) in enumerate(continuations):
    if not prompt or not continuation:
      raise ValueError(
        f'continuation {owner} has {len(prompt)} prompt and '
        f'{len(continuation)} continuation tokens; expected one of each.'
      )
  rows, lengths = (_forests if share else _texts)(continuations, families)
  packed = _bucketed(lengths, rows_per_batch)
  most_reads: dict[int, int] = {}
  for top, _, indices in packed:
    count = sum(len(rows[i].reads) for i in indices)
    most_reads[top] = max(most_reads.get(top, 0), count)
  batches = []
  for top, size, indices in packed:
    arrays = trees.arrays([rows[i] for i in indices], size, top, pad_id)
    # (row, column, target, owner) of each read; what is left is padding.
    table = np.zeros((most_reads[top], 4), np.int32)
    table[:, 3] = -1
    reads = [
      (r, *read) for r, i in enumerate(indices) for read in rows[i].reads
    ]
    table[: len(reads)] = reads
    batches.append(LikelihoodBatch(*arrays, *table.T.copy()))
  return batches


def _texts(
  continuations: Sequence[trees.Continuation], _: Sequence[int] | None
) -> tuple[list[trees.Row], list[int]]:
  """Rows of one text each, and their lengths."""
  owners: dict[tuple[int, ...], list[int]] = {}
  for owner, (prompt, scored) in enumerate(continuations):
    owners.setdefault((*prompt, *scored[:-1]), []).append(owner)
  rows = [
    trees.lay_out([continuations[o] for o in group], group)
    for group in owners.values()
  ]
  return rows, [len(row.tokens) for row in rows]


def _forests(
  continuations: Sequence[trees.Continuation], families: Sequence[int] | None
) -> tuple[list[trees.Row], list[int]]:
  """Rows of as many items as there is room for, and how long they may be."""
  items: dict[int, dict[tuple[int, ...], list[int]]] = {}
  for owner, (prompt, _) in enumerate(continuations):
    family = items.setdefault(families[owner] if families else 0, {})
    family.setdefault(tuple(prompt), []).append(owner)
  rows, lengths = [], []
  for family in items.values():
    shared = trees.common_start(list(family))
    groups = list(family.values())
    sizes = [
      trees.size([continuations[owner] for owner in group]) for group in groups
    ]
    for top, indices in _by_bucket([max(s, row_floor(shared)) for s in sizes]):
      filled = []
      for members in trees.fill([sizes[i] for i in indices], top, shared):
        owners = [o for m in members for o in groups[indices[m]]]
        filled.append(trees.lay_out([continuations[o] for o in owners], owners))
      rows += filled
      lengths += [max(len(row.tokens) for row in filled)] * len(filled)
  return rows, lengths


def row_floor(shared: int) -> int:
  """Columns that a row has at least, however short its items.

  Several short items fill a row better than one, and what they share is read
  once a row: the longer it is, the longer the row.

  Args:
    shared: columns that all items of a family begin with.
  """
  return max(_SHORTEST_ROW, min(3 * shared, _LONGEST_TO_SHARE))
