r"""Compares searches with each other and with plain baselines.

  python -m experiments.compare --seeds=5 --draws=3 --out=runs/compare
  python -m experiments.compare --configs=experiments/genome/config.py:genome,\
experiments/coefficients/config.py --evaluations=260 --populations=10,20,40 \
      --stages=sor,main,main+second --heldout=prompt --out=DIR

Every search runs once for each stage (tasks that are searched on together),
draw of dev items, size of the population and seed, in one process that compiles
once a stage. A search scores exactly --evaluations members, each on the same
items: what its last generation has beyond that counts as failed. One that ends
with its last population (keep_best=False) ends before a generation for which
too few are left. Its best member by dev is scored on test, and so is the vote
of its best members, whose number dev chooses. Nothing else is read. The first
configuration gives model, experts and, without --stages, tasks.

Writes parts.jsonl as it goes, and comparison.json and comparison.md after each
part. A comparison that was stopped goes on when the command is given again;
more seeds, draws, sizes, stages or configurations may be asked for then.
"""

from collections.abc import Sequence
import contextlib
import importlib.util
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags

from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.run_config import RunConfig
from experiments import command

_CONFIGS = flags.DEFINE_list(
  'configs',
  [
    'experiments/pocket/config.py',
    'experiments/pocket/config.py:adapters',
    'experiments/model_swarms/config.py',
    'experiments/coefficients/config.py:cma_es',
    'experiments/coefficients/config.py:random_search',
  ],
  'Configuration files, each with an argument after a colon or without.',
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of each search.', 1)
_DRAWS = flags.DEFINE_integer('draws', 3, 'Draws of dev items.', 1)
_EVALUATIONS = flags.DEFINE_integer(
  'evaluations', 200, 'Members that a search scores.', 1
)
_POPULATIONS = flags.DEFINE_list(
  'populations', None, "Sizes, in place of the configurations'."
)
_STAGES = flags.DEFINE_list(
  'stages', None, "Tasks of each, joined by '+'; the first configuration's."
)
_HELDOUT = flags.DEFINE_list(
  'heldout', None, 'Tasks that no search sees, scored at the end.'
)
_ENSEMBLE = flags.DEFINE_integer(
  'ensemble', 5, 'Members that vote at most; 0 for no vote.', 0
)
_DEV_LIMIT = flags.DEFINE_integer(
  'dev_limit', None, "Dev items of a task, in place of the configuration's.", 1
)
_TEST_LIMIT = flags.DEFINE_integer(
  'test_limit', None, 'Test items of a task.', 1
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder, new or of a comparison to go on with.', required=True
)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  configs = [_read_config(source) for source in _CONFIGS.value]
  sizes = [_size(value) for value in _POPULATIONS.value or ()]
  arms = {}
  for config in configs:
    for size in sizes or (config.strategy.population,):
      name = f'{config.name} P={size}' if sizes else config.name
      if name in arms:
        raise command.UserError(f'--configs names {config.name!r} twice.')
      arms[name] = config.copy_and_resolve_references()
      arms[name].strategy.population = size
  stages = _STAGES.value or [configs[0].tasks]
  for stage in stages:
    for arm in (configs[0], *arms.values()):
      inputs_lib.locate(RunConfig.from_config(_of_stage(arm, stage)))

  from evojax_llm.runs import comparison
  from evojax_llm.runs import contest as contest_lib
  from evojax_llm.runs import record
  from evojax_llm.runs import report

  out = pathlib.Path(_OUT.value)
  parts = comparison.Parts(
    out,
    {
      'evaluations': _EVALUATIONS.value,
      'heldout': _HELDOUT.value,
      'ensemble': _ENSEMBLE.value,
      'dev_limit': configs[0].dev_limit,
      'test_limit': configs[0].test_limit,
      'arms': {name: config.to_dict() for name, config in arms.items()},
    },
  )

  def add(part, rows):
    parts.add(part, rows)
    for row in rows:
      seed = '' if row['seed'] is None else f' seed {row["seed"]}'
      percent = row['percent']['fitness']
      dev, test = (report.number(row[at], percent) for at in ('dev', 'test'))
      command.say(
        f'{row["stage"]} draw {row["draw"]}{seed} {row["name"]}: '
        f'dev {dev} test {test}'
      )
    record.write_json(
      out / 'comparison.json',
      {
        'command': ' '.join(['python -m experiments.compare', *sys.argv[1:]]),
        'rows': parts.rows,
      },
    )
    record.write_text(
      out / 'comparison.md', comparison.markdown(parts.rows) + '\n'
    )

  with contextlib.closing(parts):
    for stage in stages:
      wanted = [
        (stage, draw, name, seed)
        for draw in range(_DRAWS.value)
        for name, seed in [
          ('', None),
          *((a, s) for a in arms for s in range(_SEEDS.value)),
        ]
        if (stage, draw, name, seed) not in parts
      ]
      if not wanted:
        continue
      contest = contest_lib.Contest(
        _of_stage(configs[0], stage),
        stage,
        arms,
        budget=_EVALUATIONS.value,
        ensemble=_ENSEMBLE.value,
      )
      contest.check_draws(_DRAWS.value)
      for part in wanted:
        _, draw, name, seed = part
        if seed is None:
          add(part, contest.baselines(draw))
        else:
          add(part, contest.search(draw, name, seed))
  print(comparison.markdown(parts.rows))


def _of_stage(config: Any, stage: str) -> Any:
  config = config.copy_and_resolve_references()
  config.tasks = ','.join(stage.split('+'))
  config.heldout_tasks = ','.join(_HELDOUT.value or ())
  return config


def _size(value: str) -> int:
  if not value.isdigit() or int(value) < 1:
    raise command.UserError(
      f'--populations has {value!r}; expected sizes such as 10,20,40.'
    )
  return int(value)


def _read_config(source: str) -> Any:
  """A configuration from 'file' or 'file:argument', with our overrides."""
  path, _, argument = source.partition(':')
  if not path.endswith('.py') or not pathlib.Path(path).is_file():
    raise command.UserError(f'--configs names {path}, which is no Python file.')
  spec = importlib.util.spec_from_file_location('_compared_config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
  except (
    AttributeError,
    ImportError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    raise command.UserError(f'--configs={source}: {error}') from error
  for name, value in (
    ('racing', config.racing.rule),
    ('resample', config.resample),
    ('warm_start', config.warm_start),
  ):
    if value:
      raise command.UserError(
        f'--configs={source} sets config.{name}, which has no part in a '
        'comparison: all searches score their members on the same items, and '
        'begin alike.'
      )
  if _DEV_LIMIT.value:
    config.dev_limit = _DEV_LIMIT.value
  if _TEST_LIMIT.value:
    config.test_limit = _TEST_LIMIT.value
  return config


if __name__ == '__main__':
  app.run(main)
