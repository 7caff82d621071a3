"""Many runs and one table over their summaries.

    changes = sweep_changes.parse('dev_limit=20,50;seed=0..4', config)
    trials = sweep_changes.trials(config, changes)
    print(runs.sweep(trials, 'runs/limits').table)

Each trial is a run with a folder of its own and resumes by itself; sweep.json
lists them all. A trial that failed leaves error.txt in its folder, and is tried
again when the sweep goes on. Trials that differ in seeds and array-valued
hyperparameters share compiled programs within a process, those on the same
experts and items the baselines' scores.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import traceback
from typing import Any

from evojax_llm.runs import checkpoint
from evojax_llm.runs import differences
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import launch
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import stages
from evojax_llm.runs import sweep_changes
from evojax_llm.runs import sweep_report
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.runs.sweep_changes import Trial

_INDEX, _ERROR = 'sweep.json', 'error.txt'
# Of a job where nothing is said; submitit's own five are too few.
_MINUTES = 240


@dataclasses.dataclass(frozen=True)
class Result:
  """A sweep that is over."""

  path: pathlib.Path  # its folder
  summary: dict[str, Any]  # of summary.json; see `sweep_report.write`

  @property
  def table(self) -> str:
    """The settings with mean and spread, and the baselines, as Markdown."""
    return sweep_report.table(self.summary)

  @property
  def finished(self) -> bool:
    """Whether every trial has a result."""
    return all(t['status'] == 'finished' for t in self.summary['trials'])

  def show(self) -> int:
    """Prints the table; returns the exit code of a command."""
    print(f'{self.table}\n\nreport: {self.path / "summary.md"}')
    return 0 if self.finished else 1


def sweep(
  configs: Any,
  workdir: str | os.PathLike | None = None,
  *,
  workers: int = 1,
  slurm: Mapping[str, Any] | None = None,
) -> Result:
  """Runs trials, or goes on with them, and writes a table over all of them.

  Args:
    configs: what `sweep_changes.as_trials` takes: trials, configurations, or
      configurations by name.
    workdir: folder of the sweep, new or to go on with, where trials may join
      those that are there; a new one in runs/ by default.
    workers: processes, each with a share of the trials.
    slurm: jobs in place of processes: what submitit's `update_parameters`
      takes, such as {'timeout_min': 60, 'slurm_partition': 'gpu'}; 'cluster'
      names another executor than 'slurm'.

  Raises:
    UserError: there is no trial, a name or value of one cannot be, or the
      folder is in use or not of such a sweep. A trial that fails is no error:
      see the table.
  """
  trials = sweep_changes.as_trials(configs)
  if not trials:
    raise errors.UserError('Got no trials; expected one configuration or more.')
  for trial in trials:
    with errors.as_user_error(ValueError, what=trial.name):
      inputs_lib.locate(trial.config)
  if workdir is None:
    workdir = record.new_workdir('runs', name_of(trials))
  with contextlib.closing(Folder(workdir, trials)) as folder:
    folder.keep()
    folder.run(
      trials,
      workers,
      slurm,
      done=lambda _: sweep_report.write(folder, pictures=False),
    )
    return Result(folder.path, sweep_report.write(folder))


def name_of(trials: Sequence[Trial]) -> str:
  """Returns the name of a sweep's folder where none is given."""
  config = trials[0].config
  return f'sweep_{config.name or config.strategy.name}'


