"""multiple_choice: the likeliest option.

The option with the largest log-likelihood; the first one of a tie. Where a
value is NaN or +inf, or none is finite, there is no prediction, and no
prediction is never right.

`norm` divides an option's log-likelihood before they are compared:
  none        as it is ('acc' of lm-evaluation-harness)
  characters  by the characters of the option's text ('acc_norm' there)
  bytes       by its UTF-8 bytes ('acc_bytes' there)
  tokens      by its tokens
Characters and bytes are asked for with choice='text' alone: a key is not as
long as its text.
"""

import dataclasses
from typing import Any
from typing import ClassVar

import numpy as np

from evojax_llm.tasks.scorers import options
from evojax_llm.tasks.scorers.base import Verdicts


@dataclasses.dataclass(frozen=True)
class MultipleChoice(options.OptionScorer):
  """The likeliest option is the right one.

  Attributes:
    norm: what log-likelihoods are divided by: see the module.
  """

  norm: str = 'none'

  choices: ClassVar[bool | None] = True
  max_new_tokens: ClassVar[int] = 0
  stop: ClassVar[bool] = False
  words: ClassVar[dict[str, Any]] = {
    'norm': ('none', 'characters', 'bytes', 'tokens')
  }

  def score_options(
    self, table: options.OptionTable, loglik: np.ndarray
  ) -> Verdicts:
    """Picks an option of each item."""
    table.check_options()
    values = table.spread(loglik)
    if self.norm != 'none':
      values /= self._lengths(table)
    return options.verdicts_on(table, options.likeliest(values))

  def _lengths(self, table: options.OptionTable) -> np.ndarray:
    """(I, C) what an option's log-likelihood is divided by."""
    if self.norm == 'tokens':
      return table.per_option(table.tokens, 1.0, np.float64)
    size = len if self.norm == 'characters' else lambda t: len(t.encode())
    texts = [[size(text) for _, text in item.choices] for item in table.items]
    return table.per_option(texts, 1.0, np.float64)
