"""multiple_choice: the likeliest option.

The option with the largest log-likelihood; the first one of a tie. Where a
value is NaN or +inf, or none is finite, there is no prediction, and no
prediction is never right.

`norm` divides an option's log-likelihood before they are compared:
  none        as it is ('acc' of lm-evaluation-harness)
  characters  by the characters of the option's text ('acc_norm' there)
  bytes       by its UTF-8 bytes ('acc_bytes' there)
  tokens      by its tokens
What is divided by is what is read: the key with choice='letter', else the text.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import ClassVar

from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.scorers.base import Answer
from evojax_llm.fitness.scorers.base import Scorer
from evojax_llm.fitness.scorers.base import Verdict


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Scorer):
  """The likeliest option is the right one.

  Attributes:
    norm: what log-likelihoods are divided by: see the module.
  """

  norm: str = 'none'

  reads: ClassVar[str] = 'options'
  choices: ClassVar[bool | None] = True
  max_new_tokens: ClassVar[int] = 0
  stop: ClassVar[bool] = False
  words: ClassVar[dict[str, Any]] = {
    'norm': ('none', 'characters', 'bytes', 'tokens')
  }

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Picks an option."""
    best = likeliest(item, self._normalised(item, answer))
    if best is None:
      return Verdict(None, 0.0)
    key = item.choices[best][0]
    return Verdict(key, float(key == item.answer))

  def _normalised(self, item: Item, answer: Answer) -> list[float]:
    values = [float(value) for value in answer.loglik]
    if self.norm == 'none' or item.choices is None:
      return values
    if self.norm == 'tokens':
      lengths = answer.tokens
    elif self.norm == 'characters':
      lengths = [len(text) for _, text in item.choices]
    else:
      lengths = [len(text.encode()) for _, text in item.choices]
    return [v / n for v, n in zip(values, lengths, strict=False)]


def likeliest(item: Item, values: Sequence[float]) -> int | None:
  """Index of the largest value; None where there is no telling.

  Raises:
    TaskError: not one value for each option. More values than options
      (padding) are refused rather than cut.
  """
  if item.choices is None or len(values) != len(item.choices):
    given = 'no options' if item.choices is None else len(item.choices)
    raise TaskError(
      f"Item '{item.id}' has {given}, but {len(values)} log-likelihoods were "
      'given: one per option is needed.'
    )
  if any(math.isnan(value) or value == math.inf for value in values):
    return None
  best = max(range(len(values)), key=values.__getitem__)
  return None if values[best] == -math.inf else best
