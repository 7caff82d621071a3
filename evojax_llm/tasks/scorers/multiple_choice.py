"""multiple_choice: the likeliest option.

The option with the largest log-likelihood; the first one of a tie. Where a
value is NaN or +inf, or none is finite, there is no prediction, and no
prediction is never right.

`norm` divides an option's log-likelihood before they are compared:
  none        as it is ('acc' of lm-evaluation-harness)
  characters  by the characters of the option's text ('acc_norm' there)
  bytes       by its UTF-8 bytes ('acc_bytes' there)
  tokens      by its tokens
Characters and bytes need choice='text': a key is not as long as its text.
"""

import dataclasses

import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers import options
from evojax_llm.tasks.scorers.base import Verdicts

_NORMS = ('none', 'characters', 'bytes', 'tokens')


@dataclasses.dataclass(frozen=True)
class MultipleChoice(options.OptionScorer):
  """Accuracy of the likeliest option."""

  norm: str = option('none', 'what divides log-likelihoods', choices=_NORMS)

  choices = True
  max_new_tokens = 0
  stop = False

  def score_options(
    self, table: options.OptionTable, loglik: np.ndarray
  ) -> Verdicts:
    table.check_options()
    values = table.spread(loglik)
    if self.norm != 'none':
      values /= self._lengths(table)
    return options.verdicts_on(table, options.likeliest(values))

  def _lengths(self, table: options.OptionTable) -> np.ndarray:
    """Returns (I, C) what an option's log-likelihood is divided by."""
    if self.norm == 'tokens':
      return table.per_option(table.tokens, 1.0, np.float64)
    size = len if self.norm == 'characters' else lambda t: len(t.encode())
    texts = [[size(text) for _, text in item.choices] for item in table.items]
    return table.per_option(texts, 1.0, np.float64)
