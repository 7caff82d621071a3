r"""numeric_match: the number of the output equals the gold number exactly.

The last '#### number' (a number, perhaps with a unit, to the line's end) is the
answer; else the last number of the last \boxed{...}; else the last number of
the text. See `numerals` for what a number is.

Published rules, by name of `match`:
  model_swarms  the gold answer is a substring of the last `last_words` words of
                the output: 10 on its test, 5 on its dev (arXiv 2410.11163).
  evogm         the same with 10 words (arXiv 2605.29295).
  genome        the rest of the line after 'Answer:' without all that is no
                digit equals the gold answer (arXiv 2503.01155, mgsm): '-3' is
                3 and '1.5' is 15.
  sakana        the last match of an integer or decimal without commas (arXiv
                2403.13187, MGSM): '1,000' is 0.
"""

import dataclasses
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers import numerals
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

_SUBSTRING = ('model_swarms', 'evogm')
_MATCHES = ('number', *_SUBSTRING, 'genome', 'sakana')
_PLAIN_NUMBER = re.compile(r'-?[0-9]+(?:\.[0-9]+)?')


@dataclasses.dataclass(frozen=True)
class NumericMatch(Scorer):
  """Share of outputs whose last number is the gold number."""

  match: str = option('number', 'what is compared', choices=_MATCHES)
  last_words: int = option(
    10, 'words in which model_swarms and evogm look', low=1
  )
  tolerance: float = option(
    0.0, 'relative difference that counts as equal', low=0.0
  )

  metric = 'numeric_match'
  max_new_tokens = 256

  def check(self, item: Item) -> None:
    for gold in item.golds:
      if numerals.whole_number(gold) is None:
        raise TaskError(
          f'a numeric_match task needs a number as its answer; got {gold!r}.'
        )

  def score(self, item: Item, answer: Answer) -> Verdict:
    if self.match in _SUBSTRING:
      tail = ' '.join(answer.text.split(' ')[-self.last_words :])
      return Verdict(tail.strip() or None, float(item.answer in tail))
    prediction = self.extract(answer.text)
    if prediction is None:
      return Verdict(None, 0.0)
    golds = [numerals.whole_number(gold) for gold in item.golds]
    if None in golds:
      self.check(item)
    if not self.tolerance:
      written = [numerals.write_number(gold) for gold in golds]
      return Verdict(prediction, float(prediction in written))
    value = numerals.whole_number(prediction)
    close = any(abs(value - g) <= self.tolerance * abs(g) for g in golds)
    return Verdict(prediction, float(close))

  def extract(self, text: str) -> str | None:
    """Returns the number of an output in one spelling (1000, 0.5, 1/3)."""
    if self.match == 'genome':
      marked = answers.marked(text, last=False) or ''
      return re.sub(r'[^0-9]', '', marked) or None
    if self.match == 'sakana':
      plain = _PLAIN_NUMBER.findall(text)
      value = numerals.whole_number(plain[-1]) if plain else None
      return None if value is None else numerals.write_number(value)
    for rest in reversed(re.findall(r'####([^\n]*)', text)):
      value = numerals.quantity(rest)
      if value is not None:
        return numerals.write_number(value)
    for part in (answers.last_boxed(text), text):
      numbers = numerals.find_numbers(part or '')
      if numbers:
        return numerals.write_number(numbers[-1])
    return None
