"""regex_match: what a pattern finds in the output equals the gold answer."""

import dataclasses
import re

import regex

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

_SECONDS = 5


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
