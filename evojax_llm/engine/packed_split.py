"""A split of all tasks, encoded, packed and placed once for a whole run."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import itertools

import jax

from evojax_llm.engine import batches
from evojax_llm.engine import prefix_tree
from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.queues import pack_queues
from evojax_llm.tasks.prompts import EncodedItem
from evojax_llm.tasks.scorers.options import OptionTable
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.tokens import common_start

# What of a batch the program reads; the rest stays on the host.
_INPUTS = ('tokens', 'positions', 'until', 'row', 'column', 'target')


@dataclasses.dataclass(frozen=True)
class Job:
  """One call of the likelihood program, but for the members.

  Attributes:
    batch: the host's batch.
    inputs: its arrays on the device.
  """

  batch: batches.LikelihoodBatch
  inputs: dict[str, jax.Array]

  @property
  def prompt_tokens(self) -> int:
    """Tokens that are read, padding not counted."""
    return int((self.batch.positions >= 0).sum())


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the answers to one item are, which may have several prompts.

  Attributes:
    item: the item.
    options: slice of the continuations.
    prompts: slice of the generated texts.
    tokens: tokens of each continuation.
  """

  item: Item
  options: slice
  prompts: slice
  tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PackedSplit:
  """All items of a split, packed.

  Attributes:
    items: K lists of encoded items.
    options: (task, item, option) of every continuation to be read.
    prompts: (task, item) of every prompt to be continued.
    first_option: (K,) index of each task's first continuation.
    first_prompt: (K,) index of each task's first prompt.
    jobs: the program calls that read all options.
    queues: all prompts to be continued.
  """

  items: list[list[EncodedItem]]
  options: list[tuple[int, int, int]]
  prompts: list[tuple[int, int]]
  first_option: list[int]
  first_prompt: list[int]
  jobs: list[Job]
  queues: list[Queue]

  @functools.cached_property
  def places(self) -> list[list[Place]]:
    """Of each task, its items and where their answers are."""
    firsts = zip(self.items, self.first_option, self.first_prompt, strict=True)
    return [_places(*first) for first in firsts]

  @functools.cached_property
  def tables(self) -> list[OptionTable]:
    """Of each task, what is read after its prompts."""
    return [
      OptionTable([p.item for p in places], [p.tokens for p in places])
      for places in self.places
    ]


def _places(
  encoded: Sequence[EncodedItem], option: int, prompt: int
) -> list[Place]:
  """Items with their answers; an item may have been asked more than once."""
  places = []
  for _, passes in itertools.groupby(encoded, key=lambda e: e.item.id):
    passes = list(passes)
    tokens = tuple(len(o) for e in passes for o in e.options or ())
    texts = sum(e.options is None for e in passes)
    places.append(
      Place(
        passes[0].item,
        slice(option, option + len(tokens)),
        slice(prompt, prompt + texts),
        tokens,
      )
    )
    option, prompt = option + len(tokens), prompt + texts
  return places


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
  shared = common_start([item.prompt for item in items])
  sizes = [
    prefix_tree.size([(item.prompt, option) for option in item.options])
    for item in items
  ]
  return batches.longest_row(sizes, shared)


def pack(
  items: list[list[EncodedItem]],
  rows: Callable[[int, int], int],
  slots: Callable[[int, int], int],
  sharding: jax.sharding.Sharding,
  pad_id: int = 0,
) -> PackedSplit:
  """Packs the items of all tasks into few shapes and puts them on the device.

  Args:
    items: K lists of encoded items.
    rows: most rows of a batch, by prompt tokens and new tokens.
    slots: most prompts in work at a time, likewise.
    sharding: where the arrays go.
    pad_id: token that stands where there is none.
  """
  options, continuations = [], []
  prompts, to_continue = [], []
  first_option, first_prompt = [], []
  for k, task in enumerate(items):
    first_option.append(len(options))
    first_prompt.append(len(prompts))
    for i, item in enumerate(task):
      if item.options is None:
        prompts.append((k, i))
        to_continue.append(
          Prompt(
            ids=item.prompt,
            limit=item.max_new_tokens,
            stops=item.stop,
            item=item.item.id,
            group=k,
          )
        )
      else:
        options += [(k, i, o) for o in range(len(item.options))]
        continuations += [(item.prompt, option) for option in item.options]
  jobs = []
  for batch in batches.pack_likelihood(
    continuations,
    lambda length: rows(length, 0),
    pad_id,
    families=[k for k, _, _ in options],
  ):
    arrays = {name: getattr(batch, name) for name in _INPUTS}
    jobs.append(Job(batch, jax.device_put(arrays, sharding)))
  return PackedSplit(
    items=items,
    options=options,
    prompts=prompts,
    first_option=first_option,
    first_prompt=first_prompt,
    jobs=jobs,
    queues=pack_queues(to_continue, slots, rows, sharding, pad_id),
  )
