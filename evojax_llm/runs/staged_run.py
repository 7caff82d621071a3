"""A run of several searches, each an ordinary run folder below the run's own.

All of them are prepared before the first begins. What a later one begins from
is not there then: the model or an expert of the one before stands for it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple

from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.models.errors import ModelError
from evojax_llm.runs import errors
from evojax_llm.runs import export
from evojax_llm.runs import final_table
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import runner
from evojax_llm.runs import staged_report
from evojax_llm.runs import stages as stages_lib
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks.task import TaskError

_SAID = errors.UserError, MemoryPlanError, ModelError, TaskError


class _Former(NamedTuple):
  """The stage before another one."""

  search: stages_lib.Search
  files: inputs_lib.Files
  folder: pathlib.Path

  @property
  def exports(self) -> str:
    return inputs_lib.space_class(self.search.config).exports

  @property
  def best(self) -> pathlib.Path:
    """The folder of its best."""
    return self.folder / 'best'

  def model(self) -> pathlib.Path:
    """The folder of its best as a model."""
    # In the type in which it was scored: that of the base may keep less.
    dtype, path = self.search.config.execution.dtype, self.folder / 'model'
    if not path.exists():
      how = export.Options(merged=self.exports == 'adapter', dtype=dtype)
      export.export(self.folder, path, allow_code=True, options=how)
    return path


class Staged:
  """Several searches that were checked, and the first of them prepared."""

  def __init__(
    self, config: RunConfig, first: preparation.Prepared, shared: bool
  ):
    self.config, self._cache, self._shared = config, first.cache, shared
    self.searches = stages_lib.split(config)
    self.files, self.inputs = first.files, first.inputs
    self.setup, self.evaluator = first.setup, first.evaluator
    self._first: preparation.Prepared | None = first

  @property
  def name(self) -> str:
    """Name of the run folder where none is given."""
    labels = '_then_'.join(search.label for search in self.searches)
    return f'{self.files.name}_{self.config.name or labels}'

  def run(
    self, workdir: str | os.PathLike, share: pathlib.Path | None = None
  ) -> pathlib.Path:
    """Runs all stages, or goes on with them, to the end; returns the folder.

    Only once, as each stage gives its memory to the next. `share` is of the
    first, see `runner.run_prepared`.

    Raises:
      UserError: the folder is in use or of another run, or a stage cannot go
        on.
    """
    with runner.opened(workdir, self) as folder:
      if not runner.is_done(folder):
        self._run(folder.path, share)
        staged_report.write(folder.path, self.config)
    return folder.path

  def _run(self, root: pathlib.Path, share: pathlib.Path | None) -> None:
    """Runs what is not finished."""
    former, prepared = None, self._first
    self._first = self.setup = self.evaluator = None
    for number, search in enumerate(self.searches):
      config, folder = search.config, root / search.folder
      with _of_stage(number, search):
        files = _files(search, former)
        if not (record.read_summary(folder) and final_table.is_whole(folder)):
          errors.say(_title(self.searches, number))
          warm = former.folder if config.begin == 'members' else ''
          if former:  # whose baselines are those of the same inputs
            both = config, former.search.config
            same = len(set(map(preparation.data_key, both))) == 1
            share = warm if warm and same else None
          if prepared is None:
            cache = self._cache if _shares(self.searches, number) else None
            prepared = preparation.prepare(config, files, cache, warm)
          runner.run_prepared(prepared, folder, share)
      prepared = None  # the next stage wants its memory
      if not (self._shared or _shares(self.searches, number + 1)):
        self._cache.clear()
      former = _Former(search, files, folder)


def prepare(config: RunConfig, cache: dict[Any, Any] | None = None) -> Staged:
  """Checks all stages of a configuration, and prepares the first.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: one of them cannot be
      run.
  """
  with tempfile.TemporaryDirectory() as root:
    first = _check(config, {} if cache is None else cache, pathlib.Path(root))
  return Staged(config, first, cache is not None)


def _check(
  config: RunConfig, cache: dict[Any, Any], root: pathlib.Path
) -> preparation.Prepared:
  """Prepares all stages, and returns the first; an empty folder is `root`."""
  searches, former, found = stages_lib.split(config), None, []
  # What shows at once comes before what has to be read.
  for number, search in enumerate(searches):
    with _of_stage(number, search):
      found.append(_files(search, former))
      former = _Former(search, found[-1], root / search.folder)
      former.folder.mkdir(parents=True)
      own = found[-1].adapters[:1] if former.exports == 'adapter' else ()
      (former.folder / 'best').symlink_to((*own, found[-1].model)[0].absolute())
      (former.folder / 'model').symlink_to(found[-1].model.absolute())
  # The first one is last, and no other is in memory then.
  for number, files in reversed(list(enumerate(found))):
    search = searches[number]
    with _of_stage(number, search):
      stands = search.config.begin not in ('', 'members')
      errors.say(
        _title(searches, number)
        + ', checked with another one in place of the best before it' * stands
      )
      shares = _shares(searches, number)
      prepared = preparation.prepare(
        search.config, files, cache if shares else None
      )
      if prepared.evaluator.objective.needs_experts and not shares:
        raise errors.UserError(
          f'config.objective={config.objective} is normalised by the experts, '
          'which are others than those of the stages before: their best cannot '
          "be compared. Take another objective, or begin='members'."
        )
      if number:
        del prepared
  return prepared


def _shares(searches: Any, number: int) -> bool:
  """Whether a stage has the inputs of the first one."""
  return all(s.config.begin == 'members' for s in searches[1 : number + 1])


def _title(searches: Any, number: int) -> str:
  config = searches[number].config
  how = f', begin={config.begin}' if config.begin else ''
  return (
    f'stage {number + 1} of {len(searches)}: {config.strategy.name} on '
    f'{config.space}{how}'
  )


@contextlib.contextmanager
def _of_stage(number: int, search: stages_lib.Search) -> Iterator[None]:
  """Says which stage an error is of."""
  try:
    yield
  except _SAID as error:
    if isinstance(error, errors.InUseError):
      raise
    raise errors.UserError(
      f'stage {number + 1} ({search.label}): {error}'
    ) from error


def _files(
  search: stages_lib.Search, former: _Former | None
) -> inputs_lib.Files:
  """The inputs of a stage, those of the one before it if it names none.

  Raises:
    UserError: it cannot begin so from that one.
  """
  config = dataclasses.replace(search.config, begin='')
  begin, space = search.config.begin, inputs_lib.space_class(config)
  if former is None or search.inputs:
    files = inputs_lib.locate(config)
  else:
    files = former.files
  if former is None:
    return files
  earlier = former.search.config
  if begin == 'members':
    wanted = {
      'space': (earlier.space, config.space),
      f'config.{config.space}': (
        inputs_lib.space_options(earlier),
        inputs_lib.space_options(config),
      ),
    }
    differs = [what for what, (a, b) in wanted.items() if a != b]
    differs += [f'config.{name}' for name in sorted(search.inputs)]
    if differs:
      raise errors.UserError(
        f"config.begin='members' keeps the genomes of the stage before, and "
        f'{" and ".join(differs)} must not change; '
        "begin with 'expert' or 'model'."
      )
    return files
  if former.exports == 'path':
    raise errors.UserError(
      f'config.begin={begin!r}: the best of the stage before is a path through '
      'layers, which is neither an expert nor the model of another search: '
      "make it the last stage, or begin='members'."
    )
  if begin == 'model':
    if 'model' in search.inputs:
      raise errors.UserError(
        "config.begin='model' says which model it is: leave config.model out."
      )
    name = f'{files.name}_{former.folder.name}'
    files = dataclasses.replace(files, name=name, model=former.model())
  elif former.exports == 'model':
    files = dataclasses.replace(files, experts=(former.best, *files.experts))
  elif files.model != former.files.model:
    raise errors.UserError(
      "config.begin='expert' takes an adapter of the model of the stage before "
      'it, and this stage has another model: leave config.model, '
      'config.adapters and config.experts out.'
    )
  else:
    files = dataclasses.replace(files, adapters=(former.best, *files.adapters))
  if files.experts and 'models' not in space.takes:
    raise errors.UserError(
      f'config.space={config.space} is made of adapters, and '
      + (
        'the best of the stage before is a whole model: '
        "set config.begin='model', or config.space=weights."
        if begin == 'expert' and former.exports == 'model'
        else 'the experts are whole models: name config.adapters in the stage.'
      )
    )
  return files
