"""abstain_qa: answer, then say whether the answer is true; abstain if not.

Effective reliability, (right - wrong) / all, in [-1, 1] (AbstainQA, as in Model
Swarms, arXiv 2410.11163): a right answer is 1, an abstention 0, a wrong answer
-1. In the first pass the item is answered as multiple choice; in the second the
model is shown an answer and asked whether it is true. Which answer that is
depends on the member, so the second question is asked about every option and
the one that the member chose is looked at: all members read the same prompts.

by='likelihood' takes the likeliest option, and abstains where ' False' is
likelier than ' True'. by='text' generates both: the member abstains where the
second text has the word 'false' in whatever case and anywhere, which is the
published rule; with parse='model_swarms' the first pass is the published one as
well. A member without an answer that can be read abstains.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from evojax_llm.tasks.scorers import choice_text
from evojax_llm.tasks.scorers import options
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item

REPLIES = ('True', 'False')
# After the question, its options and the proposed answer.
SECOND_PASS = (
  'Question: {question}\n{choices}\nProposed answer: {key}: {text}\n'
  'Is the proposed answer true or false? Answer True or False.\nThe proposed '
  'answer is'
)


@dataclasses.dataclass(frozen=True)
class AbstainQA(choice_text.KeyScorer):
  """(right - wrong) / all, over two passes."""

  metric = 'effective_reliability'
  binary = False

  def second_pass(self, item: Item) -> Sequence[tuple[str, Sequence[str]]]:
    choices = '\n'.join(f'{key}: {text}' for key, text in item.choices)
    return [
      (
        SECOND_PASS.format(
          question=item.question, choices=choices, key=key, text=text
        ),
        REPLIES,
      )
      for key, text in item.choices
    ]

  def score_text(self, item: Item, answer: Answer) -> Verdict:
    """Scores 1 right, 0 abstained, -1 wrong; the prediction is the answer."""
    keys = [key for key, _ in item.choices]
    key = choice_text.find_key(item, answer.texts[0], self.parse)
    if key not in keys or 'false' in answer.texts[1 + keys.index(key)].lower():
      return Verdict(None, 0.0)
    return Verdict(key, 1.0 if key == item.answer else -1.0)

  def score_options(
    self, table: options.OptionTable, loglik: np.ndarray
  ) -> Verdicts:
    """Scores the likeliest options and replies as `score_text` does."""
    values = table.spread(loglik)
    best = options.likeliest(np.where(table.choices, values, -np.inf))
    # After the options of an item come the replies to each of them.
    true = table.choices.sum(axis=1) + len(REPLIES) * np.maximum(best, 0)
    replies = np.take_along_axis(
      values, np.stack([true, true + 1], axis=-1), axis=-1
    )
    abstains = replies[..., 1] > replies[..., 0]
    return options.verdicts_on(table, np.where(abstains, -1, best), wrong=-1.0)

  def labels(self, item: Item, count: int) -> list[str]:
    del count
    keys = [key for key, _ in item.choices]
    return keys + [f'{key} {reply}' for key in keys for reply in REPLIES]
