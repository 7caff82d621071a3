"""Operators applied to populations, beside the limits of the machine."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import statistics
import time

from absl import logging
import jax
import jax.numpy as jnp

from evojax_llm.operators import registry
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.population import stack
from experiments.benchmarks import operator_cases
from experiments.benchmarks import operator_costs
from experiments.benchmarks import operator_peers
from experiments.benchmarks import operator_sizes

COPIES = ('copy, in place', 'copy, to another buffer')
GENERATORS = ('generator, stored', 'generator, summed')
# Words that are drawn to measure the generator; enough to leave the caches.
_WORDS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Row:
  """One way of using the machine.

  Attributes:
    name: in the table.
    run: does it once, to the end.
    moved: bytes that must move.
    words: random words that must be drawn.
    copy: the copy that works on buffers as it does; empty for limits.
  """

  name: str
  run: Callable[[], None]
  moved: float = 0.0
  words: float = 0.0
  copy: str = ''


class Workbench:
  """Populations of one size, and rows that work on them.

  Rows share the populations. What works in place leaves its result there.

  Args:
    size: of the populations.
  """

  def __init__(self, size: operator_sizes.Size):
    self._size = size
    self._populations = [size.make(seed) for seed in range(size.populations)]
    self._shared = [
      stack.take(size.make(100 + seed), jnp.int32(0)) for seed in range(2)
    ]
    self._result = size.make(200)

  def limits(self) -> list[Row]:
    """Copies and the generator."""

    def negate(genomes):
      return jax.tree.map(jnp.negative, genomes)

    moved = 2 * 4 * operator_sizes.elements(self._populations[0])
    words = min(_WORDS, operator_sizes.elements(self._populations[0]))
    key = jax.random.key(0)

    def draw(key):
      return jax.random.bits(key, (words,), jnp.uint32)

    # What draws in the loop that uses the words stores none of them.
    stored = jax.jit(draw)
    summed = jax.jit(lambda key: tensors.sums([draw(key)]))
    return [
      Row(COPIES[0], self._in_place(jax.vmap(negate), 1), moved),
      Row(COPIES[1], self._elsewhere(jax.vmap(negate), 1, 0), moved),
      *(
        Row(name, functools.partial(_wait_for, function, key), words=words)
        for name, function in zip(GENERATORS, (stored, summed), strict=True)
      ),
    ]

  def row(self, case: operator_cases.Case) -> Row:
    """An operator, lifted to the population."""
    op = case.operator
    cost, own, shared = operator_costs.cost(op), case.own, case.shared
    if isinstance(op, Merge) and op.most is None:
      own = self._size.parents
    keys = jax.random.split(jax.random.key(1), self._size.members)
    mapped = (0,) * (1 + own) + (None,) * shared
    lifted = jax.vmap(case.apply, in_axes=mapped)
    in_place = op.kind == 'mutation' or case.results > 1
    if in_place:
      run = self._in_place(lifted, own, case, keys)
    else:
      run = self._elsewhere(lifted, own, shared, keys)
    numbers = operator_sizes.elements(
      self._populations[0], second_only=cost.second_only
    )
    streams = own + shared / self._size.members
    return Row(
      case.name,
      run,
      4 * numbers * (cost.passes * streams + case.results),
      numbers * cost.words,
      COPIES[not in_place],
    )

  def _in_place(self, function, own, case=None, keys=None):
    results, shared = (case.results, case.shared) if case else (1, 0)

    def apply(given, others, shared, keys):
      first = () if keys is None else (keys,)
      return function(*first, *given, *others, *shared)

    step = jax.jit(apply, donate_argnums=0)

    def run():
      made = step(
        self._populations[:results],
        self._populations[results:own],
        self._shared[:shared],
        keys,
      )
      self._populations[:results] = list(made) if results > 1 else [made]
      jax.block_until_ready(self._populations[:results])

    return run

  def _elsewhere(self, function, own, shared, keys=None):
    def apply(old, given, shared, keys):
      del old  # only its buffers are wanted.
      first = () if keys is None else (keys,)
      return function(*first, *given, *shared)

    step = jax.jit(apply, donate_argnums=0, keep_unused=True)

    def run():
      self._result = step(
        self._result, self._populations[:own], self._shared[:shared], keys
      )
      jax.block_until_ready(self._result)

    return run


def _wait_for(function, *args):
  jax.block_until_ready(function(*args))


def time_rows(rows: Sequence[Row], repeats: int) -> dict[str, list[float]]:
  """Seconds of each row, `repeats` times, the rows taking turns."""
  for row in rows:  # compiles.
    start = time.perf_counter()
    row.run()
    logging.info('%s: %.2f s at first', row.name, time.perf_counter() - start)
  seconds = {row.name: [] for row in rows}
  for repeat in range(repeats):
    for row in rows:
      start = time.perf_counter()
      row.run()
      seconds[row.name].append(time.perf_counter() - start)
    logging.info('repeat %d of %d', repeat + 1, repeats)
  return seconds


def measure(
  name: str,
  cases: Sequence[operator_cases.Case],
  *,
  repeats: int,
  peft: bool,
  peer_python: str | None,
  peer_limit: float,
) -> dict:
  """All rows at one size.

  Returns:
    What `operator_tables.markdown` takes as one size: name, note, limits,
    and rows with seconds, moved bytes, words, copy, what else they do, and the
    peers' seconds, or why there are none.
  """
  size = operator_sizes.SIZES[name]
  costs = {case.name: operator_costs.cost(case.operator) for case in cases}
  cases = [c for c in cases if size.rank or costs[c.name].group != 'algebra']
  workbench = Workbench(size)
  limits = workbench.limits()
  rows = [workbench.row(case) for case in cases]
  seconds = time_rows([*limits, *rows], repeats)
  del workbench
  peers = operator_peers.seconds(
    size, cases, peft=peft, peer_python=peer_python, limit=peer_limit
  )
  result = {'size': name, 'note': size.note, 'limits': {}, 'rows': []}
  for limit in limits:
    median = statistics.median(seconds[limit.name])
    result['limits'][limit.name] = {
      'seconds': seconds[limit.name],
      'per_second': (limit.moved or limit.words) / median,
    }
  for row, case in zip(rows, cases, strict=True):
    result['rows'].append(
      {
        'name': row.name,
        'group': costs[case.name].group,
        'else': costs[case.name].other,
        'seconds': seconds[row.name],
        'moved': row.moved,
        'words': row.words,
        'copy': row.copy,
        'peers': peers.get(row.name, {}),
      }
    )
  return result


def chosen_cases(
  names: Sequence[str] | None, without: Sequence[str] = ()
) -> list[operator_cases.Case]:
  """The cases of operators that make genomes.

  Args:
    names: of operators; None for all.
    without: names that are left out.

  Raises:
    ValueError: if a name is unknown.
  """
  makers = [op for op in registry.OPERATORS if op.kind != 'selection']
  unknown = sorted({*(names or ()), *without} - {op.name for op in makers})
  if unknown:
    raise ValueError(
      f'Got operators {unknown}; expected some of {[op.name for op in makers]}.'
    )
  return [
    case
    for case in operator_cases.cases(makers)
    if (not names or case.operator.name in names)
    and case.operator.name not in without
  ]
