"""abstain_qa: answer, then say whether the answer is true; abstain if not.

Effective reliability, (right - wrong) / all, in [-1, 1] (AbstainQA, as in Model
Swarms, arXiv 2410.11163): a right answer is 1, an abstention 0, a wrong answer
-1. In the first pass the item is answered as multiple choice; in the second the
model is shown an answer and asked whether it is true. Which answer that is
depends on the member, so the second question is asked about every option and
the one that the member chose is looked at: all members read the same prompts.

by='likelihood' (the default) takes the likeliest option, and abstains where
' False' is likelier than ' True'. by='text' generates both: the member abstains
where the second text has the word 'false' in whatever case and anywhere, which
is the published rule; with parse='model_swarms' the first pass is the published
one as well. Who gives no answer that can be read abstains.
"""

import dataclasses
from typing import ClassVar

from evojax_llm.fitness.items import Item
from evojax_llm.fitness.scorers import choice_text
from evojax_llm.fitness.scorers.base import Answer
from evojax_llm.fitness.scorers.base import Verdict
from evojax_llm.fitness.scorers.choice import likeliest

REPLIES = ('True', 'False')
# After the question, its options and the proposed answer.
SECOND_PASS = (
  'Question: {question}\n{choices}\nProposed answer: {key}: {text}\n'
  'Is the proposed answer true or false? Answer True or False.\nThe proposed '
  'answer is'
)


@dataclasses.dataclass(frozen=True)
class AbstainQA(choice_text.KeyScorer):
  """Effective reliability over two passes."""

  metric: ClassVar[str] = 'effective_reliability'
  binary: ClassVar[bool] = False

  def second_prompts(self, item: Item) -> list[str]:
    """The prompts of the second pass, one for each option."""
    choices = '\n'.join(f'{key}: {text}' for key, text in item.choices)
    return [
      SECOND_PASS.format(
        question=item.question, choices=choices, key=key, text=text
      )
      for key, text in item.choices
    ]

  def score(self, item: Item, answer: Answer) -> Verdict:
    """1 right, 0 abstained, -1 wrong; the prediction is what was answered."""
    keys = [key for key, _ in item.choices]
    n = len(keys)
    if self.by == 'likelihood':
      best = likeliest(item, answer.loglik[:n])
      if best is None:
        return Verdict(None, 0.0)
      true, false = answer.loglik[n + 2 * best : n + 2 * best + 2]
      abstains = false > true
    else:
      key = choice_text.find_key(item, answer.texts[0], self.parse)
      if key not in keys:
        return Verdict(None, 0.0)
      best = keys.index(key)
      abstains = 'false' in answer.texts[1 + best].lower()
    if abstains:
      return Verdict(None, 0.0)
    return Verdict(keys[best], 1.0 if keys[best] == item.answer else -1.0)

  def labels(self, item: Item) -> list[str]:
    """The options, then the replies to each of them."""
    keys = [key for key, _ in item.choices]
    return keys + [f'{key} {reply}' for key in keys for reply in REPLIES]
