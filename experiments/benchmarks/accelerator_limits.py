"""What a device does at best, and operators beside it."""

from collections.abc import Callable
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import operator_sizes
from experiments.benchmarks import operator_timing
from experiments.benchmarks.accelerator_clock import Clock
from experiments.benchmarks.accelerator_parts import Bench

OPERATORS = (
  'linear slerp task_arithmetic ties breadcrumbs dare_ties sce della gaussian '
  'swarm'
).split()
_FEW_OPERATORS = ('linear', 'gaussian')
_REPEATS = 5
_SECONDS_A_LIMIT = 0.5
# Of each of the two buffers of a copy.
_COPY_BYTES = 1 << 30


def limits(bench: Bench, clock: Clock, found: dict[str, Any]) -> None:
  """Measures a large product of random numbers, and a copy into memory."""
  size = 256 if bench.small else 8192
  if jax.default_backend() == 'cpu':
    size = min(size, 2048)
  # Of ones a product is faster than of numbers as a model has them: the device
  # takes less power.
  a = jax.random.normal(jax.random.key(0), (size, size), bench.dtype)
  product = jax.jit(jnp.matmul)
  seconds = _best(lambda: product(a, a))
  bench.rates['product'] = 2 * size**3 / seconds
  count = (1 << 16 if bench.small else _COPY_BYTES) // 4
  if jax.default_backend() == 'cpu':
    count = min(count, 1 << 25)
  x = jnp.ones(count, jnp.float32)
  held = [jnp.zeros_like(x)]
  # The result takes the memory of an array that is no longer wanted.
  copy = jax.jit(lambda old, x: -x, donate_argnums=0, keep_unused=True)

  def once():
    held[0] = copy(held[0], x)
    return held[0]

  bench.rates['copy'] = 8 * count / _best(once)
  found |= {f'{k}_per_second': v for k, v in bench.rates.items()}
  found['product_size'] = size
  clock.say(
    f'product {bench.rates["product"] / 1e12:.2f} TFLOP/s, copy '
    f'{bench.rates["copy"] / 1e9:.0f} GB/s read and written'
  )


def _best(run: Callable[[], Any]) -> float:
  """Seconds of a call in the best of some rows of calls."""
  jax.block_until_ready(run())
  seconds, calls, begun = [], 1, time.perf_counter()
  while not seconds or time.perf_counter() - begun < _SECONDS_A_LIMIT:
    if seconds:  # Enough that what a call costs the host is hidden.
      calls = int(np.clip(_SECONDS_A_LIMIT / 5 / seconds[-1], 1, 20))
    start = time.perf_counter()
    for _ in range(calls):
      last = run()
    jax.block_until_ready(last)
    seconds.append((time.perf_counter() - start) / calls)
  return min(seconds)


def operators(bench: Bench, clock: Clock, found: dict[str, Any]) -> None:
  """Times operators on ten adapters beside a copy."""
  size = operator_sizes.SIZES['tiny' if bench.small else 'lora10']
  workbench = operator_timing.Workbench(size)
  names = _FEW_OPERATORS if bench.small else OPERATORS
  cases = operator_timing.chosen_cases(names)
  # Of the cases of an operator the first.
  cases = {case.operator.name: case for case in reversed(cases)}
  rows = [
    *workbench.limits(),
    *(workbench.row(cases[name]) for name in names),
  ]
  for row in rows:
    if not clock.fits(0):
      clock.skip(f'operators: {row.name}', 'no time is left')
      continue
    try:
      start = time.perf_counter()
      row.run()
      compiling = time.perf_counter() - start
      seconds = operator_timing.time_rows([row], _REPEATS)[row.name]
    except Exception as error:
      clock.fail(f'operators: {row.name}', error)
      continue
    best = min(seconds)
    entry = {'first': compiling, 'seconds': best}
    if row.moved:
      entry['bytes_per_second'] = row.moved / best
      copy = found.get(row.copy)
      if copy:
        entry['copy_share'] = (
          entry['bytes_per_second'] / copy['bytes_per_second']
        )
    found[row.name] = entry
    share = entry.get('copy_share')
    clock.say(
      f'{row.name}: {best * 1e3:.2f} ms'
      + (f', {share:.0%} of the copy' if share else '')
      + f', {compiling:.1f} s at first'
    )
    clock.keep()
