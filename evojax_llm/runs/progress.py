"""Times the parts of a generation, and shows how far a run is."""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import time
from typing import Any
from typing import TextIO

import jax

from evojax_llm.engine.ledger import Ledger
from evojax_llm.runs import report

# Tracing is left out: the events of nested functions overlap.
_COMPILING = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)
# Off a terminal, so long at most is nothing said.
_QUIET_SECONDS = 60.0
# Of a batch with a label, which no line of a generation follows.
_QUIET_LABELLED = 10.0


class Stopwatch:
  """Wall time by phase; compilation counts as a phase of its own.

  Programs that are compiled side by side take the time that one of them does.

  Example:
    with Stopwatch() as watch:
      with watch.phase('score'):
        ...
      watch.take()  # {'compile': 2.1, 'score': 0.4}
  """

  def __init__(self):
    self.compiled = 0.0  # seconds of compilation in all
    self._seconds: dict[str, float] = {'compile': 0.0}
    # When something was compiled: begin and end, apart from each other.
    self._spans: list[tuple[float, float]] = []
    self._lock = threading.Lock()

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
    """Is told the length of a compilation when it ends, by its thread."""
    if event not in _COMPILING:
      return
    with self._lock:
      end = time.perf_counter()
      begin = end - seconds
      inside = [span for span in self._spans if span[1] > begin]
      known = sum(last - max(first, begin) for first, last in inside)
      self._spans = [span for span in self._spans if span[1] <= begin]
      self._spans.append((min([begin, *(first for first, _ in inside)]), end))
      self._seconds['compile'] += seconds - known
      self.compiled += seconds - known


class Progress:
  """One changing line on a terminal until the block ends, or plain lines.

  Args:
    generations: G of the run.
    ledger: of the engine, for the tokens.
    watch: for the seconds of compilation, which no time left is judged by.
    stream: where to write; standard error by default.
    percent: whether fitness is a share.
    evaluations: members that are scored at most, where that is limited.
  """

  def __init__(
    self,
    generations: int,
    ledger: Ledger | None = None,
    watch: Stopwatch | None = None,
    stream: TextIO | None = None,
    percent: bool = True,
    evaluations: int | None = None,
  ):
    self._ledger, self._watch = ledger or Ledger(), watch or Stopwatch()
    self._stream = stream or sys.stderr
    self._percent = percent
    # A dumb terminal, as of an editor, shows control codes as they are.
    dumb = os.environ.get('TERM', '') in ('', 'dumb')
    self._live = self._stream.isatty() and not dumb
    self._generations, self._evaluations = generations, evaluations
    self._label, self._members, self._quiet = '', 0, _QUIET_SECONDS
    self._started = self._written = time.monotonic()
    self._tokens = self._first = self._done = 0
    self._scored = self._scored_first = 0
    self._began: float | None = None
    self._best: float | None = None

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: Any) -> None:
    self._write('')

  def begin(self, members: int, label: str = '') -> None:
    """Begins a batch of members that are scored."""
    self._label = label or self._name(self._done)
    self._members = members
    self._quiet = _QUIET_LABELLED if label else _QUIET_SECONDS
    self._started, self._tokens = time.monotonic(), self._ledger.tokens
    if not label and self._began is None:
      self._began = self._worked()
    if label and not self._live:
      self.line(f'{label}: {members} members')
    elif label:
      # The first program compiles before there is a share.
      self.update(0.0)

  def update(self, share: float) -> None:
    """Shows the share of the batch that is scored; for `Evaluator.evaluate`."""
    now = time.monotonic()
    if not self._live and now - self._written < self._quiet:
      return
    speed = self._ledger.tokens - self._tokens
    speed /= max(1e-6, now - self._started)
    done = f'{int(share * self._members)}/{self._members} members'
    parts = [self._label, done]
    # The speed comes last: a narrow screen does without it.
    parts += [*self._fitness(), *self._left(share), f'{speed:,.0f} tokens/s']
    if not self._live:
      self.line('  '.join(parts))
      return
    room = 80  # where a terminal does not say
    with contextlib.suppress(OSError):  # io.UnsupportedOperation is one, too
      room = os.get_terminal_size(self._stream.fileno()).columns or room
    room -= 1
    while len(parts) > 1 and len('  '.join(parts)) > room:
      parts.pop()
    self._write('  '.join(parts)[:room])

  def resume(self, generation: int, best: float, evaluations: int) -> None:
    """Goes on behind a generation that an earlier process has done."""
    self._first = self._done = generation + 1
    self._best = best
    self._scored = self._scored_first = evaluations

  def generation(
    self, number: int, best: float, evaluations: int, text: str
  ) -> None:
    """Writes the line of a generation that is over."""
    self._done, self._best, self._scored = number + 1, best, evaluations
    parts = [self._name(number), *self._fitness(), text, *self._left(0.0)]
    self.line('  '.join(parts))

  def line(self, text: str) -> None:
    """Writes a line."""
    self._written = time.monotonic()
    self._write(text + '\n')

  def _name(self, number: int) -> str:
    if self._evaluations is None:
      return f'generation {number}/{self._generations}'
    done = f'{self._scored}/{self._evaluations} evaluations'
    return f'generation {number}  {done}'

  def _fitness(self) -> list[str]:
    if self._best is None:
      return []
    return [f'best {report.number(self._best, self._percent, " %")}']

  def _worked(self) -> float:
    """Seconds of a clock that stands still while a program is compiled."""
    return time.monotonic() - self._watch.compiled

  def _left(self, share: float) -> list[str]:
    """Time until the last generation, judged by those of this process."""
    done = self._done - self._first
    to_come = self._generations + 1 - self._done
    scored = self._scored - self._scored_first
    if self._evaluations is not None and done and scored:
      budget = self._evaluations - self._scored
      to_come = min(to_come, budget * done / scored)
    to_come -= share
    if self._began is None or done < 1 or to_come <= 0:
      return []
    spent = self._worked() - self._began
    return [f'{clock(spent / (done + share) * to_come)} left']

  def _write(self, text: str) -> None:
    self._stream.write(('\r\x1b[K' if self._live else '') + text)
    self._stream.flush()


def clock(seconds: float) -> str:
  """Returns 0:42, 12:05 or 3:00:10."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, rest = divmod(minutes, 60)
  start = f'{hours}:{rest:02}' if hours else str(minutes)
  return f'{start}:{seconds:02}'
