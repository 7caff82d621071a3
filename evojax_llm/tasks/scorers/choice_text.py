r"""Scorers of an option's key that is read out of generated text.

Keys are those of the item, be they A to P, a to e or 1 to 5. In this order:

1. What follows the last 'answer is' or 'Answer:', if it is a key or the text of
   one option.
2. The last \boxed{...}, if it holds a key.
3. The first line that is not blank, if it is a key, begins with one ('B.',
   '(B)', 'B: text'), or is the text of one option.

A key is followed by punctuation, the end, or a word such as 'because', so that
the 'A' of 'A dog' is none. Case counts. Anything else is no prediction.

Published rules, by name of `parse`:
  model_swarms  the first key that occurs anywhere in the first 5 characters,
                else in the last 5, else the first option whose text is in the
                output (arXiv 2410.11163).
  evogm         'answer is X' for A to D alone, then the same, the text only in
                outputs of at most 40 characters (arXiv 2605.29295).
  genome        the rest of the line after 'Answer:' equals the key, else 'C'
                (arXiv 2503.01155).
"""

import collections
from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers import options
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import normalise

_STATED = re.compile(r'\banswer(?:\s+is\b\s*:?|\s*:)\s*([^\n]*)', re.IGNORECASE)
_OPENING = r'[\s*_`"\'(\[{]*(?:(?i:option|choice)\s+)?[*_`"\'(\[{]*'
_AFTER = (
  r'(?=[\s*_`"\')\]}.,;:!]*$|[*_`"\']*[)\]}.:](?!\d)'
  r'|,?\s+(?:because|since|as|which|and)\b)'
)
_REPLIES = ('True', 'False')
# After the question, its options and the proposed answer.
_SECOND_PASS = (
  'Question: {question}\n{choices}\nProposed answer: {key}: {text}\n'
  'Is the proposed answer true or false? Answer True or False.\nThe proposed '
  'answer is'
)


def _strict(item: Item, text: str) -> str | None:
  stated = _STATED.findall(text)
  boxed = answers.last_boxed(text)
  if stated:
    text = stated[-1]
  elif boxed is not None:
    text = re.sub(r'\\text\w*\{([^{}]*)\}', r'\1', boxed)
  else:
    lines = (line.strip() for line in text.splitlines() if line.strip())
    text = next(lines, '')
  # The key that the text begins with, the longest one of several.
  for key, _ in sorted(item.choices, key=lambda c: -len(c[0])):
    pattern = rf'{_OPENING}{re.escape(key)}(?!\w){_AFTER}'
    if re.match(pattern, text, re.DOTALL):
      return key
  wanted = normalise(answers.bare(text))
  same = [k for k, t in item.choices if normalise(answers.bare(t)) == wanted]
  return same[0] if len(same) == 1 and wanted else None


def _model_swarms(
  item: Item, text: str, longest: int | None = None
) -> str | None:
  for part in (text[:5], text[-5:]):
    for key, _ in item.choices:
      if key in part:
        return key
  if longest is None or len(text) <= longest:
    for key, option_text in item.choices:
      if option_text in text:
        return key
  return None


def _evogm(item: Item, text: str) -> str | None:
  stated = re.search(r'answer is:?\s*\(?([A-D])\b', text, re.IGNORECASE)
  if stated:
    return stated.group(1).upper()
  return _model_swarms(item, text, longest=40)


def _genome(item: Item, text: str) -> str | None:
  del item
  return answers.marked(text, last=False) or 'C'


_PARSERS = {
  'strict': _strict,
  'model_swarms': _model_swarms,
  'evogm': _evogm,
  'genome': _genome,
}


@dataclasses.dataclass(frozen=True)
class ChoiceText(Scorer):
  """Accuracy of the key that generated text names."""

  parse: str = option('strict', 'how a key is found', choices=(*_PARSERS,))

  choices = True
  max_new_tokens = 10

  def score(self, item: Item, answer: Answer) -> Verdict:
    key = _PARSERS[self.parse](item, answer.text)
    return Verdict(key, float(key == item.answer))


