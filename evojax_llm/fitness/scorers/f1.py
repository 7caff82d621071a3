"""weighted_f1: F1 of each gold label, weighted by how often it is gold.

As scikit-learn's f1_score(average='weighted') over the whole task; GENOME
(arXiv 2503.01155) scores its emotion tasks with it. An item without a
prediction counts against the recall of its label and for nobody.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import ClassVar

from evojax_llm.fitness.items import Item
from evojax_llm.fitness.scorers import choice_text
from evojax_llm.fitness.scorers.base import Answer
from evojax_llm.fitness.scorers.base import Verdict
from evojax_llm.fitness.scorers.choice import MultipleChoice


@dataclasses.dataclass(frozen=True)
class WeightedF1(choice_text.KeyScorer):
  """Weighted F1 over the keys of the options."""

  metric: ClassVar[str] = 'weighted_f1'
  binary: ClassVar[bool] = False
  corpus: ClassVar[bool] = True

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Scores one answer: 1 where the label is right."""
    if self.by == 'likelihood':
      return MultipleChoice().score(item, answer)
    key = choice_text.find_key(item, answer.text, self.parse)
    return Verdict(key, float(key == item.answer))

  def aggregate(
    self, items: Sequence[Item], verdicts: Sequence[Verdict]
  ) -> float:
    """Weighted F1 of the task."""
    return weighted_f1(
      [item.answer for item in items], [v.prediction for v in verdicts]
    )


def weighted_f1(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
  """F1 of each gold label, weighted by its number of items."""
  support, named = collections.Counter(gold), collections.Counter(predicted)
  hits = collections.Counter(
    g for g, p in zip(gold, predicted, strict=True) if g == p
  )
  total = 0.0
  for label, count in support.items():
    # 2 PR / (P + R) with P = hits / named and R = hits / count.
    total += count * 2 * hits[label] / (count + named[label])
  return total / len(gold)
