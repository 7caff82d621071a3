"""An OpenAI-compatible chat endpoint: retries, and a cache on disk.

Replies are kept in a file of JSON lines by a digest of all that was asked, so
that a run that goes on, or another one, asks nothing twice. A request that
fails for good raises: it never becomes a score.
"""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import time
from typing import Any
import urllib.error
import urllib.request

# Worth another try: too many requests, and what servers say when they are
# starting, overloaded or behind a proxy that is.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0


class JudgeError(ValueError):
  """A judge that gives no score; the run ends rather than guess one."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint.

  Attributes:
    url: up to and without '/chat/completions', as in 'http://localhost:8000/v1'.
    model: the name that the server gives it.
    key: name of the environment variable with the key; '' for none.
    cache: file of replies; '' for none.
    retries: further tries after a failed request.
    wait: seconds before the first of them; doubles each time.
    timeout: seconds for one request.
    workers: requests at a time.
    max_tokens: of a reply.
  """

  url: str
  model: str
  key: str = ''
  cache: str = ''
  retries: int = 5
  wait: float = 1.0
  timeout: float = 60.0
  workers: int = 8
  max_tokens: int = 64

  def replies(self, prompts: Sequence[str]) -> list[str]:
    """Returns replies to prompts of one user turn each, at temperature 0.

    Raises:
      JudgeError: a request failed for good.
    """
    keys = {prompt: _digest(self._body(prompt)) for prompt in prompts}
    known = _read(self.cache)
    missing = [prompt for prompt, key in keys.items() if key not in known]
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      jobs = {pool.submit(self._ask, self._body(p)): p for p in missing}
      try:
        for job in concurrent.futures.as_completed(jobs):
          key = keys[jobs[job]]
          known[key] = job.result()
          _append(self.cache, key, known[key])
      except BaseException:
        # Also when the user ends it: what waits must not be asked first.
        pool.shutdown(cancel_futures=True)
        raise
    return [known[keys[prompt]] for prompt in prompts]

  def _body(self, prompt: str) -> dict[str, Any]:
    return {
      'model': self.model,
      'messages': [{'role': 'user', 'content': prompt}],
      'temperature': 0,
      'max_tokens': self.max_tokens,
    }

  def _ask(self, body: dict[str, Any]) -> str:
    headers = {'Content-Type': 'application/json'}
    if self.key:
      if self.key not in os.environ:
        raise JudgeError(
          f'The environment variable {self.key} is not set; expected the key '
          f'of {self.url} in it.'
        )
      headers['Authorization'] = f'Bearer {os.environ[self.key]}'
    request = urllib.request.Request(
      f'{self.url.rstrip("/")}/chat/completions',
      json.dumps(body).encode(),
      headers,
    )
    wait = self.wait
    for attempt in range(self.retries + 1):
      try:
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
          return _content(json.load(response))
      except urllib.error.HTTPError as error:
        failure = f'HTTP {error.code} {error.reason}'
        after = error.headers.get('Retry-After', '')
        if error.code not in _PASSING:
          raise JudgeError(
            f'{self.url} refuses a request: {failure}{_explanation(error)}. '
            'Check the address, the model name and the key.'
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
      f'{self.url} gave no reply in {self.retries + 1} tries; the last one: '
      f'{failure}. No score was made up: start the server and give the same '
      'command again, the run goes on where it was.'
    )


def _content(reply: Any) -> str:
  try:
    content = reply['choices'][0]['message']['content']
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
  file = pathlib.Path(path)
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'ab'):
      pass
    lines = file.read_bytes().split(b'\n')
  except OSError as error:
    raise JudgeError(
      f'The cache {path} cannot be used: {error.strerror}. Expected a file '
      'that can be written; nothing was asked.'
    ) from error
  replies = {}
  for line in lines:
    # A line may be cut off by the end of a process.
    with contextlib.suppress(ValueError):
      key, reply = json.loads(line)
      replies[key] = reply
  return replies


def _append(path: str, key: str, reply: str) -> None:
  if path:
    with open(path, 'a', encoding='utf-8') as file:
      # The line's end comes first: what a killed process left half written
      # spoils no other line.
      file.write('\n' + json.dumps([key, reply]))


def _digest(body: dict[str, Any]) -> str:
  text = json.dumps(body, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
