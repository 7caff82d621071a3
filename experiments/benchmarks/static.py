"""Static batches of prompts, as one continues them without an engine."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import numpy as np

from evojax_llm.engine.batches import by_bucket


@dataclasses.dataclass(frozen=True)
class StaticBatch:
  """Prompts that are continued together, until the last of them has ended.

  Attributes:
    tokens: (B, T) i32, padded left, so that every row ends in its last token.
    positions: (B, T) i32, -1 where padded.
    owner: (B,) i32 index of the prompt.
    max_new_tokens: largest limit of the prompts.
  """

  tokens: np.ndarray
  positions: np.ndarray
  owner: np.ndarray
  max_new_tokens: int


def pack_static(
  prompts: Sequence[Sequence[int]],
  limits: Sequence[int],
  rows_per_batch: Callable[[int], int],
  pad_id: int = 0,
) -> list[StaticBatch]:
  """Packs prompts, sorted by length, into batches.

  Args:
    prompts: token ids, at least one each.
    limits: tokens that each prompt may make.
    rows_per_batch: most rows of a batch, as a function of T.
    pad_id: token that stands where there is none.
  """
  packed = []
  cut = [
    (top, rows[i : i + rows_per_batch(top)])
    for top, rows in by_bucket([len(prompt) for prompt in prompts])
    for i in range(0, len(rows), rows_per_batch(top))
  ]
  for top, indices in cut:
    tokens = np.full((len(indices), top), pad_id, np.int32)
    positions = np.full((len(indices), top), -1, np.int32)
    for row, index in enumerate(indices):
      prompt = prompts[index]
      tokens[row, top - len(prompt) :] = prompt
      positions[row, top - len(prompt) :] = np.arange(len(prompt))
    owner = np.array(indices, np.int32)
    most = max(limits[i] for i in indices)
    packed.append(StaticBatch(tokens, positions, owner, most))
  return packed
