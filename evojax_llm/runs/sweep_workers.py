"""How the trials of a sweep are executed: here, in processes, or as jobs.

Trials that differ in seeds and array-valued hyperparameters share compiled
programs within a process. Trials on the same experts and items share the
baselines' scores.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import sys
import traceback
from typing import Any

from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import runner
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.runs.sweep_changes import Trial

INDEX, ERROR = 'sweep.json', 'error.txt'
# Of a job where nothing is said; submitit's own five are too few.
_MINUTES = 240
# What neither the baselines nor the data in memory depend on.
_OF_SEARCH = ('name', 'seed', 'seeds', 'initial', 'strategy', 'ensemble')
_OF_SEARCH += ('racing', 'resample', 'warm_start', 'test_experts', 'merged')


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Trial]]:
  """Reads the settings and, by name, the trials of a sweep's folder."""
  index = record.read_json(path / INDEX)
  return index['settings'], {
    name: Trial(name, RunConfig.from_config(one['config']), one['changes'])
    for name, one in index['trials'].items()
  }


def by_what_they_share(trials: Iterable[Trial]) -> list[Trial]:
  """Returns trials in the order of their data, then of their programs."""
  trials = list(trials)
  data = [_key(trial.config) for trial in trials]
  programs = [_programs(trial.config) for trial in trials]
  # In the order in which they come first; sorting is stable.
  order = sorted(
    range(len(trials)),
    key=lambda i: (data.index(data[i]), programs.index(programs[i])),
  )
  return [trials[i] for i in order]


def _programs(config: RunConfig) -> str:
  """What else the programs of a search are made from."""
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
  """What a configuration says of experts, items and how these are scored."""
  kept = {
    name: value
    for name, value in config.to_dict().items()
    if name not in (*_OF_SEARCH, *more)
  }
  # Plain mixes are the same ones, whatever evolves over a base.
  kept['space'] = inputs_lib.space_class(config).shares_base
  return json.dumps(kept, sort_keys=True)


def run_trials(
  path: str | os.PathLike,
  names: Sequence[str],
  known: Mapping[str, Trial] | None = None,
  done: Callable[[str], None] = lambda name: None,
  cache: dict[Any, Any] | None = None,
) -> None:
  """Runs trials of a sweep's folder one after another in this process.

  Args:
    path: of the sweep.
    names: of the trials.
    known: all trials by name; read from the folder by default.
    done: called with its name after each trial.
    cache: see `preparation.prepare`.
  """
  path = pathlib.Path(path)
  known = read(path)[1] if known is None else known
  cache, data = {} if cache is None else cache, None
  for name in names:
    other = _key(known[name].config, 'dev_draw')
    if data not in (None, other):
      cache.clear()  # other models or items need the memory
    data = other
    _run(path, known[name], known, cache)
    done(name)


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
    prepared = preparation.prepare(trial.config, cache=cache)
    runner.run_prepared(prepared, folder, share=_scored(path, trial, known))
    (folder / ERROR).unlink(missing_ok=True)
  except Exception as error:  # pylint: disable=broad-exception-caught
    if errors.has_no_room(error):
      raise
    if isinstance(error, checkpoint.InUseError):
      errors.say(f'{trial.name} is run by another process')
      return
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    errors.say(f'{trial.name} failed: {text}')
    details = '' if isinstance(error, UserError) else traceback.format_exc()
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(folder / ERROR, f'{text}\n{details}')


def _scored(
  path: pathlib.Path, trial: Trial, known: Mapping[str, Trial]
) -> pathlib.Path | None:
  """The folder of a trial that has scored this one's baselines, if any."""
  if (path / trial.name / 'baselines.json').exists():
    return None
  wanted = _key(trial.config)
  for name, other in known.items():
    scored = (path / name / 'baselines.json').exists()
    if scored and _key(other.config) == wanted:
      return path / name
  return None


def start(path: pathlib.Path, shares: Sequence[Sequence[str]]) -> None:
  """Runs shares of the trials in processes, each on GPUs of its own."""
  code = (
    'import sys; from evojax_llm.runs import sweep_workers; '
    'sweep_workers.run_trials(sys.argv[1], sys.argv[2:])'
  )
  gpus = list(
    filter(None, os.environ.get('CUDA_VISIBLE_DEVICES', '').split(','))
  )
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


def submit(
  path: pathlib.Path,
  shares: Sequence[Sequence[str]],
  options: Mapping[str, Any],
) -> None:
  """Runs shares of the trials as jobs and waits for them.

  Args:
    path: of the sweep; logs go to its folder jobs/.
    shares: names of the trials of each job.
    options: see `sweeps.sweep`.

  Raises:
    UserError: submitit is not installed, or refuses the options.
  """
  try:
    import submitit
  except ImportError as error:
    raise UserError(
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
