"""A split of all tasks, encoded, packed and placed once for a whole run."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from evojax_llm.fitness import batches
from evojax_llm.fitness import trees
from evojax_llm.fitness.prompts import EncodedItem

# What of a batch a program reads; the rest stays on the host.
_INPUTS = {
  'likelihood': ('tokens', 'positions', 'until', 'row', 'column', 'target'),
  'generate': ('tokens', 'positions', 'limits'),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """One program call, but for the members.

  Attributes:
    kind: 'likelihood' or 'generate'.
    batch: the host's batch.
    inputs: its arrays on the device.
  """

  kind: str
  batch: Any
  inputs: dict[str, jax.Array]

  @property
  def prompt_tokens(self) -> int:
    """Tokens that are read, padding not counted."""
    return int((self.batch.positions >= 0).sum())


@dataclasses.dataclass(frozen=True)
class Split:
  """All items of a split.

  Attributes:
    items: K lists of encoded items.
    options: (task, item, option) of every continuation to be read.
    prompts: (task, item) of every prompt to be continued.
    first_option: (K,) index of each task's first continuation.
    first_prompt: (K,) index of each task's first prompt.
    jobs: the program calls that answer them all.
  """

  items: list[list[EncodedItem]]
  options: list[tuple[int, int, int]]
  prompts: list[tuple[int, int]]
  first_option: list[int]
  first_prompt: list[int]
  jobs: list[Job]


def longest_rows(items: Sequence[Sequence[EncodedItem]]) -> list:
  """(tokens, new tokens) of the rows that take the most memory."""
  lengths = [(1, 0)]
  for task in items:
    lengths += [
      (len(item.prompt), item.max_new_tokens)
      for item in task
      if item.options is None
    ]
    scored = [item for item in task if item.options is not None]
    if scored:
      lengths.append((_longest_forest(scored), 0))
  return [max(lengths), max(lengths, key=sum)]


def _longest_forest(items: Sequence[EncodedItem]) -> int:
  """Columns of the longest row that items with options will have."""
  shared = trees.common_start([item.prompt for item in items])
  longest = max(
    trees.size([(item.prompt, option) for option in item.options])
    for item in items
  )
  return max(longest, batches.row_floor(shared))


def pack(
  items: list[list[EncodedItem]],
  rows: Callable[[int, int], int],
  sharding: jax.sharding.Sharding,
  pad_id: int = 0,
) -> Split:
  """Packs the items of all tasks into few shapes and puts them on the device.

  Args:
    items: K lists of encoded items.
    rows: most rows of a batch, by prompt tokens and new tokens.
    sharding: where the arrays go.
    pad_id: token that stands where there is none.
  """
  options, continuations = [], []
  prompts, to_continue, limits = [], [], []
  first_option, first_prompt = [], []
  for k, task in enumerate(items):
    first_option.append(len(options))
    first_prompt.append(len(prompts))
    for i, item in enumerate(task):
      if item.options is None:
        prompts.append((k, i))
        to_continue.append(item.prompt)
        limits.append(item.max_new_tokens)
      else:
        options += [(k, i, o) for o in range(len(item.options))]
        continuations += [(item.prompt, option) for option in item.options]
  most_new = max(limits, default=0)
  packed = [
    ('likelihood', batch)
    for batch in batches.pack_likelihood(
      continuations,
      lambda length: rows(length, 0),
      pad_id,
      families=[k for k, _, _ in options],
    )
  ] + [
    ('generate', batch)
    for batch in batches.pack_generation(
      to_continue, limits, lambda length: rows(length, most_new), pad_id
    )
  ]

  def place(kind: str, batch: Any) -> dict[str, jax.Array]:
    arrays = {name: np.asarray(getattr(batch, name)) for name in _INPUTS[kind]}
    return jax.device_put(arrays, sharding)

  jobs = [Job(kind, batch, place(kind, batch)) for kind, batch in packed]
  return Split(items, options, prompts, first_option, first_prompt, jobs)
