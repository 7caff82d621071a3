r"""Compares searches with each other and with plain baselines.

  evojax-llm compare --seeds=5 --draws=3 --out=runs/compare
  evojax-llm compare --configs=genome,cma_es --evaluations=260 \
      --populations=10,20,40 --stages=sor,main,main+second --out=DIR

A comparison is a sweep over configurations: every search runs once for each
stage (tasks that are searched on together), draw of dev items, size of the
population and seed, in a run folder STAGE/draw_N/NAME/seed_N below --out. One
process compiles once a stage, and baselines are scored once a stage and draw. A
search scores exactly --evaluations members (the stages of a run that has some
share them in proportion to theirs), each on the same items: what its
last generation has beyond that counts as failed. One that ends with its last
population (keep_best=False) ends before a generation for which too few are
left. Its best member by dev is scored on test, and so is the vote of its best
members, whose number dev chooses. The first configuration gives model, experts,
items and, without --stages, tasks; --config.NAME=VALUE changes a setting of all
configurations, as in

  evojax-llm compare --config.model=/models/gemma-2-2b-it \
      --config.adapters=/experts/code,/experts/cot \
      --config.tasks=mmlu.json --config.dev_limit=100 --out=DIR

Writes comparison.json and comparison.md after each run: scores, and differences
of paired runs with intervals. At the end there are curves of the best fitness
by evaluations. A comparison that was stopped goes on when the command is given
again; more seeds, draws, sizes, stages or configurations may be asked for then.
--workers=N shares the runs of a stage among N processes.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import re
import statistics
import sys
import time
from typing import Any

from absl import flags

from evojax_llm.commands import command
from evojax_llm.commands import settings
from evojax_llm.runs import errors
from evojax_llm.runs import fields
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import run_config
from evojax_llm.runs import stages as stages_lib
from evojax_llm.runs import sweep_changes
from evojax_llm.tasks import tables

_ROUNDS = 10
# Settings that a comparison has flags for.
_OWN = {'seed': 'seeds', 'seeds': 'seeds', 'dev_draw': 'draws'}
_ENDS = 'evaluations', 'generations', 'patience'
_OWN |= dict.fromkeys((f'strategy.{end}' for end in _ENDS), 'evaluations')
settings.define_changes()
_CONFIGS = flags.DEFINE_list(
  'configs',
  'pocket,pocket:adapters,model_swarms,cma_es,random_search',
  'Configurations: presets by name, or files as for --config of evolve.',
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
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Processes; on one GPU, XLA_PYTHON_CLIENT_MEM_FRACTION each.', 1
)
# Flags that are settings of all configurations.
_SETTINGS = {
  'heldout_tasks': flags.DEFINE_string(
    'heldout', None, 'Tasks that no search sees; as --config.heldout_tasks.'
  ),
  'ensemble.size': flags.DEFINE_integer(
    'ensemble', None, 'Members that vote at most; as --config.ensemble.size.', 0
  ),
  'dev_limit': flags.DEFINE_integer(
    'dev_limit', None, 'Dev items of a task; as --config.dev_limit.', 1
  ),
  'test_limit': flags.DEFINE_integer(
    'test_limit', None, 'Test items of a task; as --config.test_limit.', 1
  ),
}
_OUT = flags.DEFINE_string(
  'out', None, 'Folder, new or of a comparison to go on with.', required=True
)


def main(_: Sequence[str]) -> int | None:
  for change in flags.FLAGS.setting:
    field = change.partition('=')[0]
    if field in _OWN:
      raise command.UserError(
        f'Got --config.{field}; expected --{_OWN[field]}, which decides it in '
        'a comparison.'
      )
  configs = [_read_config(source) for source in _CONFIGS.value]
  if staged := [c.name for c in configs if c.stages and _POPULATIONS.value]:
    raise command.UserError(
      f'--populations is of one search, and {staged[0]} has several stages: '
      'leave it out, or compare without that configuration.'
    )
  for size in _POPULATIONS.value or ():
    if not size.isdigit() or int(size) < 1:
      raise command.UserError(
        f'--populations has {size!r}; expected sizes such as 10,20,40.'
      )
  arms = {}
  for config in configs:
    for size in _POPULATIONS.value or [config.strategy.population]:
      name = config.name + (f' P={int(size)}' if _POPULATIONS.value else '')
      if name in arms:
        raise command.UserError(f'--configs names {config.name!r} twice.')
      arms[name] = config.copy_and_resolve_references()
      arms[name].strategy.population = int(size)
  trials: dict[str, list[Any]] = {}
  for stage, tasks in _stages(configs[0]).items():
    trials[stage] = [
      _trial(configs[0], tasks, stage, draw, name, arm, seed)
      for draw in range(_DRAWS.value)
      for name, arm in arms.items()
      for seed in range(_SEEDS.value)
    ]
    for trial in trials[stage]:
      inputs_lib.locate(trial.config)

  # Only now, so that --help and misspelt names are answered at once.
  from evojax_llm.runs import comparison_table
  from evojax_llm.runs import sweeps

  heldout = _SETTINGS['heldout_tasks'].value
  fixed = {
    'evaluations': _EVALUATIONS.value,
    'heldout': heldout and heldout.split(','),
    'ensemble': configs[0].ensemble.size,
    'dev_limit': configs[0].dev_limit,
    'test_limit': configs[0].test_limit,
  }
  everything = [trial for of_stage in trials.values() for trial in of_stage]
  with contextlib.closing(
    sweeps.Folder(_OUT.value, everything, fixed)
  ) as folder:
    shape = f'{len(arms)} searches x {len(trials)} stages x '
    shape += f'{_DRAWS.value} draws x {_SEEDS.value} seeds'
    outlook = _Outlook(folder, shape)
    for of_stage in trials.values():
      cache = {}
      _check(folder, of_stage, cache)
      folder.keep()
      try:
        folder.run(of_stage, _WORKERS.value, done=outlook.ended, cache=cache)
      finally:
        _write(folder)  # Also of workers that were stopped.
    if rows := _write(folder, pictures=True):
      print(comparison_table.markdown(rows))
      command.say(f'report: {folder.path / "comparison.md"}')
    failed = 0
    for trial in everything:
      if error := folder.error(trial.name):
        command.say(f'{trial.name} failed: {error}')
        failed = 1
  return failed


class _Outlook:
  """Says what came of a run, how many are to come, and how long they take."""

  def __init__(self, folder: Any, shape: str):
    self._folder, self._since = folder, time.monotonic()
    self._seconds: list[float] = []
    finished = [folder.summary(name) is not None for name in folder.trials]
    self._left = finished.count(False)
    command.say(
      f'{shape}: {len(finished)} runs of {_EVALUATIONS.value} evaluations, '
      f'{self._left} of them to come; how long is said after the first'
    )

  def ended(self, name: str) -> None:
    """Is called after a run."""
    from evojax_llm.runs import progress

    _write(self._folder, name)
    now = time.monotonic()
    self._seconds.append(now - self._since)
    self._since, self._left = now, self._left - 1
    # The first one compiles for all others.
    each = statistics.mean(self._seconds[1:] or self._seconds)
    command.say(
      f'{self._left} runs to come, about {progress.clock(each * self._left)}'
    )


def _stages(first: Any) -> dict[str, str]:
  """Tasks of every stage by its name, in which files are without folders."""
  given = [tasks.split('+') for tasks in _STAGES.value or ()]
  given = given or [inputs_lib.names(first.tasks)]
  names = [
    '+'.join(tables.stem(pathlib.Path(task)) for task in tasks)
    for tasks in given
  ]
  if len({*names}) < len(names):  # Of files in several folders.
    names = ['+'.join(tasks) for tasks in given]
  return dict(zip(names, map(','.join, given), strict=True))


def _trial(
  first: Any, tasks: str, stage: str, draw: int, name: str, arm: Any, seed: int
) -> Any:
  """A search on the data of the first configuration."""
  config = first.copy_and_resolve_references()
  config.tasks = tasks
  fields = (
    'space',
    'merged',
    'layer_path',
    'seeded',
    'pareto',
    'initial',
    'refine',
    'checkpoint_every',
  )
  for field in fields:
    config[field] = arm[field]
  config.name = name
  config.seed, config.seeds, config.dev_draw = seed, 1, draw
  config.strategy = arm.strategy.copy_and_resolve_references()
  config.strategy.patience = None
  with config.unlocked():
    config.strategy.evaluations = _EVALUATIONS.value
  # A search that proposes no member any more spends nothing and must end.
  config.strategy.generations = _ROUNDS * _EVALUATIONS.value
  read = run_config.RunConfig.from_config(arm)
  with errors.as_user_error(ValueError, what=name):
    config.stages = stages_lib.divide(
      read, _EVALUATIONS.value, config.strategy.generations
    )
  changes = {'stage': stage, 'draw': draw, 'arm': name, 'seed': seed}
  parts = stage, f'draw_{draw}', name, f'seed_{seed}'
  path = '/'.join(re.sub(r'[^\w.,+=-]+', '_', part) for part in parts)
  return sweep_changes.Trial(
    path, run_config.RunConfig.from_config(config), changes
  )


def _check(folder: Any, trials: Sequence[Any], cache: dict[Any, Any]) -> None:
  """Refuses what cannot begin before any search of a stage has run."""
  from evojax_llm.runs import launch

  first = {}
  for trial in trials:
    if folder.summary(trial.name) is None:
      first.setdefault(trial.changes['arm'], trial)
  for number, (arm, trial) in enumerate(first.items(), 1):
    stage = trial.changes['stage']
    command.say(
      f'{stage}: reading and planning for {arm}, {number} of {len(first)}'
    )
    try:
      prepared = launch.prepare(trial.config, cache=cache)
    except ValueError as error:
      raise command.UserError(f'{arm}: {error}') from error
    if not all(task.test for task in prepared.setup.tasks):
      raise command.UserError(f'{trial.config.tasks}: a task has no test items')
    evaluator = prepared.evaluator
    drawn = [evaluator.redraw(n).items('dev') for n in range(_DRAWS.value)]
    if _DRAWS.value > 1 and all(items == drawn[0] for items in drawn):
      raise command.UserError(
        f'--draws={_DRAWS.value} of {stage} are all the same, '
        'as a draw has all dev items: ask for fewer items with --dev_limit, or '
        'for one draw.'
      )


def _write(
  folder: Any, ended: str | None = None, pictures: bool = False
) -> list[dict[str, Any]]:
  """Writes the table of all finished runs; says what came of one that ended."""
  from evojax_llm.runs import comparison_table
  from evojax_llm.runs import record
  from evojax_llm.runs import report

  rows, scored, finished = [], set(), {}
  for name, trial in folder.trials.items():
    if summary := folder.summary(name):
      more = comparison_table.rows(trial.changes, summary, scored)
      rows += more
      finished[name] = trial.changes
      for row in more if name == ended else ():
        seed = '' if row['seed'] is None else f' seed {row["seed"]}'
        dev, test = (
          'failed'
          if row[split] is None
          else report.number(row[split], row['percent']['fitness'])
          for split in ('dev', 'test')
        )
        command.say(
          f'{row["stage"]} draw {row["draw"]}{seed} {row["name"]}: '
          f'dev {dev} test {test}'
        )
  if rows:
    path, parts = folder.path, [comparison_table.markdown(rows)]
    if pictures:
      names = comparison_table.draw(path, rows, finished)
      parts += [f'![best fitness by evaluations]({name})' for name in names]
    line = ' '.join(['evojax-llm compare', *sys.argv[1:]])
    record.write_json(path / 'comparison.json', {'command': line, 'rows': rows})
    record.write_text(path / 'comparison.md', '\n\n'.join(parts) + '\n')
  return rows


def _read_config(source: str) -> Any:
  """A configuration from 'file' or 'file:argument', with our overrides."""
  config = settings.load(source)
  for name in ('racing', 'estimate', 'resample', 'warm_start'):
    if config[name].rule if name in ('racing', 'estimate') else config[name]:
      raise command.UserError(
        f'--configs={source} sets config.{name}, which has no part in a '
        'comparison: all searches score their members on the same items, and '
        'begin alike.'
      )
  for field, flag in _SETTINGS.items():
    if flag.value is not None:
      fields.set_value(config, field, flag.value)
  return config
