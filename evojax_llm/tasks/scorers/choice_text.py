r"""choice_text: an option's key is read out of generated text.

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

import dataclasses
import re

from evojax_llm.options import option
from evojax_llm.tasks.overlap import normalise
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.options import OptionScorer
from evojax_llm.tasks.task import Item

PARSES = ('strict', 'model_swarms', 'evogm', 'genome')
_STATED = re.compile(r'\banswer(?:\s+is\b\s*:?|\s*:)\s*([^\n]*)', re.IGNORECASE)
_OPENING = r'[\s*_`"\'(\[{]*(?:(?i:option|choice)\s+)?[*_`"\'(\[{]*'
_AFTER = (
  r'(?=[\s*_`"\')\]}.,;:!]*$|[*_`"\']*[)\]}.:](?!\d)'
  r'|,?\s+(?:because|since|as|which|and)\b)'
)


@dataclasses.dataclass(frozen=True)
class ChoiceText(Scorer):
  """Accuracy of the key that generated text names."""

  parse: str = option('strict', 'how a key is found', choices=PARSES)

  choices = True
  max_new_tokens = 10

  def score(self, item: Item, answer: Answer) -> Verdict:
    key = find_key(item, answer.text, self.parse)
    return Verdict(key, float(key == item.answer))


@dataclasses.dataclass(frozen=True)
class KeyScorer(OptionScorer):
  """Base of scorers of an option's key, likeliest or read out of text."""

  by: str = option(
    'likelihood', 'what tells the key', choices=('likelihood', 'text')
  )
  parse: str = option('strict', 'how a key is found in text', choices=PARSES)

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
    key = find_key(item, answer.text, self.parse)
    return Verdict(key, float(key == item.answer))


def find_key(item: Item, text: str, parse: str = 'strict') -> str | None:
  """Returns the key of the option that a text names, or None."""
  return _PARSERS[parse](item, text)


def _strict(item: Item, text: str) -> str | None:
  stated = _STATED.findall(text)
  if stated:
    return _leading_key(item, stated[-1]) or _option_of(item, stated[-1])
  boxed = answers.last_boxed(text)
  if boxed is not None:
    boxed = re.sub(r'\\text\w*\{([^{}]*)\}', r'\1', boxed)
    return _leading_key(item, boxed) or _option_of(item, boxed)
  line = next((line for line in text.splitlines() if line.strip()), '')
  return _leading_key(item, line.strip()) or _option_of(item, line)


def _leading_key(item: Item, text: str) -> str | None:
  """The key that a text begins with, the longest one of several."""
  for key, _ in sorted(item.choices, key=lambda c: -len(c[0])):
    pattern = rf'{_OPENING}{re.escape(key)}(?!\w){_AFTER}'
    if re.match(pattern, text, re.DOTALL):
      return key
  return None


def _option_of(item: Item, text: str) -> str | None:
  """The one option that has this text."""
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
    for key, option in item.choices:
      if option in text:
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