class Folder:
  """The folder of a sweep, held by one process and its workers until `close`.

  `trials` are in it or join those that are, which come first; `settings`, of
  JSON types, must not change between commands.

  Raises:
    UserError: it is in use, cannot be made, or is not of such a sweep.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    trials: Iterable[Trial],
    settings: Mapping[str, Any] | None = None,
  ):
    self.path = pathlib.Path(path).absolute()
    self.trials: dict[str, Trial] = {}
    self._settings = record.plain(settings or {})
    index = self.path / _INDEX
    with errors.as_user_error(OSError):
      self.path.mkdir(parents=True, exist_ok=True)
      held = {file.name for file in self.path.iterdir()} - {'lock'}
      if held and not index.exists():
        raise errors.UserError(
          f'{path} is not empty and not the folder of a sweep; name a new one.'
        )
      self._lock = checkpoint.WorkdirLock(self.path)
    try:
      if index.exists():
        there, self.trials = _read(self.path)
        self._refuse(differences.compare(there, self._settings))
      for trial in trials:
        other = self.trials.setdefault(trial.name, trial)
        self._refuse(sweep_changes.conflicts(other, trial))
        first = next(iter(self.trials.values()))
        self._refuse(sweep_changes.conflicts(first, trial))
    except BaseException:
      self.close()
      raise

  def _refuse(self, differences: Sequence[str]) -> None:
    if differences:
      shown = '\n  '.join(differences[:12])
      raise errors.UserError(
        f'{self.path} is of a sweep with other settings:\n  {shown}\nName a '
        'new folder, or give the same settings to go on.'
      )

  def keep(self) -> None:
    """Writes sweep.json; what is refused before leaves none."""
    trials = {
      name: {'changes': trial.changes, 'config': trial.config.to_dict()}
      for name, trial in self.trials.items()
    }
    index = {'settings': self._settings, 'trials': trials}
    record.write_json(self.path / _INDEX, index)

  def close(self) -> None:
    """Lets other processes in."""
    self._lock.release()

  def summary(self, name: str) -> dict[str, Any] | None:
    """The summary of a trial; None where it is not finished."""
    return record.read_summary(self.path / name)

  def error(self, name: str) -> str | None:
    """Why a trial failed, in a line; None where it did not."""
    path = self.path / name / _ERROR
    return path.read_text().splitlines()[0] if path.exists() else None

  def run(
    self,
    trials: Iterable[Trial],
    workers: int = 1,
    slurm: Mapping[str, Any] | None = None,
    *,
    done: Callable[[str], None] = lambda name: None,
    cache: dict[Any, Any] | None = None,
  ) -> None:
    """Runs those trials that are not finished.

    Args:
      trials: of the folder.
      workers, slurm: see `sweep`.
      done: called with its name after each trial that this process ran.
      cache: see `preparation.prepare`.
    """
    # By their data, then by their programs, in the order of the first of them.
    shared: dict[str, dict[str, list[str]]] = {}
    for trial in trials:
      if self.summary(trial.name) is None:
        same = shared.setdefault(_key(trial.config), {})
        same.setdefault(_programs(trial.config), []).append(trial.name)
    left = [
      n for same in shared.values() for names in same.values() for n in names
    ]
    workers = min(workers, len(left))
    # Neighbours share programs, so a worker's share is in one piece.
    shares = [
      left[len(left) * i // workers : len(left) * (i + 1) // workers]
      for i in range(workers)
    ]
    if not left:
      errors.say(f'all trials of {self.path} are finished')
    elif slurm is not None:
      _submit(self.path, shares, slurm)
    elif workers > 1:
      _start(self.path, shares)
    else:
      run_trials(self.path, left, self.trials, done, cache)


def run_trials(
  path: str | os.PathLike,
  names: Sequence[str],
  known: Mapping[str, Trial] | None = None,
  done: Callable[[str], None] = lambda name: None,
  cache: dict[Any, Any] | None = None,
) -> None:
  """Runs trials of a sweep's folder one after another in this process.

  All trials by name are read from the folder by default; see `Folder.run` for
  the rest.
  """
  path = pathlib.Path(path)
  known = _read(path)[1] if known is None else known
  cache, data = {} if cache is None else cache, None
  for name in names:
    other = _key(known[name].config, 'dev_draw')
    if data not in (None, other):
      cache.clear()  # other models or items need the memory
    data = other
    _run(path, known[name], known, cache)
    done(name)


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Trial]]:
  """The settings and, by name, the trials of a sweep's folder."""
  index = record.read_json(path / _INDEX)
  return index['settings'], {
    name: Trial(name, RunConfig.from_config(one['config']), one['changes'])
    for name, one in index['trials'].items()
  }


def _programs(config: RunConfig) -> str:
  """What else the programs of a search are made from."""
  config = stages.split(config)[0].config
  strategy = config.strategy
  # Numbers of a strategy that are no integers are arrays of its programs.
  options = sorted(
    (name, value)
    for name, value in strategy.options.items()
    if not isinstance(value, float)
  )
  told = inputs_lib.space_options(config)
  return repr((config.space, told, strategy.name, strategy.population, options))


