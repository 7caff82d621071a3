"""Ways of doing the same work, and how long they take in turns."""

from collections.abc import Callable
import dataclasses
import statistics
import time

from absl import logging
import jax
import jax.numpy as jnp

from evojax_llm.engine.ledger import Ledger

# Large enough that every device reaches its rate.
_MATRIX = 2048


@dataclasses.dataclass(frozen=True)
class Way:
  """One way of doing the work.

  Attributes:
    name: in the table.
    run: does all of it once.
    tokens: what it counts, the same for all ways.
    ledger: of the engine that does it, or None.
  """

  name: str
  run: Callable[[], object]
  tokens: int
  ledger: Ledger | None = None


@dataclasses.dataclass(frozen=True)
class Timed:
  """What was measured of a way.

  Attributes:
    seconds: of each repeat.
    idle: share of the time in which nothing was asked of the device.
    recompiled: programs compiled after the first pass.
    computed: tokens of a pass that went through the model, padding not counted
      and what is shared counted once.
  """

  seconds: list[float]
  idle: float | None = None
  recompiled: int | None = None
  computed: float | None = None


def matrix_rate(shape: tuple[int, int, int] = (_MATRIX,) * 3) -> float:
  """Operations a second of an f32 product (rows, inner) x (columns, inner)."""
  rows, inner, columns = shape
  a = jnp.ones((rows, inner), jnp.float32)
  b = jnp.ones((columns, inner), jnp.float32)
  multiply = jax.jit(lambda a, b: a @ b.T)
  jax.block_until_ready(multiply(a, b))
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(multiply(a, b))
    seconds.append(time.perf_counter() - start)
  return 2 * rows * inner * columns / statistics.median(seconds)


def time_ways(ways: list[Way], repeats: int) -> tuple[dict[str, Timed], float]:
  """Times each way `repeats` times, the ways taking turns.

  Returns:
    What was measured by name, and the median matrix rate of the repeats.
  """
  for way in ways:  # compiles, and warms what can be warm.
    start = time.perf_counter()
    way.run()
    logging.info('%s: %.2f s at first', way.name, time.perf_counter() - start)
  before = [way.ledger and way.ledger.as_dict() for way in ways]
  seconds = [[] for _ in ways]
  rates = []
  for repeat in range(repeats):
    rates.append(matrix_rate())
    for way, spent in zip(ways, seconds, strict=True):
      start = time.perf_counter()
      way.run()
      spent.append(time.perf_counter() - start)
    logging.info('repeat %d of %d', repeat + 1, repeats)
  timed = {
    way.name: _timed(way, spent, first)
    for way, spent, first in zip(ways, seconds, before, strict=True)
  }
  return timed, statistics.median(rates)


def _timed(way: Way, seconds: list[float], before: dict | None) -> Timed:
  if before is None:
    return Timed(seconds)
  after = way.ledger.as_dict()

  def idle(ledger: dict) -> float:
    return ledger['seconds'].get('idle', 0.0)

  def tokens(ledger: dict) -> int:
    return ledger['prompt_tokens'] + ledger['new_tokens']

  return Timed(
    seconds,
    idle=(idle(after) - idle(before)) / sum(seconds),
    recompiled=after['programs'] - before['programs'],
    computed=(tokens(after) - tokens(before)) / len(seconds),
  )
