"""The parts of `benchmark_accelerator` that run the engine."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import gc
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine.groups import num_bytes
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.gates import GATES
from evojax_llm.genomes.gates import GateSpace
from evojax_llm.models.cache import bytes_per_token
from experiments.benchmarks import accelerator_model
from experiments.benchmarks import accelerator_profile
from experiments.benchmarks.accelerator_clock import Clock

WAYS = ('population', 'one model', 'gates')
# Kernels in the table.
_KERNELS = 16


class Bench:
  """A model, its members and tasks on the devices.

  Args:
    shape: of `shapes.SHAPES`.
    layers: fewer than the shape has, or None.
    members: P.
    rank: of the adapters.
    items: a member and task.
    new_tokens: of a generated answer.
    dtype: of parameters and activations.
    data: folder with mmlu.json and gsm8k.json, or None.
    small: whether limits and operators are those of a test.
  """

  def __init__(
    self,
    shape: str,
    *,
    layers: int | None = None,
    members: int = 10,
    rank: int = 8,
    items: int = 100,
    new_tokens: int = 200,
    dtype: Any = jnp.bfloat16,
    data: str | None = None,
    small: bool = False,
  ):
    self.config = accelerator_model.model_config(shape, layers)
    self.members, self.items, self.new_tokens = members, items, new_tokens
    self.dtype, self.small = jnp.dtype(dtype), small
    self.rates: dict[str, float] = {}
    self._tokenizer = accelerator_model.Pieces(self.config.vocab_size)
    self._tasks = {
      kind: accelerator_model.task(kind, items * members, new_tokens, data)
      for kind in ('multiple_choice', 'numeric_match')
    }
    self.rank = rank

  @functools.cached_property
  def model(self):
    """The base, on the device."""
    return accelerator_model.random_model(self.config, self.dtype)

  @functools.cached_property
  def _adapters(self):
    return accelerator_model.random_adapters(
      self.config, self.members, self.rank
    )

  @functools.cached_property
  def _adapter_space(self):
    return AdapterSpace(self._adapters, self.model)

  @functools.cached_property
  def _gate_space(self):
    return GateSpace(self._adapters, self.model, self.dtype)

  @functools.cached_property
  def _genomes(self):
    return self._adapter_space.experts()

  def way(
    self, kind: str, name: str, slots: int | None = None, **sizes: Any
  ) -> tuple[Callable[[], Any], Evaluator]:
    """Returns what scores all members once, and the evaluator that does.

    `slots` are prompts in work in all; sizes are those of `plan.make_plan`.
    Each way has the same number of items.
    """
    members = 1 if name == 'one model' else self.members
    items = self.items * self.members // members
    rows = max(1, slots // members) if slots else None
    space, genomes = self._adapter_space, self._genomes
    if name == 'gates':
      space = self._gate_space
      drawn = np.random.default_rng(0).dirichlet(np.ones(members), members)
      genomes = {GATES: jnp.asarray(drawn, jnp.float32)}
    elif name == 'one model':
      genomes = jax.tree.map(lambda leaf: leaf[:1], genomes)
    task = self._tasks[kind].dev[:items]
    evaluator = Evaluator(
      self._tokenizer,
      [dataclasses.replace(self._tasks[kind], dev=task)],
      dtype=self.dtype,
      prompts_per_batch=rows,
    )
    evaluator.prepare(space, genomes, **sizes)
    return lambda: evaluator.evaluate(space, genomes), evaluator

  def prompt_tokens(self, kind: str) -> float:
    """Mean tokens of a prompt."""
    task = self._tasks[kind]
    lengths = [len(self._tokenizer.encode(i.question)) for i in task.dev]
    return statistics.mean(lengths)

  @property
  def layer_params(self) -> int:
    """Weights that every token goes through."""
    c = self.config
    return c.num_params - (1 if c.tied else 2) * c.vocab_size * c.embed_dim

  def step_bytes(self, name: str, slots: int) -> float:
    """Bytes that a step of decoding has to read: weights, members, cache."""
    members = num_bytes(self._genomes) * self.dtype.itemsize / 4
    if name == 'one model':
      members /= self.members
    context = self.prompt_tokens('numeric_match') + self.new_tokens / 2
    cache = slots * context * bytes_per_token(self.config, self.dtype)
    return num_bytes(self.model.params) + members + cache


def likelihood(
  bench: Bench,
  clock: Clock,
  found: dict[str, Any],
  *,
  ways: Sequence[str] = WAYS,
) -> None:
  """Scores multiple choice: a population, one model, gates."""
  for name in ways:
    _measure(bench, clock, found, 'multiple_choice', name, 'plan', {})


def generation(
  bench: Bench,
  clock: Clock,
  found: dict[str, Any],
  *,
  slots: Sequence[int],
  variants: Mapping[str, dict[str, Any]],
  ways: Sequence[str] = WAYS,
) -> None:
  """Continues prompts: a population, one model, gates; by slots."""
  for count in slots:
    for variant, options in variants.items():
      label = f'{variant}, {count} slots' if count else variant
      options = options | {'slots': count or None}
      for name in ways:
        _measure(bench, clock, found, 'numeric_match', name, label, options)


def _beside_limits(bench: Bench, name: str, row: dict[str, Any]) -> None:
  """Adds what a way has of the device's limits."""
  if not row['steps']:
    done = 2 * bench.layer_params * row['tokens'] / row['steady']
    if 'product' in bench.rates:
      row['rate_share'] = done / bench.rates['product']
    return
  row['slots'] = row['slot_steps'] / row['steps']
  # Prompts are read in between: a part of the time that is not told apart.
  row['step_ms'] = 1e3 * row['steady'] / row['steps']
  if 'copy' in bench.rates:
    needed = bench.step_bytes(name, row['slots']) / bench.rates['copy']
    row['limit_ms'] = 1e3 * needed
    row['limit_share'] = needed * row['steps'] / row['steady']


