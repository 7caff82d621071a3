"""What the profiler and the compiler tell: kernels by share, programs by time.

Nothing but jax reads the trace.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import pathlib
import re
import tempfile
import threading
import time
from typing import Any

import jax

# Start and end in nanoseconds, and name.
_Event = tuple[float, float, str]
_NUMBER = re.compile(r'(?:[._]\d+)+$')
_STAGES = {
  '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lower',
  '/jax/core/compile/backend_compile_duration': 'compile',
}


class Compiled:
  """Seconds of lowering and compiling, by program; listens for the process."""

  def __init__(self):
    self.programs: dict[str, dict[str, float]] = {}
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, seconds: float, **about: Any) -> None:
    name, stage = str(about.get('fun_name')), _STAGES.get(event)
    if stage is None:
      return
    entry = self.programs.setdefault(
      name, {'count': 0, 'lower': 0.0, 'compile': 0.0}
    )
    entry[stage] += seconds
    entry['count'] += stage == 'compile'

  def longest(self, count: int = 12) -> dict[str, dict[str, float]]:
    """Returns the programs that took the longest, the longest first."""

    def cost(item):
      return -item[1]['lower'] - item[1]['compile']

    return dict(sorted(self.programs.items(), key=cost)[:count])


def profile(
  work: Callable[[], Any], wait: float, seconds: float
) -> dict[str, Any]:
  """Profiles a window of some work, which runs to its end.

  Args:
    work: called once, in another thread.
    wait: seconds before the window.
    seconds: of the window, less where the work ends before.

  Returns:
    `window` seconds, `busy` seconds in which the device did something, and
    `kernels`: name -> (seconds, count), the longest first.
  """
  failed: list[BaseException] = []

  def run() -> None:
    try:
      work()
    except BaseException as error:
      failed.append(error)

  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  thread = threading.Thread(target=run)
  with tempfile.TemporaryDirectory() as folder:
    # The first trace of a process may begin seconds after it is asked for.
    with jax.profiler.trace(f'{folder}/first', profiler_options=options):
      pass
    thread.start()
    thread.join(wait)
    start = time.perf_counter()
    jax.profiler.start_trace(f'{folder}/own', profiler_options=options)
    thread.join(seconds)
    window = time.perf_counter() - start
    jax.profiler.stop_trace()
    thread.join()
    if failed:
      raise failed[0]
    kernels, busy = read_trace(pathlib.Path(folder) / 'own')
  return {'window': window, 'busy': busy, 'kernels': kernels}


def read_trace(
  folder: pathlib.Path,
) -> tuple[dict[str, tuple[float, int]], float]:
  """Returns the kernels in a trace, as `profile` has them, and seconds busy.

  Kernels that differ in a number alone are one. What runs inside of another,
  as a loop's body does, counts for itself alone; kernels of a GPU that overlap
  run side by side, and count whole.
  """
  totals: dict[str, list[float]] = {}
  events: list[_Event] = []
  for file in folder.rglob('*.xplane.pb'):
    data = jax.profiler.ProfileData.from_file(str(file))
    for line, is_stream in _device_lines(data):
      events += line
      times = _whole_times(line) if is_stream else _own_times(line)
      for name, spent in times:
        entry = totals.setdefault(_NUMBER.sub('', name), [0.0, 0])
        entry[0] += spent
        entry[1] += 1
  longest = sorted(totals.items(), key=lambda item: -item[1][0])
  kernels = {name: (spent, int(count)) for name, (spent, count) in longest}
  return kernels, _covered(events)


def _covered(events: list[_Event]) -> float:
  """Seconds in which at least one of the events goes on."""
  covered, until = 0.0, 0.0
  for start, end, _ in sorted(events):
    covered += max(0.0, end - max(start, until))
    until = max(until, end)
  return covered / 1e9


def _whole_times(events: list[_Event]) -> Iterator[tuple[str, float]]:
  """Yields names and seconds."""
  for start, end, name in events:
    yield name, (end - start) / 1e9


def _device_lines(data: Any) -> list[tuple[list[_Event], bool]]:
  """What devices did, by stream or thread; whether it is a GPU's stream."""
  lines, on_host = [], []
  for plane in data.planes:
    if plane.name.startswith('/device:'):
      own = {line.name: line for line in plane.lines}
      # GPUs have streams; TPUs a line of operations among others.
      names = [n for n in own if n.startswith('Stream')]
      for name in names or [n for n in own if n == 'XLA Ops']:
        events = [(e.start_ns, e.end_ns, e.name) for e in own[name].events]
        lines.append((events, bool(names)))
    elif plane.name == '/host:CPU':
      on_host += [line for line in plane.lines if 'XLA' in line.name]
  if any(events for events, _ in lines):
    return lines
  return [
    ([(e.start_ns, e.end_ns, e.name) for e in line.events if _is_op(e)], False)
    for line in on_host
  ]


def _is_op(event: Any) -> bool:
  with contextlib.suppress(ValueError, TypeError):
    return any(key == 'hlo_op' for key, _ in event.stats)
  return False


def _own_times(events: list[_Event]) -> Iterator[tuple[str, float]]:
  """Yields names and seconds, without those of events inside."""
  open_: list[list] = []  # [end, name, seconds of its own]
  for start, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
    while open_ and open_[-1][0] <= start:
      _, closed, own = open_.pop()
      yield closed, own
    spent = (end - start) / 1e9
    if open_:
      open_[-1][2] -= spent
    open_.append([end, name, spent])
  for _, name, own in open_:
    yield name, own
