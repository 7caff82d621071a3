"""A split of all tasks, encoded, packed and placed once for a whole run."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools

import jax

from evojax_llm.engine import batches
from evojax_llm.engine import prefix_tree
from evojax_llm.engine.plan import Plan
from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.queues import pack_queues
from evojax_llm.population.sharding import place
from evojax_llm.tasks.prompts import EncodedItem
from evojax_llm.tasks.scorers.options import OptionTable
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.tokens import common_start

# What of a batch the program reads; the rest stays on the host.
_INPUTS = (
  'tokens',
  'positions',
  'until',
  'row',
  'column',
  'kept',
  'count',
  'source',
  'target',
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A call of the likelihood program: a batch and its arrays on a device."""

  batch: batches.LikelihoodBatch
  inputs: dict[str, jax.Array]

  @property
  def prompt_tokens(self) -> int:
    """Tokens that are read, padding not counted."""
    return int((self.batch.positions >= 0).sum())


@dataclasses.dataclass(frozen=True)
class ItemSpan:
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

  Continuations to be read and prompts to be continued are numbered in the order
  of tasks and items.

  Attributes:
    items: K lists of encoded items.
    num_options: continuations to be read, by `jobs`.
    num_prompts: prompts to be continued, in `queues`.
    soft: (n, T, D) soft tokens of their images, or None.
  """

  items: list[list[EncodedItem]]
  num_options: int
  num_prompts: int
  jobs: list[Job]
  queues: list[Queue]
  soft: jax.Array | None = None

  @functools.cached_property
  def spans(self) -> list[list[ItemSpan]]:
    """Of each task, its items and where their answers are."""
    option = prompt = 0
    spans = []
    for task in self.items:
      spans.append([])
      # An item may have several prompts.
      for _, parts in itertools.groupby(task, key=lambda e: e.item.id):
        parts = list(parts)
        tokens = tuple(len(o) for e in parts for o in e.options or ())
        texts = sum(e.options is None for e in parts)
        span = slice(option, option + len(tokens))
        asked = slice(prompt, prompt + texts)
        spans[-1].append(ItemSpan(parts[0].item, span, asked, tokens))
        option, prompt = span.stop, asked.stop
    return spans

  @functools.cached_property
  def tables(self) -> list[OptionTable]:
    """Of each task, what is read after its prompts."""
    return [
      OptionTable([p.item for p in spans], [p.tokens for p in spans])
      for spans in self.spans
    ]


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
  plan: Plan,
  sharding: jax.sharding.Sharding,
  pad_id: int = 0,
  soft: jax.Array | None = None,
) -> PackedSplit:
  """Packs the items of K tasks into few shapes and puts them on the device."""
  families, continuations, to_continue = [], [], []
  for k, task in enumerate(items):
    for item in task:
      if item.options is None:
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
        families += [k] * len(item.options)
        continuations += [(item.prompt, option) for option in item.options]
  jobs = []
  for batch in batches.pack_likelihood(
    continuations,
    plan.rows,
    pad_id,
    families=families,
    attention_doubles_at=plan.attention_doubles_at,
  ):
    arrays = {name: getattr(batch, name) for name in _INPUTS}
    jobs.append(Job(batch, place(arrays, sharding)))
  queues = pack_queues(
    to_continue,
    plan.slots,
    plan.rows,
    sharding,
    pad_id,
    join=plan.walk == 'unrolled',
  )
  counts = len(continuations), len(to_continue)
  return PackedSplit(items, *counts, jobs, queues, soft)