@dataclasses.dataclass(frozen=True)
class KeyScorer(options.OptionScorer):
  """Base of scorers of an option's key, likeliest or read out of text."""

  by: str = option(
    'likelihood', 'what tells the key', choices=('likelihood', 'text')
  )
  parse: str = option(
    'strict', 'how a key is found in text', choices=(*_PARSERS,)
  )

  choices = True
  max_new_tokens = 10

  @property
  def reads(self) -> str:
    return 'options' if self.by == 'likelihood' else 'text'

  def score(self, item: Item, answer: Answer) -> Verdict:
    if self.by == 'likelihood':
      return super().score(item, answer)
    return self.score_text(item, answer)

  def score_text(self, item: Item, answer: Answer) -> Verdict:
    """Scores the texts of one answer, here 1 where the key is right."""
    key = _PARSERS[self.parse](item, answer.text)
    return Verdict(key, float(key == item.answer))


@dataclasses.dataclass(frozen=True)
class WeightedF1(KeyScorer):
  """F1 of the keys, weighted by support.

  As scikit-learn's f1_score(average='weighted') over the whole task; GENOME
  (arXiv 2503.01155) scores its emotion tasks with it. An item without a
  prediction counts against the recall of its label only.
  """

  metric = 'weighted_f1'
  binary = False
  corpus = True

  def score_options(
    self, table: options.OptionTable, loglik: np.ndarray
  ) -> Verdicts:
    return options.MultipleChoice().score_options(table, loglik)

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


@dataclasses.dataclass(frozen=True)
class AbstainQA(KeyScorer):
  """(right - wrong) / all, over two passes.

  Effective reliability, in [-1, 1] (AbstainQA, as in Model Swarms, arXiv
  2410.11163): a right answer is 1, an abstention 0, a wrong answer -1. In the
  first pass the item is answered as multiple choice; in the second the model is
  shown an answer and asked whether it is true. Which answer that is depends on
  the member, so the second question is asked about every option and the one
  that the member chose is looked at: all members read the same prompts.

  by='likelihood' takes the likeliest option, and abstains where ' False' is
  likelier than ' True'. by='text' generates both: the member abstains where the
  second text has the word 'false' in whatever case and anywhere, which is the
  published rule; with parse='model_swarms' the first pass is the published one
  as well. A member without an answer that can be read abstains.
  """

  metric = 'effective_reliability'
  binary = False

  def second_pass(self, item: Item) -> Sequence[tuple[str, Sequence[str]]]:
    shown = {
      'question': item.question,
      'choices': '\n'.join(f'{key}: {text}' for key, text in item.choices),
    }
    return [
      (_SECOND_PASS.format(**shown, key=key, text=text), _REPLIES)
      for key, text in item.choices
    ]

  def score_text(self, item: Item, answer: Answer) -> Verdict:
    keys = [key for key, _ in item.choices]
    key = super().score_text(item, answer).prediction
    if key not in keys or 'false' in answer.texts[1 + keys.index(key)].lower():
      return Verdict(None, 0.0)
    return Verdict(key, 1.0 if key == item.answer else -1.0)

  def score_options(
    self, table: options.OptionTable, loglik: np.ndarray
  ) -> Verdicts:
    values = table.spread(loglik)
    best = options.likeliest(np.where(table.choices, values, -np.inf))
    # After the options of an item come the replies to each of them.
    true = table.choices.sum(axis=1) + len(_REPLIES) * np.maximum(best, 0)
    replies = np.take_along_axis(
      values, np.stack([true, true + 1], axis=-1), axis=-1
    )
    abstains = replies[..., 1] > replies[..., 0]
    return options.verdicts_on(table, np.where(abstains, -1, best), wrong=-1.0)

  def labels(self, item: Item, count: int) -> list[str]:
    del count
    keys = [key for key, _ in item.choices]
    return keys + [f'{key} {reply}' for key in keys for reply in _REPLIES]
