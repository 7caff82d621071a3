"""Continues prompts for groups of members, and watches for stop strings."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from evojax_llm.engine.decode_programs import DecodePrograms
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.runtime import Runtime
from evojax_llm.models.expression import Expression
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import hosts
from evojax_llm.population import sharding
from evojax_llm.tasks import stop_strings as stops_lib

# Where texts may end at a stop string, the host reads them this often; other
# long work is read for its progress.
_SECONDS_BETWEEN_LOOKS = {True: 0.03, False: 1.0}
_FEWEST_STEPS, _MOST_STEPS = 4, {True: 64, False: 1 << 16}
# Up to so many steps are not read in between.
_SHORT = 256
_NO_END = np.int32(1 << 30)


@dataclasses.dataclass(frozen=True)
class Generated:
  """What P members made of a queue of N prompts.

  Attributes:
    tokens: (P, N, new) i32, -1 behind the end.
    finite: (P,) bool, whether all logits that were read were finite.
  """

  tokens: np.ndarray
  finite: np.ndarray


class Decoder:
  """Continues the prompts of queues for a group of members at a time.

  Args:
    runtime: devices, programs and counts.
    model: the module.
    params: its parameters, on all devices.
    form: 'batched' or 'folded' (see `forms`).
    tokenizer: its `stop_ids` end an answer; its `decode` is called where there
      are stop strings.
    walk: 'scan' or 'unrolled' (see `plan.Plan`).
    attention: implementation of `decode_attention`, of the unrolled walk.
  """

  def __init__(
    self,
    runtime: Runtime,
    model: Transformer,
    params: Any,
    form: str,
    tokenizer: Any,
    walk: str = 'scan',
    attention: str = 'plain',
  ):
    stop_ids = tuple(tokenizer.stop_ids)
    self._programs = DecodePrograms(
      runtime, model, params, form, stop_ids, walk, attention
    )
    self._decode = tokenizer.decode
    self._runtime, self._ledger = runtime, runtime.ledger
    self._open: Decoding | None = None
    # By whether it is for stop strings.
    self._steps_per_look = {True: _FEWEST_STEPS, False: _FEWEST_STEPS}
    # Seconds of a refill, by the shape of the queue.
    self._refill_seconds: dict[tuple, float] = {}

  def start(
    self,
    queues: Sequence[Queue],
    members: Expression,
    active: jax.Array,
    ids: Sequence[int] | None = None,
  ) -> 'Decoding':
    """Begins to continue the prompts of some queues; one work at a time.

    Args:
      queues: the work of each member.
      members: of the group, as `forms.lay_out` left them, placed.
      active: (P,) bool; the others' results mean nothing.
      ids: P ids, which address random draws; positions in the group by default.
    """
    if self._open is not None:
      self._open.wait()
    active = sharding.to_host(active)
    ids = np.arange(len(active)) if ids is None else np.asarray(ids)
    work = self._work(list(queues), members, active, ids.astype(np.int32))
    self._open = Decoding(work)
    return self._open

  def _work(self, queues, members, active, ids):
    """Does the work; yields the share done at each wait, and the results.

    In between it yields None, once the devices have nothing more to do.
    """
    results = [
      Generated(
        np.full((len(active), len(queue.owner), queue.new), -1, np.int32),
        np.ones(len(active), bool),
      )
      for queue in queues
    ]
    self._runtime.idle_since = time.perf_counter()
    pending: list[tuple] = []
    parts = self._programs.parts(active)
    done, total = 0, len(parts) * len(queues)

    def collect(queue, part, result, call, spent) -> None:
      nonlocal done
      report = self._fetch(call)
      result.tokens[part] = report['out']
      result.finite[part] = report['finite']
      spent += report['seconds']
      self._count(queue, report, int(active[part].sum()), spent)
      done += 1

    for part in parts:
      weights = self._programs.weights(members, part)
      layers = self._programs.layers(weights)
      prefixes: dict[int, Any] = {}
      # All of them first, so that they are compiled beside each other.
      programs = [
        self._programs.calls(
          queue,
          weights,
          layers,
          self._prefix(queue, weights, active[part], prefixes),
          active[part],
          ids[part],
        )
        for queue in queues
      ]
      for queue, program, result in zip(queues, programs, results, strict=True):
        begun = queue.shape in self._refill_seconds
        watched = any(queue.stops) or queue.most_steps > _SHORT
        if not begun or watched:
          while pending:
            yield done / total
            collect(*pending.pop(0))
        spent = 0.0 if begun else self._fill(queue, program)
        if watched:
          for call, more, share in self._watch(
            queue, program, begun, int(active[part].sum())
          ):
            last, spent = call, spent + more
            yield (done + share) / total
          collect(queue, part, result, last, spent)
          continue
        last = self._ask(program, begun, None, _NO_END)
        pending.append((queue, part, result, last, spent))
        # One call stays in flight while the host works on the one before.
        if len(pending) > 1:
          yield done / total
          collect(*pending.pop(0))
    while pending:
      yield done / total
      collect(*pending.pop(0))
    yield None
    for queue, result in zip(queues, results, strict=True):
      self._cut(queue, result)
    yield results

  def _prefix(
    self, queue: Queue, weights: Any, active: np.ndarray, known: dict[int, Any]
  ) -> Any:
    """The common beginning of a queue, read once for the members of a part."""
    if queue.prefix is None:
      return None
    if id(queue.prefix) not in known:
      known[id(queue.prefix)] = self._programs.read_prefix(
        queue, weights, len(active)
      )
      self._ledger.prompt_tokens += queue.prefix_tokens * int(active.sum())
    return known[id(queue.prefix)]

  def _fill(self, queue: Queue, program: Callable) -> float:
    """Begins a queue of a new shape, to measure a refill.

    Returns:
      The device's seconds.
    """
    self._fetch(self._ask(program, True, None, 0))  # touches memory first.
    filled = self._fetch(self._ask(program, True, None, 0))
    refills = max(1, int(filled['refills'].max()))
    self._refill_seconds[queue.shape] = filled['seconds'] / refills
    return filled['seconds']

  def _watch(
    self, queue: Queue, program: Callable, again: bool, members: int
  ) -> Iterator[tuple['_Call', float, float]]:
    """Works on a queue that takes long or may end at stop strings.

    One call is in flight while the host reads the texts of the one before; a
    slot is freed a call or two after its text has ended.

    Yields:
      The last call made, the device's seconds for the one before, and the share
        of the answers that are done. At the end that call has nothing to do.
    """
    stops = any(queue.stops)
    look = self._steps_per_look
    call = self._ask(program, again, None, look[stops])
    stopped = np.zeros(call.report['out'].shape[:2], bool)
    steps, working = 0, True
    while working:
      ahead = self._ask(program, False, stopped, look[stops])
      seen = self._fetch(call)
      working = seen['working'].any()
      begun, busy = (seen['out'][..., 0] >= 0).sum(), (seen['entry'] >= 0).sum()
      share = max(0, begun - busy) / (members * len(queue.owner))
      yield ahead, seen['seconds'], float(share)
      done = max(1, int(seen['steps'].max()) - steps)
      steps += done
      seconds = hosts.agreed(seen['seconds'])
      wanted = round(done * _SECONDS_BETWEEN_LOOKS[stops] / seconds)
      look[stops] = int(np.clip(wanted, _FEWEST_STEPS, _MOST_STEPS[stops]))
      if stops:
        with self._ledger.time('host'):
          self._look(queue, seen, stopped)
      call = ahead

  def _look(
    self, queue: Queue, seen: dict[str, np.ndarray], stopped: np.ndarray
  ) -> None:
    """Marks the prompts in work whose text has come to a stop string."""
    for member, entries in enumerate(seen['entry']):
      for entry in entries[entries >= 0].tolist():
        if queue.stops[entry] and not stopped[member, entry]:
          ids = _made(seen['out'][member, entry])
          stops = queue.stops[entry]
          late = stops_lib.recent(ids, 3 * _MOST_STEPS[True], stops)
          if stops_lib.has_stop(self._decode(late), stops):
            stopped[member, entry] = stops_lib.has_stop(
              self._decode(ids), stops
            )

  def _cut(self, queue: Queue, result: Generated) -> None:
    """Drops what was made behind a stop string."""
    if not any(queue.stops):
      return
    with self._ledger.time('host'):
      for tokens in result.tokens:
        for row, stops in zip(tokens, queue.stops, strict=True):
          if stops:
            ids = stops_lib.cut_ids(_made(row), stops, self._decode)
            row[len(ids) :] = -1

  def _ask(self, program: Callable, *arguments: Any) -> '_Call':
    """Asks the devices for a call, without waiting for it."""
    # Before the call: a device may hold the host up until a loop has ended.
    asked = time.perf_counter()
    return _Call(program(*arguments), asked)

  def _fetch(self, call: '_Call') -> dict[str, Any]:
    """Waits for a report; adds the `seconds` of the device."""
    with self._ledger.time('score'):
      report = sharding.to_host(call.report)
    return {**report, 'seconds': self._runtime.waited(call.asked)}

  def _count(
    self, queue: Queue, report: dict[str, Any], members: int, spent: float
  ) -> None:
    """Adds the work of a part, for which the device has spent seconds."""
    ledger = self._ledger
    ledger.prompt_tokens += queue.prompt_tokens * members
    ledger.new_tokens += int((report['out'] >= 0).sum())
    ledger.refills += int(report['refills'].sum())
    ledger.steps += int(report['steps'].sum())
    per_step = queue.slots * report['entry'].shape[0] // len(report['steps'])
    ledger.slot_steps += int(report['steps'].sum()) * per_step
    ledger.busy_slot_steps += int(report['busy'].sum())
    refill = self._refill_seconds[queue.shape]
    prefill = min(spent, int(report['refills'].max()) * refill)
    ledger.add('prefill', prefill)
    ledger.add('decode', spent - prefill)


@dataclasses.dataclass(frozen=True)
class _Call:
  """A call of a program, and when it was made."""

  report: dict[str, jax.Array]
  asked: float


class Decoding:
  """Work of a `Decoder` under way."""

  def __init__(self, work: Iterator[list[Generated] | float | None]):
    self._work = work
    self._results = next(work)

  def wait(
    self, progress: Callable[[float], None] = lambda share: None
  ) -> None:
    """Waits for the devices; what the host has to do is left to `finish`.

    Args:
      progress: called with the share that is done.
    """
    while isinstance(self._results, float):
      progress(self._results)
      self._results = next(self._work)

  def finish(
    self, progress: Callable[[float], None] = lambda share: None
  ) -> list[Generated]:
    """Waits for the results, one a queue; see `wait`."""
    self.wait(progress)
    if self._results is None:
      self._results = next(self._work)
    return self._results


def _made(row: np.ndarray) -> list[int]:
  """The tokens of a row up to its end."""
  return row[: int((row >= 0).sum())].tolist()
