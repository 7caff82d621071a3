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

from evojax_llm.options import option

# Worth another try: too many requests, and what servers say when they are
# starting, overloaded or behind a proxy that is.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0
_MAX_TOKENS = 64
_CHUNK = 1 << 14
_LONGEST_REPLY = 1 << 20  # bytes; a rating takes a few hundred


class JudgeError(ValueError):
  """A judge that gives no score; the run ends rather than guess one."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A chat endpoint, as options of a scorer."""

  endpoint: str = option('', "the server's address up to '/v1'")
  model: str = option('', "the server's name of the model")
  key: str = option('', 'environment variable with the key')
  cache: str = option('', 'file in which replies are kept')
  retries: int = option(5, 'tries after a failed request', low=0)
  wait: float = option(1.0, 'seconds before the first, then doubled', low=0.0)
  timeout: float = option(60.0, 'seconds for a request', low=0.1)
  workers: int = option(8, 'requests at a time', low=1)

  def replies(self, prompts: Sequence[str]) -> list[str]:
    """Returns replies to prompts of one user turn each, at temperature 0.

    Raises:
      JudgeError: a request failed for good.
    """
    keys = {prompt: _digest(self._body(prompt)) for prompt in prompts}
    known = _read(self.cache)
    missing = [prompt for prompt, key in keys.items() if key not in known]
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      jobs = {pool.submit(self._reply, self._body(p)): p for p in missing}
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
      'max_tokens': _MAX_TOKENS,
    }

  def _reply(self, body: dict[str, Any]) -> str:
    headers = {'Content-Type': 'application/json'}
    if self.key:
      if self.key not in os.environ:
        raise JudgeError(
          f'The environment variable {self.key} is not set; expected the key '
          f'of {self.endpoint} in it.'
        )
      headers['Authorization'] = f'Bearer {os.environ[self.key]}'
    request = urllib.request.Request(
      f'{self.endpoint.rstrip("/")}/chat/completions',
      json.dumps(body).encode(),
      headers,
    )
    wait = self.wait
    for attempt in range(self.retries + 1):
      try:
        return _content(_fetched(request, self.timeout))
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


def _fetched(request: urllib.request.Request, seconds: float) -> Any:
  """Returns the JSON of a reply, all of which is read in `seconds`."""
  # The socket's own timeout starts anew with each read.
  end = time.monotonic() + seconds
  body = b''
  with urllib.request.urlopen(request, timeout=seconds) as response:
    while part := response.read1(_CHUNK):
      body += part
      if len(body) > _LONGEST_REPLY:
        raise ValueError(f'the reply has more than {_LONGEST_REPLY} bytes')
      if time.monotonic() > end:
        raise TimeoutError(f'the reply took more than {seconds:g} seconds')
    if response.length:
      raise http.client.IncompleteRead(body, response.length)
  try:
    return json.loads(body)
  except RecursionError as error:
    raise ValueError('the reply is nested too deeply') from error


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


def _append(path: str, key: str, reply: str) -> None:
  if path:
    with open(os.path.expanduser(path), 'a', encoding='utf-8') as file:
      # The line's end comes first: what a killed process left half written
      # spoils no other line.
      file.write('\n' + json.dumps([key, reply]))


def _digest(body: dict[str, Any]) -> str:
  text = json.dumps(body, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
