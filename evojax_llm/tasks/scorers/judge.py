"""judge: a score that a function or a language model gives to a response.

`function` names a Python function (prompts, responses) -> scores, as
'module:function' or 'file.py:function'; in a task written in Python it may be
the function itself. Otherwise `endpoint` and `model` name an OpenAI-compatible
server, which is asked with `template` and whose reply is the rating, or begins
with it, or holds no other number.
Model Swarms rates with a judge from 1 to 10 (arXiv 2410.11163).

A judge that does not answer, or whose answer holds no rating in range, ends the
run with an error; it never changes a fitness.
"""

from collections.abc import Sequence
import dataclasses
import math
import re
import string
from typing import Any

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.endpoint import Endpoint
from evojax_llm.tasks.scorers.endpoint import JudgeError
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import find_function

TEMPLATE = (
  'Rate the response to the instruction on a scale from {low:g} to {high:g}, '
  'where {high:g} is best. Reply with the number alone.\n\nInstruction:\n'
  '{prompt}\n\nResponse:\n{response}\n\nRating:'
)
_LEAD_IN = (
  r'[\s*_`"(\[]*(?:(?:the\s+)?(?:rating|score)(?:\s+is)?)?[\s*_`"(\[:]*'
)
_FIELDS = ('prompt', 'response', 'low', 'high')
_NUMBER = r'(?<![\w.])(-?\d+(?:\.\d+)?)'


@dataclasses.dataclass(frozen=True)
class Judge(Endpoint, Scorer):
  """Mean rating of a judge, in its own scale."""

  function: Any = option('', 'the judge, or where it is', kind=object)
  template: str = option(TEMPLATE, 'has {prompt}, {response}, {low}, {high}')
  low: float = option(1.0, 'least rating')
  high: float = option(10.0, 'largest rating')

  metric = 'judge'
  binary = False
  percent = False
  choices = None
  gold = False
  max_new_tokens = 256
  stop = False

  def __post_init__(self):
    super().__post_init__()
    if not (isinstance(self.function, str) or callable(self.function)):
      raise TaskError(f'function: expected its name, got {self.function!r}.')
    if bool(self.function) == bool(self.endpoint):
      raise TaskError(
        "a judge needs either a 'function' or an 'endpoint' (with a 'model')."
      )
    if self.endpoint and not self.model:
      raise TaskError("model: name the endpoint's model.")
    if self.endpoint and not self.endpoint.startswith(('http://', 'https://')):
      raise TaskError(
        "endpoint: expected an address up to '/v1', such as "
        f"'http://localhost:8000/v1', got {self.endpoint!r}."
      )
    if not self.low < self.high:
      raise TaskError(f'low={self.low} is not below high={self.high}.')
    try:
      parts = [*string.Formatter().parse(self.template)]
    except ValueError as error:
      raise TaskError(f'template: {error}.') from error
    for _, name, form, conversion in parts:
      # As in {low:g}; a width of a billion is a text of a billion characters.
      allowed = ('', 'g') if name in ('low', 'high') else ('',)
      known = name in _FIELDS and form in allowed and not conversion
      if name is not None and not known:
        raise TaskError(
          f'template: {{{name}}} with format {form!r}; expected one of '
          f'{", ".join(_FIELDS)}, as it is or with format g.'
        )
    if not {'prompt', 'response'} <= {name for _, name, _, _ in parts}:
      raise TaskError('template: {prompt} and {response} are needed.')
    if isinstance(self.function, str) and self.function:
      find_function(self.function)

  def score(self, item: Item, answer: Answer) -> Verdict:
    return self.score_all([(item, answer)])[0]

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """Asks about many responses in one call.

    Raises:
      JudgeError: the judge fails, or gives no score that can be used.
    """
    if not pairs:
      return []
    prompts = [item.question for item, _ in pairs]
    responses = [answer.text for _, answer in pairs]
    scores = (self._ask if self.endpoint else self._call)(prompts, responses)
    return [Verdict(*pair) for pair in zip(responses, scores, strict=True)]

  def _call(self, prompts: list[str], responses: list[str]) -> list[float]:
    function = self.function
    if isinstance(function, str):
      function = find_function(function)
    try:
      scores = [float(score) for score in function(prompts, responses)]
    except Exception as error:
      raise JudgeError(
        f'The judge {self.function} fails: {type(error).__name__}: {error}.'
      ) from error
    if len(scores) != len(prompts) or not all(map(math.isfinite, scores)):
      raise JudgeError(
        f'The judge {self.function} gave {len(scores)} scores for '
        f'{len(prompts)} responses; expected one finite number for each.'
      )
    return scores

  def _ask(self, prompts: list[str], responses: list[str]) -> list[float]:
    scores = []
    for reply in self.replies(list(map(self._prompt, prompts, responses))):
      score = rating(reply)
      if not self.low <= score <= self.high:
        raise JudgeError(
          f'{self.model} at {self.endpoint} replied {reply[:80]!r}; expected a '
          f'rating from {self.low:g} to {self.high:g}, alone or first. Change '
          'the template.'
        )
      scores.append(score)
    return scores

  def _prompt(self, prompt: str, response: str) -> str:
    return self.template.format(
      prompt=prompt, response=response, low=self.low, high=self.high
    )


def rating(reply: str) -> float:
  """Returns the number that a reply begins with, or its only one; else NaN.

  'Rating: 7', '**7**' and '7/10, because of 3 slips' are 7. 'From 1 to 10, a 7'
  might be any of three.
  """
  first = re.match(_LEAD_IN + _NUMBER, reply, re.IGNORECASE)
  numbers = [first[1]] if first else re.findall(_NUMBER, reply)
  return float(numbers[0]) if len(numbers) == 1 else math.nan
