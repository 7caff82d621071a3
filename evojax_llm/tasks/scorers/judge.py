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
from typing import ClassVar

from evojax_llm.tasks.scorers import plugins
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import at_least
from evojax_llm.tasks.scorers.endpoint import Endpoint
from evojax_llm.tasks.scorers.endpoint import JudgeError
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

TEMPLATE = (
  'Rate the response to the instruction on a scale from {low:g} to {high:g}, '
  'where {high:g} is best. Reply with the number alone.\n\nInstruction:\n'
  '{prompt}\n\nResponse:\n{response}\n\nRating:'
)


_LEAD_IN = (
  r'[\s*_`"(\[]*(?:(?:the\s+)?(?:rating|score)(?:\s+is)?)?[\s*_`"(\[:]*'
)
_NUMBER = r'(?<![\w.])(-?\d+(?:\.\d+)?)'


@dataclasses.dataclass(frozen=True)
class Judge(Scorer):
  """The score of a judge, in the judge's own scale.

  Attributes:
    function: (prompts, responses) -> scores, or where it is; '' for an
      endpoint.
    endpoint: the server's address up to '/v1'.
    model: the server's name of the model.
    template: what is asked: {prompt}, {response}, {low} and {high}.
    low: least rating.
    high: largest rating.
    key: name of the environment variable with the key.
    cache: file in which replies are kept; '' for none.
    retries: further tries after a failed request.
    wait: seconds before the first of them, doubled each time.
    timeout: seconds for a request.
    workers: requests at a time.
  """

  function: Any = ''
  endpoint: str = ''
  model: str = ''
  template: str = TEMPLATE
  low: float = 1.0
  high: float = 10.0
  key: str = ''
  cache: str = ''
  retries: int = at_least(0, 5)
  wait: float = at_least(0.0, 1.0)
  timeout: float = at_least(0.1, 60.0)
  workers: int = at_least(1, 8)

  metric: ClassVar[str] = 'judge'
  binary: ClassVar[bool] = False
  percent: ClassVar[bool] = False
  choices: ClassVar[bool | None] = None
  gold: ClassVar[bool] = False
  max_new_tokens: ClassVar[int] = 256
  stop: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
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
      fields = {f for _, f, _, _ in string.Formatter().parse(self.template)}
      self._prompt('', '')
    except (ValueError, LookupError) as error:
      raise TaskError(f'template: {error}.') from error
    if not {'prompt', 'response'} <= fields:
      raise TaskError('template: {prompt} and {response} are needed.')
    if isinstance(self.function, str) and self.function:
      plugins.function(self.function)

  def score(self, item: Item, answer: Answer) -> Verdict:
    """The judge's score of one response."""
    return self.score_all([(item, answer)])[0]

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """The judge's scores of many responses, in one call.

    Raises:
      JudgeError: the judge fails, or gives no score that can be used.
    """
    if not pairs:
      return []
    prompts = [item.question for item, _ in pairs]
    responses = [answer.text for _, answer in pairs]
    if self.endpoint:
      scores = self._ask(prompts, responses)
    else:
      scores = self._call(prompts, responses)
    return [
      Verdict(response, score)
      for response, score in zip(responses, scores, strict=True)
    ]

  def _call(self, prompts: list[str], responses: list[str]) -> list[float]:
    function = self.function
    if isinstance(function, str):
      function = plugins.function(function)
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
    server = Endpoint(
      self.endpoint,
      self.model,
      self.key,
      self.cache,
      self.retries,
      self.wait,
      self.timeout,
      self.workers,
    )
    asked = [
      self._prompt(p, r) for p, r in zip(prompts, responses, strict=True)
    ]
    scores = []
    for reply in server.replies(asked):
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
  """The number that a reply begins with, or its only one; NaN if none.

  'Rating: 7', '**7**' and '7/10, because of 3 slips' are 7. 'From 1 to 10, a 7'
  might be any of three.
  """
  first = re.match(_LEAD_IN + _NUMBER, reply, re.IGNORECASE)
  if first:
    return float(first.group(1))
  numbers = re.findall(_NUMBER, reply)
  return float(numbers[0]) if len(numbers) == 1 else math.nan
