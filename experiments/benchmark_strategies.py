"""What a search costs itself, beside the scoring of what it proposes.

For every strategy, by the first preset that has it: the seconds of an ask and
a tell, the mean of several rounds with drawn fitness after two that compile,
and those of scoring the members of the ask on the pocket model, from one
scoring of an initial population in each space. EvoGM trains in its asks, so
that its share is that of its training.

  python -m experiments.benchmark_strategies --out=/tmp/strategies
"""

from collections.abc import Sequence
import time

from absl import flags
import jax
import numpy as np

from evojax_llm import systems
from evojax_llm.commands import command
from evojax_llm.runs import preparation
from evojax_llm.runs.presets import Preset
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import base
from experiments.benchmarks import tables

_PRESETS = flags.DEFINE_list(
  'presets', None, 'Presets to measure; by default one of every strategy.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 8, 'Timed rounds of each.')
_DEV_LIMIT = flags.DEFINE_integer(
  'dev_limit', 50, 'Dev items of each task; as many as comparisons take.'
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')

# Shares of a generation that a strategy may take.
_MOST = {'evogm': 0.1}
_MOST_OF_OTHERS = 0.02


def one_of_every_strategy() -> list[str]:
  """Returns the first preset of every strategy."""
  # What evosax's draws from is given from Python alone.
  first = {'RandomSearch': 'random_search'}
  for system in systems.systems().values():
    for name, preset in system.PRESETS.items():
      if isinstance(preset, Preset):
        first.setdefault(preset.strategy, name)
  return list(dict.fromkeys(first.values()))


def measure(preset: str, cache: dict, scoring: dict) -> dict:
  """Times one strategy.

  Args:
    preset: its configuration.
    cache: of `preparation.prepare`.
    scoring: seconds of scoring a member, by space; what is missing is added.
  """
  config = systems.load(preset)
  config.dev_limit = _DEV_LIMIT.value
  config = RunConfig.from_config(config)
  prepared = preparation.prepare(config, cache=cache)
  strategy, params = prepared.strategy, prepared.params
  population = prepared.initial().population
  size = strategy.population_size
  if config.space not in scoring:
    for _ in range(2):  # The first one compiles.
      start = time.perf_counter()
      prepared.evaluator.evaluate(
        prepared.setup.space, population, np.arange(size), 'dev'
      )
      scoring[config.space] = (time.perf_counter() - start) / size
  rng = np.random.default_rng(0)

  def drawn(members: int) -> base.Scores:
    tasks = rng.uniform(size=(members, len(prepared.setup.tasks)))
    tasks = tasks.astype(np.float32)
    return base.Scores(tasks.mean(axis=1), tasks)

  key = jax.random.key(0)
  state = strategy.init(key, population, drawn(size), params)
  seconds, scored = [], []
  for _ in range(2 + _ROUNDS.value):
    start = time.perf_counter()
    members, state = strategy.ask(key, state, params)
    jax.block_until_ready((members, state))
    asked = time.perf_counter() - start
    scored.append(int(state.proposal.filled.sum()))
    scores = drawn(strategy.num_proposals)
    start = time.perf_counter()
    state = jax.block_until_ready(
      strategy.tell(key, members, scores, state, params)
    )
    seconds.append((asked, time.perf_counter() - start))
  ask, tell = np.mean(seconds[2:], axis=0).tolist()
  # A grid that has come to its end proposes nothing.
  members = float(np.mean([count for count in scored if count]))
  score = members * scoring[config.space]
  return {
    'strategy': config.strategy.name,
    'preset': preset,
    'space': config.space,
    'members': members,
    'ask': ask,
    'tell': tell,
    'score': score,
    'share': (ask + tell) / (ask + tell + score),
  }


def markdown(result: dict) -> str:
  """Returns the table of a result, what misses its bound in bold."""
  lines = tables.heading(result, 'Strategies beside the scoring of members')
  lines += [
    '| strategy | space | members | ask ms | tell ms | scoring ms | share |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in result['rows']:
    share = f'{row["share"]:.2%}'
    if row['share'] > _MOST.get(row['strategy'], _MOST_OF_OTHERS):
      share = f'**{share}**'
    times = (f'{1e3 * row[name]:,.1f}' for name in ('ask', 'tell', 'score'))
    lines.append(
      f'| `{row["preset"]}` | {row["space"]} | {row["members"]:.1f} '
      f'| {" | ".join(times)} | {share} |'
    )
  return '\n'.join([*lines, ''])


def main(_: Sequence[str]) -> None:
  cache, scoring, rows = {}, {}, []
  for preset in _PRESETS.value or one_of_every_strategy():
    rows.append(measure(preset, cache, scoring))
    result = {
      'note': _NOTE.value,
      **tables.of_program('benchmark_strategies'),
      'rows': rows,
    }
    if _OUT.value:  # Each time: a run that is stopped leaves what it has.
      tables.write(result, markdown(result), _OUT.value)
  print(markdown(result))


if __name__ == '__main__':
  command.launch(main, quiet=False)
