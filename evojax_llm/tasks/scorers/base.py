"""What a scorer is, and what it is given.

A scorer is a frozen dataclass whose fields, made by `options.option`, are the
options that a task's `format` may set. Its defaults are strict; what a
published system does otherwise is a named value of an option. An answer is
extracted without a look at the gold answer, so that predictions can be compared
and put to a vote; the rules of published code that do look at it say so.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import ClassVar

import numpy as np

from evojax_llm import options
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a member answered to the prompts of one item.

  Attributes:
    texts: what it wrote after each prompt that was continued, cut at the first
      stop string.
    loglik: (C,) f64 log-likelihoods of the continuations that were read.
    tokens: (C,) tokens of each of them.
  """

  texts: tuple[str, ...] = ()
  loglik: tuple[float, ...] = ()
  tokens: tuple[int, ...] = ()

  @property
  def text(self) -> str:
    """The text after the first prompt."""
    return self.texts[0]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The score of one answer.

  Attributes:
    prediction: the answer in one spelling, or None where there is none.
    value: the item's score in the scorer's unit; 0 or 1 where it is binary.
      NaN fails the member.
    weight: what the item counts for where an aggregate weighs items, such as
      its tokens in a perplexity.
  """

  prediction: str | None
  value: float
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """Verdicts on I items, of one member or with a leading axis of members.

  Attributes:
    predictions: (..., I) objects, a string or None.
    values: (..., I) f64.
    weights: (..., I) f64.
  """

  predictions: np.ndarray
  values: np.ndarray
  weights: np.ndarray

  @classmethod
  def of(
    cls, verdicts: Iterable[Verdict], shape: tuple[int, ...] = (-1,)
  ) -> 'Verdicts':
    """Single verdicts, in the order of an array of this shape."""
    verdicts = list(verdicts)
    return cls(
      np.array([v.prediction for v in verdicts], object).reshape(shape),
      np.array([v.value for v in verdicts], np.float64).reshape(shape),
      np.array([v.weight for v in verdicts], np.float64).reshape(shape),
    )

  def member(self, m: int) -> 'Verdicts':
    """Those on one member."""
    return Verdicts(self.predictions[m], self.values[m], self.weights[m])

  def item(self, i: int) -> Verdict:
    """That of one member on one item."""
    prediction, value = self.predictions[i], float(self.values[i])
    return Verdict(prediction, value, float(self.weights[i]))


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Base of all scorers.

  Class attributes:
    reads: what the engine has to provide: the likelihoods of the 'options',
      generated 'text', or the likelihood of the 'gold' answer.
    metric: name of the aggregate in results.
    maximise: whether more is better.
    binary: whether values are 0 or 1, so that an interval of a proportion
      holds.
    corpus: whether the aggregate is more than the mean of the items.
    percent: whether the aggregate is a share, shown in percent.
    choices: whether items have options: True, False, or None for either.
    question: whether items need a question.
    gold: whether items need a gold answer.
    max_new_tokens: tokens to decode where the task does not say.
    stop: whether an answer ends where a base model would go on with the next
      question.
    rolls: whether a gold answer without a question is read from its start, in
      windows where it is longer than the context.
    runs_code: whether generated code is run, which has to be allowed.
  """

  reads: ClassVar[str] = 'text'
  metric: ClassVar[str] = 'accuracy'
  maximise: ClassVar[bool] = True
  binary: ClassVar[bool] = True
  corpus: ClassVar[bool] = False
  percent: ClassVar[bool] = True
  choices: ClassVar[bool | None] = False
  question: ClassVar[bool] = True
  gold: ClassVar[bool] = True
  max_new_tokens: ClassVar[int] = 32
  stop: ClassVar[bool] = True
  rolls: ClassVar[bool] = False
  runs_code: ClassVar[bool] = False

  def __post_init__(self):
    for name, known in options.declared(type(self)).items():
      value = getattr(self, name)
      try:
        known.check(value)
      except ValueError as error:
        raise TaskError(str(error)) from error
      if known.kind is int:  # 10.0 is whole as well.
        object.__setattr__(self, name, int(value))

  def check(self, item: Item) -> None:
    """Refuses an item that the scorer cannot score.

    Raises:
      TaskError: says what was expected; the caller adds file and row.
    """

  def requests(self, item: Item) -> Sequence[tuple[str, Sequence[str]]] | None:
    """Returns what is read about an item instead of its prompt and options.

    Returns:
      (prompt, continuations) pairs, each continuation with the white space that
      parts it from the prompt; None for what the task's format says.
    """
    del item

  def second_pass(self, item: Item) -> Sequence[tuple[str, Sequence[str]]]:
    """Returns (prompt, replies) pairs that are read after an item's own.

    The replies are read by likelihood, or generated where `reads` is 'text'.
    """
    del item
    return ()

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Scores one answer."""
    raise NotImplementedError

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """Scores many answers of any members; one at a time by default."""
    return [self.score(item, answer) for item, answer in pairs]

  def score_options(self, table: Any, loglik: np.ndarray) -> Verdicts:
    """Scores all that was read of a task; one answer at a time by default.

    Args:
      table: an `options.OptionTable` of the task's I items.
      loglik: (M, continuations) f64 log-likelihoods of what M members read.

    Returns:
      Verdicts (M, I).
    """
    verdicts = []
    for row in loglik.tolist():
      values = iter(row)
      for item, tokens in zip(table.items, table.tokens, strict=True):
        own = tuple(next(values) for _ in tokens)
        verdicts.append(self.score(item, Answer(loglik=own, tokens=tokens)))
    return Verdicts.of(verdicts, (len(loglik), len(table.items)))

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    """Returns the task's score from a member's verdicts, here the mean."""
    del items
    return float(np.mean(verdicts.values))

  def labels(self, item: Item, count: int) -> list[str]:
    """Returns names of the `count` continuations that are read, for results."""
    names = [key for key, _ in item.choices or ()] or ['gold']
    return names + [str(i) for i in range(len(names), count)]
