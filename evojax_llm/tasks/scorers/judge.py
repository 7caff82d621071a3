"""judge: a score that a function or a language model gives to a response.

`function` names a Python function (prompts, responses) -> scores, as
'module:function' or 'file.py:function'; in a task written in Python it may be
the function itself. Otherwise `endpoint` and `model` name an OpenAI-compatible
server, which is asked with `template` and whose reply is the rating, or begins
with it, or holds no other number.
Model Swarms rates with a judge from 1 to 10 (arXiv 2410.11163).

Replies are kept in a file of JSON lines by a digest of all that was asked, so
that a run that goes on, or another one, asks nothing twice. A judge that does
not answer, or whose answer holds no rating in range, ends the run with an
error; it never changes a fitness.
"""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import json
import math
import os
import pathlib
import re
import string
import time
from typing import Any
import urllib.error
import urllib.request

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import find_function

_TEMPLATE = (
  'Rate the response to the instruction on a scale from {low:g} to {high:g}, '
  'where {high:g} is best. Reply with the number alone.\n\nInstruction:\n'
  '{prompt}\n\nResponse:\n{response}\n\nRating:'
)
_LEAD_IN = (
  r'[\s*_`"(\[]*(?:(?:the\s+)?(?:rating|score)(?:\s+is)?)?[\s*_`"(\[:]*'
)
_FIELDS = ('prompt', 'response', 'low', 'high')
_NUMBER = r'(?<![\w.])(-?\d+(?:\.\d+)?)'
# Worth another try: too many requests, and what servers say when they are
# starting, overloaded or behind a proxy that is.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0
_LONGEST_REPLY = 1 << 20  # bytes; a rating takes a few hundred


class JudgeError(ValueError):
  """A judge that gives no score; the run ends rather than guess one."""


@dataclasses.dataclass(frozen=True)
class Judge(Scorer):
  """Mean rating of a judge, in its own scale."""

  endpoint: str = option('', "the server's address up to '/v1'")
  model: str = option('', "the server's name of the model")
  key: str = option('', 'environment variable with the key')
  cache: str = option('', 'file in which replies are kept')
  retries: int = option(5, 'tries after a failed request', low=0)
  wait: float = option(1.0, 'seconds before the first, then doubled', low=0.0)
  timeout: float = option(60.0, 'seconds for a request', low=0.1)
  workers: int = option(8, 'requests at a time', low=1)
  function: Any = option('', 'the judge, or where it is', kind=object)
  template: str = option(_TEMPLATE, 'has {prompt}, {response}, {low}, {high}')
  low: float = option(1.0, 'least rating')
  high: float = option(10.0, 'largest rating')

  metric = 'judge'
  binary = percent = gold = stop = False
  choices = None
  max_new_tokens = 256

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
    named = isinstance(self.function, str)
    function = find_function(self.function) if named else self.function
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
    bounds = {'low': self.low, 'high': self.high}
    asked = [
      self.template.format(prompt=prompt, response=response, **bounds)
      for prompt, response in zip(prompts, responses, strict=True)
    ]
    for reply in self._replies(asked):
      score = rating(reply)
      if not self.low <= score <= self.high:
        raise JudgeError(
          f'{self.model} at {self.endpoint} replied {reply[:80]!r}; expected a '
          f'rating from {self.low:g} to {self.high:g}, alone or first. Change '
          'the template.'
        )
      scores.append(score)
    return scores

  def _replies(self, prompts: Sequence[str]) -> list[str]:
    """Returns replies to prompts of one user turn each, at temperature 0."""
    bodies = [
      json.dumps(
        {
          'max_tokens': 64,
          'messages': [{'content': prompt, 'role': 'user'}],
          'model': self.model,
          'temperature': 0,
        },
      )
      for prompt in prompts
    ]
    keys = [hashlib.sha256(body.encode()).hexdigest() for body in bodies]
    known = _read(self.cache)
    missing = {
      k: b for k, b in zip(keys, bodies, strict=True) if k not in known
    }
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      jobs = {pool.submit(self._reply, b): key for key, b in missing.items()}
      try:
        for job in concurrent.futures.as_completed(jobs):
          known[jobs[job]] = job.result()
          if self.cache:
            with open(os.path.expanduser(self.cache), 'a') as file:
              # The line's end comes first: what a killed process left half
              # written spoils no other line.
              file.write('\n' + json.dumps([jobs[job], job.result()]))
      except BaseException:
        # Also when the user ends it: what waits must not be asked first.
        pool.shutdown(cancel_futures=True)
        raise
    return [known[key] for key in keys]

  def _reply(self, body: str) -> str:
    headers = {'Content-Type': 'application/json'}
    if self.key:
      if self.key not in os.environ:
        raise JudgeError(
          f'The environment variable {self.key} is not set; expected the key '
          f'of {self.endpoint} in it.'
        )
      headers['Authorization'] = f'Bearer {os.environ[self.key]}'
    url = f'{self.endpoint.rstrip("/")}/chat/completions'
    request = urllib.request.Request(url, body.encode(), headers)
    wait = self.wait
    for attempt in range(self.retries + 1):
      try:
        return _fetched(request, self.timeout)
      except urllib.error.HTTPError as error:
        failure = f'HTTP {error.code} {error.reason}'
        after = error.headers.get('Retry-After', '')
        if error.code not in _PASSING:
          raise JudgeError(
            f'{self.endpoint} refuses a request: {failure}'
            f'{_explanation(error)}. Check the address, the model name and the '
            'key.'
          ) from error
        error.close()
        wait = max(wait, float(after) if after.isdigit() else 0.0)
      except (OSError, http.client.HTTPException, ValueError) as error:
        # No connection, one that breaks, a time-out, or no reply of a model.
        failure = f'{type(error).__name__}: {error}'
      if attempt < self.retries:
        time.sleep(min(wait, _LONGEST_WAIT))
        wait *= 2
    raise JudgeError(
      f'{self.endpoint} gave no reply in {self.retries + 1} tries; the last '
      f'one: {failure}. No score was made up: start the server and give the '
      'same command again, the run goes on where it was.'
    )


