r"""Evolves a population of adapters, or of merges of them, on tasks.

  python -m experiments.evolve
  python -m experiments.evolve --workdir=runs/a --config.strategy.population=40
  python -m experiments.evolve \
      --config=experiments/genome/config.py:genome_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

Without flags: GENOME+ on the pocket model and its experts. --config names a
file with all settings, and --config.x=... changes one of them.

The run folder (a new one below runs/ without --workdir) gets config.json,
metrics.jsonl, members.jsonl, items/, checkpoints/ and, at the end, best/ (a
PEFT adapter), summary.json, summary.md and curve.png. A run that was
interrupted, at whatever moment, goes on when the same command is given with the
same --workdir, and ends as it would have.

The search sees the tasks' dev items. The test items are read once, at the end,
for the best member by dev and for the baselines.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging

from evojax_llm.commands import command
from evojax_llm.commands import settings
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.run_config import RunConfig

_CONFIG, _parse_flags = settings.define(
  pathlib.Path(__file__).parents[2] / 'experiments' / 'pocket' / 'config.py'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder, new or to go on with.'
)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  config = RunConfig.from_config(_CONFIG.value)
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step it takes
  files = inputs_lib.locate(config)
  command.use_cores(files.model, config.strategy.population)

  # Only now, so that --help and misspelt names are answered at once.
  from evojax_llm.runs import final_table
  from evojax_llm.runs import preparation
  from evojax_llm.runs import record
  from evojax_llm.runs import runner
  from evojax_llm.runs import sweeps

  prepared = preparation.prepare(config, files)
  workdir = _WORKDIR.value or record.new_workdir('runs', prepared.name)
  if config.seeds > 1:
    sweeps.run_seeds(prepared, workdir)
  else:
    final_table.show(runner.run_prepared(prepared, workdir))


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=_parse_flags)
  except KeyboardInterrupt:
    print('\nstopped; with --workdir the run goes on', file=sys.stderr)
    sys.exit(130)
