"""Minutes that are shared out, and results that are kept as they come."""

from collections.abc import Callable
import time
import traceback
from typing import Any

# Of an error, for the table; all of it is printed.
_LETTERS = 300


class Clock:
  """Runs parts within some minutes.

  Args:
    seconds: for all parts.
    keep: called with what is known, after each measurement.

  Attributes:
    result: `parts` by name; `skipped` and `failed` with why.
  """

  def __init__(
    self,
    seconds: float,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
  ):
    self.result: dict[str, Any] = {'parts': {}, 'skipped': {}, 'failed': {}}
    self._start = time.perf_counter()
    self._end = self._deadline = self._start + seconds
    self._keep, self._part = keep, ''

  def run(self, parts: dict[str, tuple[Callable, float]]) -> None:
    """Runs (part, share of the time) by name; one that fails ends alone.

    What a part leaves goes to those behind it.
    """
    shares = {name: share for name, (_, share) in parts.items()}
    for name, (part, _) in parts.items():
      now = time.perf_counter()
      left = max(0.0, self._end - now)
      self._deadline = now + left * shares[name] / sum(shares.values())
      del shares[name]
      self._part = name
      found = self.result['parts'].setdefault(name, {})
      if not left:
        self.skip(name, 'no time is left')
        continue
      self.say(f'{name}: up to {self._deadline - now:.0f} s')
      try:
        part(self, found)
      except Exception as error:
        self.fail(name, error)
      found['seconds'] = time.perf_counter() - now
      self.keep()

  def fits(self, seconds: float) -> bool:
    """Whether the part in hand has so many seconds left."""
    return time.perf_counter() + seconds <= self._deadline

  @property
  def left(self) -> float:
    """Seconds left to the part in hand."""
    return self._deadline - time.perf_counter()

  def skip(self, what: str, why: str) -> None:
    """Keeps that something was left out."""
    self.result['skipped'][what] = why
    self.say(f'{what}: left out, {why}')

  def fail(self, what: str, error: Exception) -> None:
    """Keeps that something has failed, and prints all of the error."""
    text = ' '.join(str(error).split())[:_LETTERS]
    self.result['failed'][what] = f'{type(error).__name__}: {text}'
    traceback.print_exception(error)
    self.say(f'{what}: failed')

  def keep(self) -> None:
    """Writes what is known."""
    self.result['elapsed'] = time.perf_counter() - self._start
    self._keep(self.result)

  def say(self, text: str) -> None:
    """Prints a line, with the seconds since the beginning."""
    print(f'[{time.perf_counter() - self._start:6.1f} s] {text}', flush=True)
