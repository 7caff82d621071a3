"""exact_match: the answer equals the gold answer; nothing is contained in it.

1. The first line that is not blank is the answer, with runs of white space made
   one space; with `match='clause'` only its part before the first of . , ; : !
   ? that a space or the end follows.
2. A lead-in ('The answer is', 'Answer:') goes, and so do wrapping quotes,
   brackets and Markdown emphasis, and punctuation at the end.
3. The answer is right where it equals a gold answer (treated as in 2). Case
   counts.

With `match='marked'` the rest of the line after the last 'Answer:' takes the
place of the first line, for outputs that think first.

With `match='words'` the answer is right where the gold answer stands in the
whole output between word boundaries: 'No' in 'No, there is none', not in
'Node'; '1' in '= 1.', not in '1.5' or '12'.

`match='model_swarms'` and `match='evogm'` are the published rule: right where
the gold answer is a substring of the output, be it 'No' of 'Node' (arXiv
2410.11163, `exact_match`; arXiv 2605.29295, nlgraph). `match='genome'` is that
of GENOME (arXiv 2503.01155): the rest of the line after 'Answer:' equals the
gold answer to the letter, so that '18.' is not '18'.
"""

import dataclasses
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item

_SUBSTRING = ('model_swarms', 'evogm')
_MATCHES = ('line', 'clause', 'marked', 'words', 'genome', *_SUBSTRING)


@dataclasses.dataclass(frozen=True)
class ExactMatch(Scorer):
  """Share of outputs whose first line equals the gold answer."""

  match: str = option('line', 'what equals the gold answer', choices=_MATCHES)
  ignore_case: bool = option(False, "whether 'no' is 'No'")

  metric = 'exact_match'

  def score(self, item: Item, answer: Answer) -> Verdict:
    golds = [gold.strip() for gold in item.golds]
    if self.match in _SUBSTRING:
      return _verdict(answer.text, any(gold in answer.text for gold in golds))
    if self.match == 'words':
      held = any(holds_words(answer.text, g, self.ignore_case) for g in golds)
      return _verdict(answer.text, held)
    prediction = self.extract(answer.text)
    if self.match == 'genome':
      return Verdict(prediction, float(prediction in golds))
    if prediction is None:
      return Verdict(None, 0.0)
    same = [self._folded(answers.bare(gold)) for gold in golds]
    return Verdict(prediction, float(self._folded(prediction) in same))

  def extract(self, text: str) -> str | None:
    """Returns the answer of an output, without a look at the gold."""
    if self.match == 'genome':
      return answers.marked(text, last=False)
    line = answers.first_line(text)
    if self.match == 'marked':
      line = answers.marked(text)
    if not line:
      return None
    if self.match == 'clause':
      line = answers.first_clause(line)
    return answers.bare(line) or None

  def _folded(self, text: str) -> str:
    return text.casefold() if self.ignore_case else text


def holds_words(text: str, gold: str, ignore_case: bool = False) -> bool:
  """Returns whether `gold` stands in a text between word boundaries.

  A number does not stand within another: '1' is not in '1.5', '1,000' or '-1'.
  """
  gold = ' '.join(gold.split())
  sign = '(?<![-\u2212])' if gold[:1].isdigit() else ''
  pattern = rf'(?<!\w)(?<!\d[.,]){sign}{re.escape(gold)}(?!\w)(?![.,]\d)'
  flags = re.IGNORECASE if ignore_case else 0
  return re.search(pattern, ' '.join(text.split()), flags) is not None


def _verdict(text: str, correct: bool) -> Verdict:
  return Verdict(' '.join(text.split()) or None, float(correct))