def rating(reply: str) -> float:
  """Returns the number that a reply begins with, or its only one; else NaN.

  'Rating: 7', '**7**' and '7/10, because of 3 slips' are 7. 'From 1 to 10, a 7'
  might be any of three.
  """
  first = re.match(_LEAD_IN + _NUMBER, reply, re.IGNORECASE)
  numbers = [first[1]] if first else re.findall(_NUMBER, reply)
  return float(numbers[0]) if len(numbers) == 1 else math.nan


def _fetched(request: urllib.request.Request, seconds: float) -> str:
  """Returns the text of a reply, all of which is read in `seconds`."""
  # The socket's own timeout starts anew with each read.
  end = time.monotonic() + seconds
  body = b''
  with urllib.request.urlopen(request, timeout=seconds) as response:
    while part := response.read1(1 << 14):
      body += part
      if len(body) > _LONGEST_REPLY:
        raise ValueError(f'the reply has more than {_LONGEST_REPLY} bytes')
      if time.monotonic() > end:
        raise TimeoutError(f'the reply took more than {seconds:g} seconds')
    if response.length:
      raise http.client.IncompleteRead(body, response.length)
  try:
    reply = json.loads(body)
    content = reply['choices'][0]['message']['content']
  except RecursionError as error:
    raise ValueError('the reply is nested too deeply') from error
  except (LookupError, TypeError):
    content = None
  if not isinstance(content, str):
    raise ValueError(f'the reply has no text: {str(reply)[:200]}')
  return content


def _explanation(error: urllib.error.HTTPError) -> str:
  """Returns what a server says about a refusal, in parentheses, or ''."""
  with contextlib.closing(error), contextlib.suppress(OSError):
    text = ' '.join(error.read(2000).decode(errors='replace').split())
    return f' ({text[:200]})' if text else ''
  return ''


def _read(path: str) -> dict[str, str]:
  """Returns kept replies by digest, of a file that can be written."""
  if not path:
    return {}
  file = pathlib.Path(os.path.expanduser(path))
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():
      raise OSError(0, 'not a regular file')
    with open(file, 'ab'):
      pass
    lines = [line for line in file.read_bytes().split(b'\n') if line.strip()]
  except OSError as error:
    raise JudgeError(
      f'The cache {path} cannot be used: {error.strerror}. Expected a file '
      'that can be written; nothing was asked.'
    ) from error
  replies = {}
  for line in lines:
    # A line may be cut off by the end of a process.
    with contextlib.suppress(ValueError, TypeError, RecursionError):
      key, reply = json.loads(line)
      replies[key] = reply
  if lines and not replies:
    raise JudgeError(
      f'The cache {path} holds no replies: it is some other file, to which '
      'nothing was added. Name another one.'
    )
  return replies
