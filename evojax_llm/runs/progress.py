"""Times the parts of a generation, and shows how far a run is."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import sys
import time
from typing import Any
from typing import TextIO

import jax

# Tracing is left out: the events of nested functions overlap.
_COMPILING = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Stopwatch:
  """Wall time by phase; compilation counts as a phase of its own.

  Example:
    with Stopwatch() as watch:
      with watch.phase('score'):
        ...
      watch.take()  # {'compile': 2.1, 'score': 0.4}
  """

  def __init__(self):
    self._seconds: dict[str, float] = {'compile': 0.0}

  def __enter__(self) -> 'Stopwatch':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_: Any) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the block's wall time to a phase, less what was compiled in it."""
    start, compiled = time.perf_counter(), self._seconds['compile']
    try:
      yield
    finally:
      spent = time.perf_counter() - start
      spent -= self._seconds['compile'] - compiled
      self._seconds[name] = self._seconds.get(name, 0.0) + max(0.0, spent)

  def take(self) -> dict[str, float]:
    """Seconds by phase since the last call."""
    seconds, self._seconds = self._seconds, {'compile': 0.0}
    return seconds

  def _listen(self, event: str, seconds: float, **_: Any) -> None:
    if event in _COMPILING:
      self._seconds['compile'] += seconds


class Progress:
  """One changing line on a terminal, a line a generation elsewhere.

  Args:
    generations: G of the run.
    tokens: returns the tokens read and generated so far.
    stream: where to write; standard error by default.
    percent: whether fitness is a share.
  """

  def __init__(
    self,
    generations: int,
    tokens: Callable[[], int] = lambda: 0,
    stream: TextIO | None = None,
    percent: bool = True,
  ):
    self.tokens = tokens
    self._stream = stream or sys.stderr
    self._percent = percent
    self._live = self._stream.isatty()
    self._generations = generations
    self._label, self._members = '', 0
    self._began = self._started = time.monotonic()
    self._tokens_at_start = 0
    self._first = self._done = 0
    self._best: float | None = None

  def begin(self, members: int, label: str = '') -> None:
    """Begins a batch of members that are scored."""
    self._label = label or f'generation {self._done}/{self._generations}'
    self._members = members
    self._started = time.monotonic()
    self._tokens_at_start = self.tokens()

  def update(self, share: float) -> None:
    """Shows the share of the batch that is scored; for `Evaluator.evaluate`."""
    if not self._live:
      return
    spent = max(1e-6, time.monotonic() - self._started)
    speed = (self.tokens() - self._tokens_at_start) / spent
    parts = [
      self._label,
      f'{int(share * self._members)}/{self._members} members',
      f'{speed:,.0f} tokens/s',
    ]
    if self._best is not None:
      parts.append(self._shown(self._best))
    parts += self._left(share)
    self._write('\r\x1b[K' + '  '.join(parts))

  def resume(self, generation: int, best: float) -> None:
    """Goes on behind a generation that an earlier process has done."""
    self._first = self._done = generation + 1
    self._best, self._began = best, time.monotonic()

  def generation(self, number: int, best: float, text: str) -> None:
    """Writes the line of a generation that is over."""
    self._done, self._best = number + 1, best
    label = f'generation {number}/{self._generations}'
    self.line('  '.join([label, self._shown(best), text, *self._left(0.0)]))

  def line(self, text: str) -> None:
    """Writes a line."""
    self._write(('\r\x1b[K' if self._live else '') + text + '\n')

  def _shown(self, best: float) -> str:
    return f'best {100 * best:.1f} %' if self._percent else f'best {best:.4g}'

  def _left(self, share: float) -> list[str]:
    """Time until the last generation, judged by those of this process."""
    done = self._done - self._first
    to_come = self._generations + 1 - self._done - share
    if done < 1 or to_come <= 0:
      return []
    spent = time.monotonic() - self._began
    return [f'{clock(spent / (done + share) * to_come)} left']

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()


def clock(seconds: float) -> str:
  """Returns 0:42, 12:05 or 3:00:10."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
