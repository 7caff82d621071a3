r"""Runs a search with many settings, and writes one table over all of them.

  evojax-llm sweep --workdir=runs/sigmas \
      --sweep='strategy.options.sigma=0.01,0.1,1;seed=0..4'
  evojax-llm sweep --config=my_sweep.py --workdir=runs/a --workers=4
  evojax-llm sweep --config=my_sweep.py --workdir=runs/a \
      --workers=8 --slurm --slurm_partition=gpu --slurm_gpus=1

--config and --config.x=... are those of experiments.evolve. --sweep combines
every value of a field with every value of the others; a function `sweep()` in
the configuration file returns changes in its place, made with
evojax_llm.runs.sweep_changes: products, zips, chains, random draws.

Each trial is a run folder below --workdir, such as sigma=0.1,seed=3, and
resumes by itself: a sweep that was interrupted goes on when the same command is
given again, and other trials may join it. Trials that differ in seeds and
numbers of a strategy share compiled programs. A trial that fails does not stop
the others: error.txt in its folder says why, and it is tried again when the
sweep goes on. --workers=N shares the trials among N processes, or, with
--slurm, among N jobs (pip install "evojax_llm[slurm]").

Ends with summary.md (means over seeds, their spread and the best by dev, beside
the baselines), summary.json, and a picture: a line for one swept field, a heat
map for each two of several.
"""

from collections.abc import Sequence

from absl import flags

from evojax_llm import systems
from evojax_llm.commands import command
from evojax_llm.commands import settings
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import sweep_changes
from evojax_llm.runs.errors import as_user_error

settings.define()
_SWEEP = flags.DEFINE_string(
  'sweep', None, "Values by field: 'field=1,2,3;other=0..4'."
)
flags.DEFINE_string(
  'workdir', None, 'Folder of the sweep, new or to go on with.'
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'Processes, or jobs.', 1)
_SLURM = flags.DEFINE_boolean('slurm', False, 'Submit jobs to Slurm.')
_OPTIONS = {
  'slurm_partition': flags.DEFINE_string('slurm_partition', None, 'Of a job.'),
  'slurm_account': flags.DEFINE_string('slurm_account', None, 'Of a job.'),
  'timeout_min': flags.DEFINE_integer(
    'slurm_time', None, 'Minutes of a job; 240.'
  ),
  'gpus_per_node': flags.DEFINE_integer('slurm_gpus', None, 'Of a job.'),
  'cpus_per_task': flags.DEFINE_integer('slurm_cpus', None, 'Of a job.'),
  'mem_gb': flags.DEFINE_integer('slurm_memory', None, 'GiB of a job.'),
}


def main(_: Sequence[str]) -> int | None:
  config = settings.load()
  trials = sweep_changes.trials(config, _changes(config))
  files = inputs_lib.locate(trials[0].config)
  options = {k: f.value for k, f in _OPTIONS.items() if f.value is not None}
  if options and not _SLURM.value:
    raise command.UserError('Options of jobs need --slurm.')
  if _WORKERS.value == 1:
    largest = max(trial.config.strategy.population for trial in trials)
    command.use_cores(files.model, largest)

  # Only now, so that --help and misspelt names are answered at once.
  from evojax_llm.runs import sweeps

  result = sweeps.sweep(
    trials,
    command.new_workdir(sweeps.name_of(trials)),
    workers=_WORKERS.value,
    slurm=options if _SLURM.value else None,
  )
  return result.show()


def _changes(config):
  """What --sweep or the configuration's file says."""
  if _SWEEP.value is not None:
    return sweep_changes.parse(_SWEEP.value, config)
  source = flags.FLAGS.config
  path = source.partition(':')[0]
  if path.endswith('.py') and hasattr(systems.of_file(path), 'sweep'):
    with as_user_error(Exception, what=f'sweep() of {path}'):
      return list(systems.of_file(path).sweep())
  if config.seeds > 1:
    return [{}]
  raise command.UserError(
    f"Got neither --sweep='field=1,2,3' nor a function sweep() in {source}; "
    'expected one of them.'
  )
