"""Many runs and one table over their summaries.

    changes = sweep_changes.parse('dev_limit=20,50;seed=0..4', config)
    trials = sweep_changes.trials(config, changes)
    print(runs.sweep(trials, 'runs/limits').table)

Each trial is a run with a folder of its own and resumes by itself; sweep.json
lists them all. A trial that failed leaves error.txt in its folder, and is tried
again when the sweep goes on.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import record
from evojax_llm.runs import sweep_changes
from evojax_llm.runs import sweep_report
from evojax_llm.runs import sweep_workers
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.sweep_changes import Trial


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
    raise UserError('Got no trials; expected one configuration or more.')
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
    index = self.path / sweep_workers.INDEX
    with errors.as_user_error(OSError):
      self.path.mkdir(parents=True, exist_ok=True)
      held = {file.name for file in self.path.iterdir()} - {'lock'}
      if held and not index.exists():
        raise UserError(
          f'{path} is not empty and not the folder of a sweep; name a new one.'
        )
      self._lock = checkpoint.WorkdirLock(self.path)
    try:
      if index.exists():
        there, self.trials = sweep_workers.read(self.path)
        self._refuse(record.compare(there, self._settings))
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
      raise UserError(
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
    record.write_json(self.path / sweep_workers.INDEX, index)

  def close(self) -> None:
    """Lets other processes in."""
    self._lock.release()

  def summary(self, name: str) -> dict[str, Any] | None:
    """The summary of a trial; None where it is not finished."""
    return record.read_summary(self.path / name)

  def error(self, name: str) -> str | None:
    """Why a trial failed, in a line; None where it did not."""
    path = self.path / name / sweep_workers.ERROR
    return path.read_text().splitlines()[0] if path.exists() else None

  def run(
    self,
    trials: Sequence[Trial],
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
    left = [
      trial.name
      for trial in sweep_workers.by_what_they_share(trials)
      if self.summary(trial.name) is None
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
      sweep_workers.submit(self.path, shares, slurm)
    elif workers > 1:
      sweep_workers.start(self.path, shares)
    else:
      sweep_workers.run_trials(self.path, left, self.trials, done, cache)
