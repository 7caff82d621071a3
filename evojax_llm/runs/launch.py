"""A run: from a configuration, of one search or several, to its folder."""

import dataclasses
import os
import pathlib
from typing import Any

from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import runner
from evojax_llm.runs import staged_run
from evojax_llm.runs.run_config import RunConfig

Prepared = preparation.Prepared | staged_run.Staged


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run."""

  path: pathlib.Path  # its folder
  summary: dict[str, Any]  # the content of its summary.json

  @property
  def best(self) -> pathlib.Path:
    """The exported best member: an adapter folder or a model folder."""
    return self.path / 'best'

  def table(self) -> str:
    """Returns the scores of baselines and best member as Markdown."""
    return report.table(self.summary['rows'])


def run(config: Any, workdir: str | os.PathLike | None = None) -> Result:
  """Runs a search, or several stages, or goes on with them, to the end.

  Args:
    config: a `RunConfig`, or what `RunConfig.from_config` takes, such as what
      `systems.load` reads.
    workdir: the run folder, new or to go on with; a new one in runs/ by
      default.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: it cannot be done.
  """
  prepared = prepare(config)
  if prepared.config.seeds > 1:
    raise errors.UserError(
      f'Got config.seeds {prepared.config.seeds}; expected 1 for a single run. '
      'runs.sweep takes several.'
    )
  workdir = workdir or record.new_workdir('runs', prepared.name)
  path = run_prepared(prepared, workdir)
  return Result(path, record.read_json(path / 'summary.json'))


def prepare(
  config: Any,
  files: inputs_lib.Files | None = None,
  cache: dict[Any, Any] | None = None,
) -> Prepared:
  """Prepares one search, or checks all of several; see `preparation.prepare`.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: it cannot be done.
  """
  config = RunConfig.from_config(config)
  if config.stages:
    return staged_run.prepare(config, cache)
  return preparation.prepare(config, files, cache)


def run_prepared(
  prepared: Prepared,
  workdir: str | os.PathLike,
  share: pathlib.Path | None = None,
) -> pathlib.Path:
  """Runs what is prepared, or goes on with it; see `runner.run_prepared`."""
  if isinstance(prepared, staged_run.Staged):
    return prepared.run(workdir, share)
  return runner.run_prepared(prepared, workdir, share)
