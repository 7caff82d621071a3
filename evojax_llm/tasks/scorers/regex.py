"""regex_match: what a pattern finds in the output equals the gold answer."""

import dataclasses
import re
from typing import Any
from typing import ClassVar

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError


@dataclasses.dataclass(frozen=True)
class RegexMatch(Scorer):
  r"""What a pattern finds equals the gold answer.

  Attributes:
    pattern: a Python regular expression; its group 1, or all of it where it
      has none, is the answer.
    occurrence: which of the matches: the 'first' or the 'last'.
    ignore_case: of the pattern and of the comparison.
  """

  pattern: str = r'(\S+)'
  occurrence: str = 'last'
  ignore_case: bool = False

  metric: ClassVar[str] = 'regex_match'
  words: ClassVar[dict[str, Any]] = {'occurrence': ('first', 'last')}

  def __post_init__(self):
    super().__post_init__()
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise TaskError(
        f'pattern: expected a regular expression, got {self.pattern!r}: '
        f'{error}.'
      ) from error

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Scores one answer."""
    flags = re.IGNORECASE if self.ignore_case else 0
    found = list(re.finditer(self.pattern, answer.text, flags))
    if not found:
      return Verdict(None, 0.0)
    match = found[-1 if self.occurrence == 'last' else 0]
    prediction = match.group(1) if match.re.groups else match.group()
    prediction = (prediction or '').strip()
    golds = [gold.strip() for gold in item.golds]
    if self.ignore_case:
      right = prediction.casefold() in [gold.casefold() for gold in golds]
    else:
      right = prediction in golds
    return Verdict(prediction or None, float(right))
