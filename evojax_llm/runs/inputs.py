"""Where the inputs of a run are; nothing of them is loaded here."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

from evojax_llm import pocket
from evojax_llm.lookup import did_you_mean
from evojax_llm.runs import errors
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks import task_files as tasks_lib


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the inputs of a run are."""

  name: str  # of the model, for the run folder
  model: pathlib.Path
  adapters: tuple[pathlib.Path, ...]  # experts that are adapters
  experts: tuple[pathlib.Path, ...]  # experts that are models
  tasks: tuple[pathlib.Path | str, ...]  # K files, or names of tasks
  heldout: tuple[pathlib.Path | str, ...] = ()


def names(value: str) -> list[str]:
  """Splits 'a, b' into ['a', 'b']."""
  return [name.strip() for name in value.split(',') if name.strip()]


def recipe(config: RunConfig) -> list[Any]:
  """Splits config.initial, in which an entry may be 'experts,pairs'."""
  return [
    part
    for entry in config.initial
    for part in (names(entry) if isinstance(entry, str) else [entry])
  ]


def rules(config: RunConfig) -> tasks_lib.Rules:
  """Returns how the tasks of a configuration are read."""
  return tasks_lib.Rules(
    allow_overlap=config.allow_overlap,
    drop_overlap=config.drop_overlap,
    allow_code=config.allow_code,
    skip_bad_rows=config.skip_bad_rows,
    format={k: v for k, v in vars(config.format).items() if v != ()},
    shots=config.shots,
    shots_seed=config.shots_seed,
    system=config.system,
  )


def locate(config: RunConfig) -> Files:
  """Finds the inputs.

  Raises:
    UserError, ModelError: a name stands for nothing.
  """
  # Not at import: it loads jax, and --help should answer at once.
  from evojax_llm.genomes.space import find_space
  from evojax_llm.models.folders import existing_folder

  with errors.as_user_error(ValueError, what='config.space'):
    space = find_space(config.space)
  if not space.shares_base and config.execution.base_dtype:
    raise errors.UserError(
      'config.execution.base_dtype is of a base that members share; members '
      f'of config.space={config.space} share nothing: leave it off.'
    )
  if config.experts and 'models' not in space.takes:
    raise errors.UserError(
      f'config.experts are whole models, and config.space={config.space} is '
      'made of adapters: set config.space=weights.'
    )
  given = names(config.adapters) + names(config.experts)
  if config.experts and config.adapters:
    raise errors.UserError(
      'Got config.adapters and config.experts; expected one of them.'
    )
  if given and not config.model:
    raise errors.UserError(
      f'{given[0]} is an expert of some model: name it with '
      '--config.model=FOLDER, or --config.model=pocket for the embedded one.'
    )
  model = existing_folder(config.model or 'pocket', 'a Gemma folder')
  # Not of `model`: snapshots in the hub's cache are called by a number.
  name = pathlib.Path(config.model or 'pocket').resolve().name
  what = 'a Gemma folder' if config.experts else 'a PEFT adapter folder'
  folders = tuple(existing_folder(name, what) for name in given)
  if twice := len(folders) - len({folder.resolve() for folder in folders}):
    errors.say(
      f'warning: {twice} of the {len(folders)} experts are the same folder as '
      'another one: averages and searches count them twice.'
    )
  if config.model in ('', 'pocket') and not folders:
    folders = pocket.expert_folders()
  if not folders:
    raise errors.UserError(
      f'No experts for {config.model}: name PEFT adapter folders of it, as in '
      '--config.adapters=experts/code,experts/cot, or models tuned from it, as '
      'in --config.space=weights --config.experts=models/code,models/cot'
    )
  tasks = task_files(names(config.tasks))
  if not tasks:
    raise errors.UserError('No tasks: name one at least with --config.tasks.')
  heldout = task_files(names(config.heldout_tasks))
  if both := ', '.join(sorted(map(str, set(tasks) & set(heldout)))):
    raise errors.UserError(
      f'config.heldout_tasks names {both}, which the search sees: leave it out '
      'of one of config.tasks and config.heldout_tasks.'
    )
  experts = ((), folders) if config.experts else (folders, ())
  return Files(name, model, *experts, tasks, heldout)


def task_files(given: Sequence[str]) -> tuple[pathlib.Path | str, ...]:
  """Returns files for tasks: of a pocket stage, or files and names as given."""
  files: list[pathlib.Path | str] = []
  for name in given:
    path = pathlib.Path(os.path.expanduser(name))
    if path.is_file():
      files.append(path)
    elif ':' in name or path.suffix or len(path.parts) > 1:
      files.append(name)
    elif name in pocket.stage_names():
      files += map(pocket.task_file, pocket.stage(name))
    elif name in pocket.task_names():
      files.append(pocket.task_file(name))
    else:
      stages, tasks = pocket.stage_names(), pocket.task_names()
      raise errors.UserError(
        f'Got task {name!r}.{did_you_mean(name, [*stages, *tasks])} Expected a '
        f'file, a pocket stage ({", ".join(stages)}) or a pocket task '
        f'({", ".join(tasks)}).'
      )
  return tuple(files)
