"""drop: exact match and F1 of reading answers, as DROP's script computes them.

Words are parted at spaces and hyphens; case, articles and punctuation go, and
numbers are compared as numbers (Dua et al. 2019, arXiv 1903.00161). F1 is that
of the two sets of words, and 0 where the gold answer has numbers and none of
them is in the output; it is rounded to two places, as in the script.
Alternatives of a gold answer are parted by `separator` ('a|b', as GENOME's data
has them); the best one counts.

An answer may be several spans, in any order: `spans` is what parts them in gold
answers and in the output ('Bell, Gray'). They match exactly where both have the
same spans, and F1 is the mean over spans that are matched one to one as well as
can be; spans without a partner count 0.

extract='line' takes the first line that is not blank, 'marked' the rest of the
line after the last 'Answer:'; 'genome' takes the first 'Answer:' line, else the
whole text (arXiv 2503.01155).
"""

import dataclasses
import re
import string

import numpy as np
from scipy import optimize

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item

_ARTICLES = re.compile(r'\b(?:a|an|the)\b')


@dataclasses.dataclass(frozen=True)
class Drop(Scorer):
  """Exact match or F1 by the rules of DROP."""

  score_by: str = option('em', 'what is scored', choices=('em', 'f1'))
  extract: str = option(
    'line', 'what the answer is', choices=('line', 'marked', 'genome')
  )
  separator: str = option('|', "between alternatives of a gold; '' for none")
  spans: str = option('', "between spans of an answer; '' for one span")

  max_new_tokens = 64

  @property
  def metric(self) -> str:
    return f'drop_{self.score_by}'

  @property
  def binary(self) -> bool:
    return self.score_by == 'em'

  def score(self, item: Item, answer: Answer) -> Verdict:
    text = answer.text
    if self.extract == 'genome':
      text = answers.marked(text, last=False) or text
    elif self.extract == 'marked':
      text = answers.marked(text) or ''
    else:
      text = answers.first_line(text) or ''
    own = self._spans(text)
    if not own:
      return Verdict(None, 0.0)
    golds = [
      self._spans(part)
      for gold in item.golds
      for part in (gold.split(self.separator) if self.separator else [gold])
    ]
    measure = f1 if self.score_by == 'f1' else _equal
    prediction = (self.spans or ' ').join(map(' '.join, own))
    return Verdict(prediction, max(measure(own, gold) for gold in golds))

  def _spans(self, text: str) -> list[list[str]]:
    """Returns the spans of an answer that have words, each as its words."""
    parts = text.split(self.spans) if self.spans else [text]
    return [words for words in map(normalised, parts) if words]


def normalised(text: str) -> list[str]:
  """Returns the words of an answer as DROP compares them."""
  words = []
  for word in re.split(r'[ \n\t-]+', text):
    number = _number(word)
    if number is None:
      word = ''.join(c for c in word if c not in string.punctuation)
      number = _number(word)
    word = str(number) if number is not None else word.lower()
    words += _ARTICLES.sub(' ', word).split()
  return words


def f1(own: list[list[str]], gold: list[list[str]]) -> float:
  """Returns the mean F1 of spans, matched so that the sum is largest."""
  if not own or not gold:
    return 0.0
  each = np.array([[_span_f1(mine, one) for mine in own] for one in gold])
  best = each[optimize.linear_sum_assignment(-each)].sum()
  return round(float(best) / max(each.shape), 2)


def _span_f1(own: list[str], gold: list[str]) -> float:
  """F1 of two sets of words; 0 where no number of one is in the other."""
  wanted = {word for word in gold if _number(word) is not None}
  if wanted and not wanted & set(own):
    return 0.0
  mine, theirs = set(own), set(gold)
  return 2 * len(mine & theirs) / (len(mine) + len(theirs))


def _equal(own: list[list[str]], gold: list[list[str]]) -> float:
  """Whether two answers have the same spans, in any order."""
  return float(
    len(own) == len(gold) and set(map(tuple, own)) == set(map(tuple, gold))
  )


def _number(word: str) -> float | None:
  try:
    value = float(word)
  except ValueError:
    return None
  return value if word.strip().lower().lstrip('+-')[:1] not in 'in' else None
