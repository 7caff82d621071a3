r"""Evolves a population of adapters, or of merges of them, on tasks.

  evojax-llm evolve
  evojax-llm evolve --workdir=runs/a --config.strategy.population=40
  evojax-llm evolve --config=genome_as_published \
      --config.model=/models/gemma-2-2b-it \
      --config.adapters=/experts/code,/experts/cot \
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

Without flags: GENOME+ on the pocket model and its experts. --config names a
file with all settings, and --config.x=... changes one of them.

The run folder (a new one below runs/ without --workdir) gets config.json,
metrics.jsonl, members.jsonl, items/, checkpoints/ and, at the end, best/ (a
PEFT adapter), summary.json, summary.md and curve.png. A run that was
interrupted, at whatever moment, goes on when the same command is given with the
same --workdir, or --workdir alone, and ends as it would have. With more
--config.strategy.generations or evaluations it goes on to there, also where it
had ended.

config.stages names several searches, each of which begins from the best of the
one before; each has a run folder of its own in stages/.

--dry_run compiles what a run would compile, for shapes alone, says what it
takes of the memory of each device, and ends. --config.model is then a folder,
of which config.json is read, or the name of a published model:

  evojax-llm evolve --dry_run --platform=gpu --config=genome_plus \
      --config.model=gemma-2-2b --config.execution.dtype=bfloat16 \
      --config.strategy.population=40 --config.execution.memory_budget_gib=24

The search sees the tasks' dev items. The test items are read once, at the end,
for the best member by dev and for the baselines.
"""

from collections.abc import Sequence
import os
import pathlib

from absl import flags

from evojax_llm.commands import command
from evojax_llm.commands import settings
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import stages
from evojax_llm.runs.run_config import RunConfig

settings.define()
flags.DEFINE_string('workdir', None, 'Run folder, new or to go on with.')
command.define_hosts()
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Say what it takes of memory, and end.'
)
_DEVICES = flags.DEFINE_integer(
  'devices', 1, 'Of --dry_run: that members are spread over.', lower_bound=1
)
_PLATFORM = flags.DEFINE_enum(
  'platform', None, ['cpu', 'gpu', 'tpu'], 'Of --dry_run: of these devices.'
)
_RANK = flags.DEFINE_integer(
  'rank', 8, 'Of --dry_run: of adapters that are not there.', lower_bound=1
)
_HOST = flags.DEFINE_float(
  'host_gib', None, 'Of --dry_run: memory of the host.', lower_bound=0
)


def main(_: Sequence[str]) -> int | None:
  config = RunConfig.from_config(settings.load(_of_workdir()))
  if _DRY_RUN.value:
    return _dry_run(config)
  files = inputs_lib.locate(config)
  searches = stages.split(config)
  largest = max(one.config.strategy.population for one in searches)
  command.use_cores(files.model, largest)
  with command.joined():
    return _run(config, files)


def _run(config: RunConfig, files: inputs_lib.Files) -> int | None:
  # Only now, so that --help and misspelt names are answered at once.
  from evojax_llm.runs import final_table
  from evojax_llm.runs import launch
  from evojax_llm.runs import sweep_changes
  from evojax_llm.runs import sweeps

  _check_hosts(config, files)
  if config.seeds > 1:
    trials = sweep_changes.trials(config)
    return sweeps.sweep(
      trials, command.new_workdir(sweeps.name_of(trials))
    ).show()
  prepared = launch.prepare(config, files)
  command.check_hosts((*prepared.setup.tasks, *prepared.setup.heldout))
  workdir = command.new_workdir(prepared.name)
  final_table.show(launch.run_prepared(prepared, workdir))
  return None


def _check_hosts(config: RunConfig, files: inputs_lib.Files) -> None:
  """Refuses what several hosts cannot do together."""
  from evojax_llm.population import hosts

  if not hosts.several():
    return
  read = files.model, *files.adapters, *files.experts
  command.check_same(config.to_dict(), [*read, *files.tasks, *files.heldout])
  for name, value, wanted in (
    ('seeds', config.seeds, 1),
    ('execution.population', config.execution.population, 'device'),
  ):
    if value not in (wanted, 'auto'):
      raise command.UserError(
        f'Got config.{name} {value} on several hosts; expected {wanted}. Leave '
        f'out --config.{name}, or --coordinator to search on one host.'
      )


def _dry_run(config: RunConfig) -> int:
  """Says what a run takes; returns 1 where that does not fit."""
  from evojax_llm.runs import dry_run

  host = None if _HOST.value is None else int(_HOST.value * (1 << 30))
  machine = dry_run.Machine(_DEVICES.value, _PLATFORM.value, _RANK.value, host)
  text, possible = dry_run.dry_run(config, machine)
  print(text)
  return None if possible else 1


def _of_workdir() -> str | None:
  """The settings of the run in --workdir, where --config names no others."""
  if not (workdir := flags.FLAGS.workdir):
    return None
  path = pathlib.Path(os.path.expanduser(workdir))
  if path.exists() and not path.is_dir():
    raise command.UserError(
      f'--workdir={workdir} is a file; expected a run folder, or a new one.'
    )
  path /= 'config.json'
  given = flags.FLAGS['config'].present
  return str(path) if path.is_file() and not given else None
