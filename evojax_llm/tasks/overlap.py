"""Items that occur both in dev and in test: a search would see the test."""

from collections.abc import Sequence

from evojax_llm.tasks.task import Item


def normalise(text: str) -> str:
  """Returns text without differences of case and white space."""
  return ' '.join(text.casefold().split())


def identity(item: Item) -> tuple[str, tuple[str, ...]]:
  """Returns what makes two items the same: the question and its options' texts.

  Order and keys of the options do not count, nor does the gold answer: a
  shuffled copy is the same item. Items with one question and other options
  differ (Knowledge Crosswords asks one question many times). An item without a
  question, such as a text for perplexity, is its gold answer.
  """
  texts = [normalise(text) for _, text in item.choices or ()]
  text = item.question if item.question.strip() else item.answer
  return normalise(text), tuple(sorted(texts))


def find_overlap(
  dev: Sequence[Item], test: Sequence[Item]
) -> list[tuple[Item, Item]]:
  """Returns pairs (dev item, test item) that are the same, in dev order.

  Every dev item occurs at most once, with the first test item that equals it.
  """
  first = {}
  for item in test:
    first.setdefault(identity(item), item)
  matches = ((item, first.get(identity(item))) for item in dev)
  return [(a, b) for a, b in matches if b is not None]


def describe_overlap(pairs: Sequence[tuple[Item, Item]], shown: int = 3) -> str:
  """Returns the first pairs as indented lines: ids and the question's start."""
  lines = []
  for a, b in pairs[:shown]:
    # Questions may share a long preamble; what tells them apart comes last.
    text = ' '.join(a.question.split())
    text = text if len(text) <= 80 else '...' + text[-77:]
    lines.append(f"  dev '{a.id}' = test '{b.id}': {text}")
  if len(pairs) > shown:
    lines.append(f'  ... and {len(pairs) - shown} more')
  return '\n'.join(lines)
