"""Likelihoods of options: all members and items of a task in one pass.

The continuations that are read of a task stand one after the other, item by
item. An `OptionTable` lays them out with a line for each item, in which scorers
look for the largest value with numpy. The rule for one answer is thus the rule
for all of them, in the same code.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError


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
    """(I, C) bool: where a continuation is an option of the item itself.

    Some scorers read more than the options, which come first.
    """
    counts = np.array([len(item.choices or ()) for item in self.items])
    return self.there & (np.arange(self.there.shape[1]) < counts[:, None])

  @functools.cached_property
  def keys(self) -> np.ndarray:
    """(I, C) keys of the options, None elsewhere, as objects."""
    return self.per_option(
      [[key for key, _ in item.choices] for item in self.items], None, object
    )

  @functools.cached_property
  def gold(self) -> np.ndarray:
    """(I, C) bool: the option whose key is the gold answer."""
    answers = [[item.answer] for item in self.items]
    return self.choices & (self.keys == np.array(answers, object))

  def check_options(self) -> None:
    """Raises TaskError where an item was not read option by option."""
    for item, tokens in zip(self.items, self.tokens, strict=True):
      count = len(item.choices or ())
      if len(tokens) != count or not count:
        raise TaskError(
          f"Item '{item.id}' has {count or 'no'} options, but {len(tokens)} "
          'log-likelihoods were given: one per option is needed.'
        )

  def per_option(
    self, values: Sequence[Sequence], filler: object, dtype: type
  ) -> np.ndarray:
    """Returns (I, C) `values` at the options of each item, else `filler`."""
    table = np.full(self.choices.shape, filler, dtype)
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

  A right option is 1 and another one `wrong`. Column -1 is no prediction,
  which is 0.
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
