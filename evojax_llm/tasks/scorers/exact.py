"""Scorers of an answer that equals the gold answer; it does not contain it."""

import dataclasses
import re

import regex

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

_SUBSTRING = ('model_swarms', 'evogm')
_MATCHES = ('line', 'clause', 'marked', 'words', 'genome', *_SUBSTRING)
_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class ExactMatch(Scorer):
  """Share of outputs whose first line equals the gold answer.

  1. The first line that is not blank is the answer, with runs of white space
     made one space; with `match='clause'` only its part before the first of
     . , ; : ! ? that a space or the end follows.
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
  2410.11163, `exact_match`; arXiv 2605.29295, nlgraph). `match='genome'` is
  that of GENOME (arXiv 2503.01155): the rest of the line after 'Answer:' equals
  the gold answer to the letter, so that '18.' is not '18'.
  """

  match: str = option('line', 'what equals the gold answer', choices=_MATCHES)
  ignore_case: bool = option(False, "whether 'no' is 'No'")

  metric = 'exact_match'

  def score(self, item: Item, answer: Answer) -> Verdict:
    golds = [gold.strip() for gold in item.golds]
    if self.match in (*_SUBSTRING, 'words'):
      text = ' '.join(answer.text.split())
      if self.match == 'words':
        right = any(self._holds(text, gold) for gold in golds)
      else:
        right = any(gold in answer.text for gold in golds)
      return Verdict(text or None, float(right))
    if self.match == 'genome':
      prediction = answers.marked(answer.text, last=False)
      return Verdict(prediction, float(prediction in golds))
    marked = self.match == 'marked'
    line = (answers.marked if marked else answers.first_line)(answer.text) or ''
    if self.match == 'clause':
      line = answers.first_clause(line)
    prediction = answers.bare(line)
    fold = str.casefold if self.ignore_case else str
    same = [fold(answers.bare(gold)) for gold in golds]
    right = prediction and fold(prediction) in same
    return Verdict(prediction or None, float(bool(right)))

  def _holds(self, text: str, gold: str) -> bool:
    """Whether `gold` stands in a text between word boundaries.

    A number does not stand within another: '1' is not in '1.5', '1,000' or
    '-1'.
    """
    gold = ' '.join(gold.split())
    sign = '(?<![-\u2212])' if gold[:1].isdigit() else ''
    pattern = rf'(?<!\w)(?<!\d[.,]){sign}{re.escape(gold)}(?!\w)(?![.,]\d)'
    flags = re.IGNORECASE if self.ignore_case else 0
    return re.search(pattern, text, flags) is not None


@dataclasses.dataclass(frozen=True)
class RegexMatch(Scorer):
  """Share of outputs in which a pattern finds the gold answer."""

  # Its group 1, or all of it where it has none, is the answer.
  pattern: str = option(r'(\S+)', 'a Python regular expression')
  occurrence: str = option(
    'last', 'which of the matches', choices=('last', 'first')
  )
  ignore_case: bool = option(False, 'in the pattern and in comparing')

  metric = 'regex_match'

  def __post_init__(self):
    super().__post_init__()
    try:
      re.compile(self.pattern)
      regex.compile(self.pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
      raise TaskError(
        f'pattern: expected a regular expression, got {self.pattern!r}: '
        f'{error}.'
      ) from error

  def score(self, item: Item, answer: Answer) -> Verdict:
    flags = re.IGNORECASE if self.ignore_case else 0
    try:
      found = regex.finditer(self.pattern, answer.text, flags, timeout=_SECONDS)
      matches = list(found)
    except TimeoutError as error:
      raise TaskError(
        f'pattern: {self.pattern!r} takes more than {_SECONDS} seconds on an '
        f"answer to item '{item.id}'; expected one that does not try all ways "
        'to split a text, as (a+)+ does.'
      ) from error
    if not matches:
      return Verdict(None, 0.0)
    match = matches[-1 if self.occurrence == 'last' else 0]
    prediction = match.group(1) if match.re.groups else match.group()
    prediction = (prediction or '').strip()
    fold = str.casefold if self.ignore_case else str
    right = fold(prediction) in [fold(gold.strip()) for gold in item.golds]
    return Verdict(prediction or None, float(right))
