"""weighted_f1: F1 of each gold label, weighted by how often it is gold.

As scikit-learn's f1_score(average='weighted') over the whole task; GENOME
(arXiv 2503.01155) scores its emotion tasks with it. An item without a
prediction counts against the recall of its label only.
"""

import collections
from collections.abc import Sequence
import dataclasses

import numpy as np

from evojax_llm.tasks.scorers import choice_text
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.multiple_choice import MultipleChoice
from evojax_llm.tasks.scorers.options import OptionTable
from evojax_llm.tasks.task import Item


@dataclasses.dataclass(frozen=True)
class WeightedF1(choice_text.KeyScorer):
  """F1 of the keys, weighted by support."""

  metric = 'weighted_f1'
  binary = False
  corpus = True

  def score_options(self, table: OptionTable, loglik: np.ndarray) -> Verdicts:
    return MultipleChoice().score_options(table, loglik)

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    gold = [item.answer for item in items]
    return weighted_f1(gold, verdicts.predictions.tolist())


def weighted_f1(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
  """Returns the F1 of gold labels, weighted by their number of items."""
  support, named = collections.Counter(gold), collections.Counter(predicted)
  hits = collections.Counter(
    g for g, p in zip(gold, predicted, strict=True) if g == p
  )
  total = 0.0
  for label, count in support.items():
    # 2 PR / (P + R) with P = hits / named and R = hits / count.
    total += count * 2 * hits[label] / (count + named[label])
  return total / len(gold)
