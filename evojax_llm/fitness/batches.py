"""Packs encoded items into a few fixed shapes.

Rows are sorted into length buckets and cut into batches of one size each, so
that a run needs one compiled program a bucket. All of it happens once, on the
host; the arrays then stay on the device for the whole run.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# One more bucket is opened only if it saves at least this share of the padded
# tokens; a program costs seconds to compile.
_WORTH_A_PROGRAM = 0.25
_MAX_BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class LikelihoodBatch:
  """Rows to be read by a likelihood program.

  Attributes:
    tokens: (B, T) i32, padded right.
    positions: (B, T) i32, -1 where padded.
    row: (Q,) i32 row of each read.
    column: (Q,) i32 column of each read; its logits predict the next token.
    target: (Q,) i32 token whose log-probability is read.
    owner: (Q,) i32 index of the continuation a read belongs to; -1 is padding.
  """

  tokens: np.ndarray
  positions: np.ndarray
  row: np.ndarray
  column: np.ndarray
  target: np.ndarray
  owner: np.ndarray


@dataclasses.dataclass(frozen=True)
class GenerationBatch:
  """Prompts to be continued by a generation program.

  Attributes:
    tokens: (B, T) i32, padded left, so that every row ends in its last token.
    positions: (B, T) i32, -1 where padded.
    limits: (B,) i32 tokens a row may make; 0 is padding.
    owner: (B,) i32 index of the prompt; -1 is padding.
    max_new_tokens: N, the largest limit that the program allows.
  """

  tokens: np.ndarray
  positions: np.ndarray
  limits: np.ndarray
  owner: np.ndarray
  max_new_tokens: int


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


def _bucketed(
  lengths: Sequence[int], rows_per_batch
) -> list[tuple[int, int, list[int]]]:
  """(T, B, row indices) of each batch; batches of a bucket share B."""
  if not len(lengths):
    return []
  tops = length_buckets(lengths)
  batches = []
  for low, top in zip([0, *tops], tops, strict=False):
    rows = [i for i, n in enumerate(lengths) if low < max(n, 1) <= top]
    if not rows:
      continue
    most = max(1, int(rows_per_batch(top)))
    count = -(-len(rows) // most)
    size = -(-len(rows) // count)
    batches += [
      (top, size, rows[i : i + size]) for i in range(0, len(rows), size)
    ]
  return batches


def pack_likelihood(
  continuations: Sequence[tuple[Sequence[int], Sequence[int]]],
  rows_per_batch,
  pad_id: int = 0,
) -> list[LikelihoodBatch]:
  """Packs (prompt, continuation) pairs whose log-likelihoods are wanted.

  Continuations that differ in their last token only share a row: options of a
  single token cost one forward pass an item, not one an option.

  Args:
    continuations: token ids of each prompt and of what follows it; the prompt
      has at least one token.
    rows_per_batch: most rows of a batch, as a function of T.
    pad_id: token that stands where there is none.
  """
  rows: dict[tuple[int, ...], int] = {}
  reads: list[list[tuple[int, int, int]]] = []
  for owner, (prompt, continuation) in enumerate(continuations):
    if not prompt or not continuation:
      raise ValueError(
        f'continuation {owner} has {len(prompt)} prompt and '
        f'{len(continuation)} continuation tokens; expected one of each.'
      )
    row = rows.setdefault((*prompt, *continuation[:-1]), len(rows))
    if row == len(reads):
      reads.append([])
    reads[row] += [
      (len(prompt) - 1 + i, token, owner)
      for i, token in enumerate(continuation)
    ]
  sequences = list(rows)
  packed = _bucketed([len(s) for s in sequences], rows_per_batch)
  most_reads: dict[int, int] = {}
  for top, _, indices in packed:
    count = sum(len(reads[i]) for i in indices)
    most_reads[top] = max(most_reads.get(top, 0), count)
  batches = []
  for top, size, indices in packed:
    tokens = np.full((size, top), pad_id, np.int32)
    positions = np.full((size, top), -1, np.int32)
    # (row, column, target, owner) of each read; what is left is padding.
    table = np.zeros((most_reads[top], 4), np.int32)
    table[:, 3] = -1
    filled = 0
    for row, index in enumerate(indices):
      sequence = sequences[index]
      tokens[row, : len(sequence)] = sequence
      positions[row, : len(sequence)] = np.arange(len(sequence))
      for column, target, owner in reads[index]:
        table[filled] = row, column, target, owner
        filled += 1
    batches.append(LikelihoodBatch(tokens, positions, *table.T.copy()))
  return batches


def pack_generation(
  prompts: Sequence[Sequence[int]],
  limits: Sequence[int],
  rows_per_batch,
  pad_id: int = 0,
) -> list[GenerationBatch]:
  """Packs prompts that are to be continued.

  Args:
    prompts: token ids, at least one each.
    limits: tokens that each prompt may make.
    rows_per_batch: most rows of a batch, as a function of T.
    pad_id: token that stands where there is none.
  """
  for owner, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(f'prompt {owner} is empty; expected at least a token.')
  batches = []
  most_new = max(limits, default=0)
  for top, size, indices in _bucketed(
    [len(p) for p in prompts], rows_per_batch
  ):
    tokens = np.full((size, top), pad_id, np.int32)
    positions = np.full((size, top), -1, np.int32)
    row_limits = np.zeros(size, np.int32)
    owner = np.full(size, -1, np.int32)
    for row, index in enumerate(indices):
      prompt = prompts[index]
      tokens[row, top - len(prompt) :] = prompt
      positions[row, top - len(prompt) :] = np.arange(len(prompt))
      row_limits[row] = limits[index]
      owner[row] = index
    # A padding row repeats a real one: a row without any key has no result.
    for row in range(len(indices), size):
      tokens[row], positions[row] = tokens[0], positions[0]
    batches.append(
      GenerationBatch(tokens, positions, row_limits, owner, most_new)
    )
  return batches
