"""Answers of members, collected from the devices."""

import numpy as np

from evojax_llm.engine.packed_split import PackedSplit


class Answers:
  """Answers of M members to the prompts of a split.

  Attributes:
    loglikelihoods: (M, continuations) f64 sums of log-probabilities.
    generated: M lists of the token ids that continue each prompt.
    finite: (M,) bool, whether all logits that were read were finite.
  """

  def __init__(self, split: PackedSplit, members: int):
    self.loglikelihoods = np.zeros((members, split.num_options), np.float64)
    self.generated = [[()] * split.num_prompts for _ in range(members)]
    self.finite = np.ones(members, bool)

  def forget(self, start: int) -> None:
    """Drops the answers of members `start` and following."""
    self.loglikelihoods[start:] = 0.0
    self.finite[start:] = True

  def add_options(
    self, owner: np.ndarray, start: int, logprobs: np.ndarray
  ) -> None:
    """Adds log-probabilities (M, Q) of members `start` and following."""
    span = slice(start, start + len(logprobs))
    read = owner >= 0
    values = logprobs[:, read].astype(np.float64)
    np.add.at(self.loglikelihoods[span].T, owner[read], values.T)
    self.finite[span] &= np.isfinite(values).all(axis=1)

  def add_texts(
    self, owner: np.ndarray, start: int, tokens: np.ndarray, finite: np.ndarray
  ) -> None:
    """Adds tokens (M, N, new) of members `start` and following."""
    self.finite[start : start + len(finite)] &= finite
    lengths = (tokens >= 0).sum(axis=2)
    for m, rows in enumerate(tokens.tolist()):
      made = self.generated[start + m]
      for row, prompt, length in zip(rows, owner, lengths[m], strict=True):
        made[prompt] = tuple(row[:length])
