"""perplexity: exp of the mean negative log-likelihood of the gold answers.

The mean is over all units of the task, not over its items: a long answer counts
for more than a short one. A text without a question is read from its start, in
windows where it is longer than the context: of each the first token is read
after the one before it, and the last window after as many as there is room for,
as lm-evaluation-harness rolls.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.options import OptionScorer
from evojax_llm.tasks.scorers.options import OptionTable
from evojax_llm.tasks.task import Item


@dataclasses.dataclass(frozen=True)
class Perplexity(OptionScorer):
  """Perplexity of the gold answers, minimised.

  An item's value is its negative log-likelihood in nats per unit, its weight
  the number of units. Bytes and words compare across tokenizers.
  """

  unit: str = option(
    'token', 'what the mean is over', choices=('token', 'byte', 'word')
  )

  reads = 'gold'
  maximise = False
  binary = False
  corpus = True
  percent = False
  question = False
  max_new_tokens = 0
  stop = False
  rolls = True

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