def _measure(bench, clock, found, kind, name, variant, options):
  """Times one way: the first call, and calls as long as there is time."""
  label = f'{name} ({variant})'
  expected = max(
    (row['first'] + row.get('steady', 0) for row in found.values() if row),
    default=0.0,
  )
  if not clock.fits(expected):
    why = f'{clock.left:.0f} s are left of the part'
    clock.skip(f'{kind}: {label}', why)
    return
  try:
    row = _timed(bench, clock, kind, name, options)
    if 'steady' in row:
      _beside_limits(bench, name, row)
    found[label] = row
    shown = ', '.join(
      f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}'
      for k, v in row.items()
    )
    clock.say(f'{kind}: {label}: {shown}')
  except Exception as error:
    found.pop(label, None)
    clock.fail(f'{kind}: {label}', error)
  gc.collect()  # What the way held on the device is given back.
  clock.keep()


def _timed(bench, clock, kind, name, options):
  run, evaluator = bench.way(kind, name, **options)
  ledger = evaluator.ledger
  start = time.perf_counter()
  run()
  row: dict[str, Any] = {'first': time.perf_counter() - start}
  row['compile'] = ledger.seconds['compile']
  row['programs'] = ledger.programs
  row['plan'] = evaluator.plan.describe().splitlines()[0]
  expected = row['first'] - row['compile']
  seconds, before = [], ledger.as_dict()
  while len(seconds) < 3 and clock.fits(expected):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
    expected = seconds[-1]
    if bench.small:
      break
  if seconds:
    after = ledger.as_dict()

    def each(*names: str) -> float:
      return sum(after[n] - before[n] for n in names) / len(seconds)

    row['steady'] = min(seconds)
    row['seconds'] = seconds
    made = each('new_tokens') if kind == 'numeric_match' else 0
    row['tokens'] = made or each('prompt_tokens')
    row['tokens_per_second'] = row['tokens'] / row['steady']
    row['recompiled'] = after['programs'] - before['programs']
    for key in ('steps', 'slot_steps', 'refills'):
      row[key] = each(key)
    for key in ('prefill', 'decode', 'idle', 'host'):
      spent = after['seconds'].get(key, 0) - before['seconds'].get(key, 0)
      row[key] = spent / len(seconds)
  row['peak_gib'] = peak_memory() / 2**30
  return row


def peak_memory() -> int:
  """Most bytes that were in use on the first device; 0 if it does not tell."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use', 0)


def kernels(
  bench: Bench,
  clock: Clock,
  found: dict[str, Any],
  *,
  slots: int,
  variants: Mapping[str, dict[str, Any]],
) -> None:
  """Profiles a population that decodes and reads: kernels by share of time."""
  ways = {
    variant: ('numeric_match', options | {'slots': slots or None})
    for variant, options in variants.items()
  }
  for label, (kind, options) in (
    {'likelihood': ('multiple_choice', {})} | ways
  ).items():
    if not clock.fits(0):
      clock.skip(f'kernels: {label}', 'no time is left')
      continue
    try:
      found[label] = _profiled(bench, clock, kind, options)
    except Exception as error:  # The others are to run.
      clock.fail(f'kernels: {label}', error)
    gc.collect()
    clock.keep()


def _profiled(bench, clock, kind, options):
  run, evaluator = bench.way(kind, 'population', **options)
  start = time.perf_counter()
  run()
  first = time.perf_counter() - start
  start, before = time.perf_counter(), evaluator.ledger.as_dict()
  run()
  spent, after = time.perf_counter() - start, evaluator.ledger.as_dict()
  steps = after['steps'] - before['steps']
  name, count = ('step', steps) if steps else ('pass', 1)
  unit = {'unit': name, 'unit_ms': 1e3 * spent / count}
  # In the middle, where answers are being made.
  seen = accelerator_profile.profile(run, 0.4 * spent, min(1.0, spent / 4))
  if seen['busy'] < seen['window'] / 4:  # It was beside the work.
    seen = accelerator_profile.profile(run, 0.0, 2 * spent)
  # Kernels of a GPU may run side by side: more than it was busy.
  total = max(sum(spent for spent, _ in seen['kernels'].values()), 1e-9)
  most = list(seen['kernels'].items())[:_KERNELS]
  for name, (spent, count) in most:
    clock.say(f'{spent / total:6.1%} {count:7d} x {name[:70]}')
  return unit | {
    'first': first,
    'compile': evaluator.ledger.seconds['compile'],
    'window': seen['window'],
    'busy': seen['busy'],
    'different': len(seen['kernels']),
    'kernels': {
      name: {'share': spent / total, 'seconds': spent, 'count': count}
      for name, (spent, count) in most
    },
  }
