"""Scorers of likelihoods: all members and items of a task in one pass.

The continuations that are read of a task stand one after the other, item by
item. An `OptionTable` lays them out with a line for each item, in which scorers
look for the largest value with numpy. The rule for one answer is thus the rule
for all of them, in the same code.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

_NORMS = ('none', 'characters', 'bytes', 'tokens')


@dataclasses.dataclass(frozen=True)
class OptionTable:
  """The continuations of I items as a table of at most C columns.

  Attributes:
    items: I items.
    tokens: of each item, the tokens of each continuation.
  """

  items: Sequence[Item]
  tokens: Sequence[Sequence[int]]

  @functools.cached_property
  def there(self) -> np.ndarray:
    """(I, C) bool: where an item has a continuation."""
    widths = np.array([len(tokens) for tokens in self.tokens], np.int64)
    return np.arange(widths.max(initial=1)) < widths[:, None]

  @functools.cached_property
  def choices(self) -> np.ndarray:
    """(I, C) bool: the item's own options, before what else is read of it."""
    counts = np.array([len(item.choices or ()) for item in self.items])
    return self.there & (np.arange(self.there.shape[1]) < counts[:, None])

  @functools.cached_property
  def keys(self) -> np.ndarray:
    """(I, C) keys of the options, None elsewhere, as objects."""
    keys = [[key for key, _ in item.choices] for item in self.items]
    return self.per_option(keys, None)

  @functools.cached_property
  def gold(self) -> np.ndarray:
    """(I, C) bool: the option whose key is the gold answer."""
    answers = [[item.answer] for item in self.items]
    return self.choices & (self.keys == np.array(answers, object))

  def per_option(
    self, values: Sequence[Sequence], filler: float | None
  ) -> np.ndarray:
    """Returns (I, C) `values` at the options of each item, else `filler`."""
    table = np.full(self.choices.shape, filler)
    table[self.choices] = [value for item in values for value in item]
    return table

  def spread(self, loglik: np.ndarray) -> np.ndarray:
    """Returns (M, I, C) f64 of (M, continuations); -inf where there is none."""
    values = np.full((len(loglik), *self.there.shape), -np.inf)
    values[:, self.there] = loglik
    return values


def likeliest(values: np.ndarray) -> np.ndarray:
  """Returns columns (...) i64 of the largest of values (..., C).

  The first one of a tie; -1 where a value is NaN or +inf, or none is finite.
  """
  return np.where(np.isfinite(values.max(-1)), values.argmax(-1), -1)


def verdicts_on(
  table: OptionTable, best: np.ndarray, wrong: float = 0.0
) -> Verdicts:
  """Returns verdicts (M, I) on the options in these columns (M, I).

  A right option is 1, another one `wrong`; column -1 is no prediction, and 0.
  """
  items = np.arange(len(table.items))
  known = best >= 0
  value = np.where(table.gold[items, best], 1.0, wrong)
  return Verdicts(
    np.where(known, table.keys[items, best], None),
    np.where(known, value, 0.0),
    np.ones(best.shape),
  )


class OptionScorer(Scorer):
  """Base of scorers of likelihoods, which score a whole task at once."""

  reads = 'options'

  def score(self, item: Item, answer: Answer) -> Verdict:
    tokens = answer.tokens or (1,) * len(answer.loglik)
    loglik = np.asarray([answer.loglik], np.float64)
    verdicts = self.score_options(OptionTable([item], [tokens]), loglik)
    return verdicts.member(0).item(0)

  def score_options(self, table: OptionTable, loglik: np.ndarray) -> Verdicts:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MultipleChoice(OptionScorer):
  """Accuracy of the likeliest option.

  `norm` divides an option's log-likelihood before they are compared:
    none        as it is ('acc' of lm-evaluation-harness)
    characters  by the characters of the option's text ('acc_norm' there)
    bytes       by its UTF-8 bytes ('acc_bytes' there)
    tokens      by its tokens
  Characters and bytes need choice='text': a key is not as long as its text.
  """

  norm: str = option('none', 'what divides log-likelihoods', choices=_NORMS)

  choices = True
  max_new_tokens = 0
  stop = False

  def score_options(self, table: OptionTable, loglik: np.ndarray) -> Verdicts:
    for item, tokens in zip(table.items, table.tokens, strict=True):
      count = len(item.choices or ())
      if len(tokens) != count or not count:
        raise TaskError(
          f"Item '{item.id}' has {count or 'no'} options, but {len(tokens)} "
          'log-likelihoods were given: one per option is needed.'
        )
    values = table.spread(loglik)
    if self.norm == 'tokens':
      values /= table.per_option(table.tokens, 1.0)
    elif self.norm != 'none':
      size = len if self.norm == 'characters' else lambda t: len(t.encode())
      sizes = [[size(text) for _, text in item.choices] for item in table.items]
      values /= table.per_option(sizes, 1.0)
    return verdicts_on(table, likeliest(values))


@dataclasses.dataclass(frozen=True)
class Perplexity(OptionScorer):
  """Perplexity of the gold answers, minimised.

  exp of the mean negative log-likelihood over all units of the task: an item's
  value is its own in nats per unit, its weight the number of units. Bytes and
  words compare across tokenizers. A text without a question is read from its
  start, in windows where it is longer than the context: of each the first token
  is read after the one before it, and the last window after as many as there is
  room for, as lm-evaluation-harness rolls.
  """

  unit: str = option(
    'token', 'what the mean is over', choices=('token', 'byte', 'word')
  )

  reads = 'gold'
  maximise = binary = percent = question = stop = False
  corpus = rolls = True
  max_new_tokens = 0

  @property
  def metric(self) -> str:
    return 'perplexity' if self.unit == 'token' else f'{self.unit}_perplexity'

  def score_options(self, table: OptionTable, loglik: np.ndarray) -> Verdicts:
    units = np.array(
      [
        {
          'token': sum(tokens),
          'byte': len(item.answer.encode()),
          'word': len(item.answer.split()),
        }[self.unit]
        for item, tokens in zip(table.items, table.tokens, strict=True)
      ],
      np.float64,
    )
    # The windows of a long text follow one another.
    starts = np.cumsum([0, *(len(tokens) for tokens in table.tokens[:-1])])
    loglik = np.add.reduceat(loglik, starts, axis=1)
    return Verdicts(
      np.full(loglik.shape, None, object),
      -loglik / units,
      np.broadcast_to(units, loglik.shape),
    )

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    """Returns the task's perplexity; inf where it is beyond a double."""
    del items
    nats = sum((verdicts.values * verdicts.weights).tolist())
    mean = nats / sum(verdicts.weights.tolist())
    return math.exp(mean) if mean < 700 else math.inf