def _key(config: RunConfig, *more: str) -> str:
  """What a configuration says of what its trials share."""
  config = stages.split(config)[0].config
  # Plain mixes are the same ones, whatever evolves over a base.
  shares_base = inputs_lib.space_class(config).shares_base
  return f'{shares_base} {preparation.data_key(config, "space", *more)}'


def _run(
  path: pathlib.Path,
  trial: Trial,
  known: Mapping[str, Trial],
  cache: dict[Any, Any],
) -> None:
  """Runs one trial; an error is kept in its folder."""
  folder = path / trial.name
  if record.read_summary(folder) is not None:
    return
  errors.say(f'trial {trial.name}')
  try:
    prepared = launch.prepare(trial.config, cache=cache)
    launch.run_prepared(prepared, folder, share=_scored(path, trial, known))
    (folder / _ERROR).unlink(missing_ok=True)
  except Exception as error:  # pylint: disable=broad-exception-caught
    if errors.cannot_write(error):
      raise
    if isinstance(error, errors.InUseError):
      errors.say(f'{trial.name} is run by another process')
      return
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    errors.say(f'{trial.name} failed: {text}')
    details = (
      '' if isinstance(error, errors.UserError) else traceback.format_exc()
    )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(folder / _ERROR, f'{text}\n{details}')


def _scored(
  path: pathlib.Path, trial: Trial, known: Mapping[str, Trial]
) -> pathlib.Path | None:
  """The folder of a trial that has scored this one's baselines, if any."""
  wanted = _key(trial.config)
  for other in (trial, *known.values()):
    folder = path / other.name / stages.split(other.config)[0].folder
    if (folder / 'baselines.json').exists() and _key(other.config) == wanted:
      return None if other is trial else folder
  return None


def _start(path: pathlib.Path, shares: Sequence[Sequence[str]]) -> None:
  """Runs shares of the trials in processes, each on GPUs of its own."""
  code = (
    'import sys; from evojax_llm.runs import sweeps; '
    'sweeps.run_trials(sys.argv[1], sys.argv[2:])'
  )
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  gpus = [gpu for gpu in visible.split(',') if gpu]
  driver = pathlib.Path('/proc/driver/nvidia/gpus')
  if not gpus and driver.is_dir():
    gpus = [str(i) for i, _ in enumerate(driver.iterdir())]
  started: list[subprocess.Popen] = []
  try:
    for i, share in enumerate(shares):
      env = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
      if gpus:
        own = gpus[i :: len(shares)] or [gpus[i % len(gpus)]]
        env['CUDA_VISIBLE_DEVICES'] = ','.join(own)
      command = [sys.executable, '-c', code, str(path), *share]
      started.append(subprocess.Popen(command, env=env))
    for worker in started:
      if worker.wait():
        errors.say(f'a worker ended with exit code {worker.returncode}')
  finally:
    for worker in started:
      if worker.poll() is None:
        worker.terminate()
        worker.wait()


def _submit(
  path: pathlib.Path,
  shares: Sequence[Sequence[str]],
  options: Mapping[str, Any],
) -> None:
  """Runs shares of the trials as jobs, with logs in jobs/, and waits for them.

  Raises:
    UserError: submitit is not installed, or refuses the options.
  """
  try:
    import submitit
  except ImportError as error:
    raise errors.UserError(
      'Jobs need submitit: pip install "evojax_llm[slurm]".'
    ) from error
  options = {'timeout_min': _MINUTES, **options}
  cluster = options.pop('cluster', 'slurm')
  refused = NameError, RuntimeError, TypeError, ValueError
  with errors.as_user_error(*refused, what='jobs'):
    executor = submitit.AutoExecutor(folder=path / 'jobs', cluster=cluster)
    executor.update_parameters(name=path.name, **options)
    with executor.batch():
      jobs = [executor.submit(run_trials, str(path), s) for s in shares]
  errors.say(f'{len(jobs)} jobs, with logs in {path / "jobs"}')
  for job in jobs:
    try:
      job.result()
    except Exception as error:  # pylint: disable=broad-exception-caught
      errors.say(f'job {job.job_id} failed: {str(error).splitlines()[-1]}')
