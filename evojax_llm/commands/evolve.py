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


def main(_: Sequence[str]) -> int | None:
  config = RunConfig.from_config(settings.load(_of_workdir()))
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

  _check_hosts(config)
  if config.seeds > 1:
    trials = sweep_changes.trials(config)
    return sweeps.sweep(
      trials, command.new_workdir(sweeps.name_of(trials))
    ).show()
  prepared = launch.prepare(config, files)
  workdir = command.new_workdir(prepared.name)
  final_table.show(launch.run_prepared(prepared, workdir))
  return None


def _check_hosts(config: RunConfig) -> None:
  """Refuses what several hosts cannot do together."""
  from evojax_llm.population import hosts

  if not hosts.several():
    return
  for name, value, wanted in (
    ('seeds', config.seeds, 1),
    ('execution.population', config.execution.population, 'device'),
  ):
    if value not in (wanted, 'auto'):
      raise command.UserError(
        f'Got config.{name} {value} on several hosts; expected {wanted}.'
      )


def _of_workdir() -> str | None:
  """The settings of the run in --workdir, where --config names no others."""
  workdir = flags.FLAGS.workdir
  if not workdir or flags.FLAGS['config'].present:
    return None
  path = pathlib.Path(os.path.expanduser(workdir)) / 'config.json'
  return str(path) if path.is_file() else None
