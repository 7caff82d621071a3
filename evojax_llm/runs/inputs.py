"""Where the inputs of a run are; nothing of them is loaded here."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

from evojax_llm import pocket
from evojax_llm.lookup import did_you_mean
from evojax_llm.runs import errors
from evojax_llm.runs import stages as stages_lib
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

  @property
  def expert_names(self) -> tuple[str, ...]:
    """N names of the experts, as a space has them."""
    # Not at import: it loads jax.
    from evojax_llm.models import folders

    return folders.expert_names([*self.adapters, *self.experts])


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
  """Finds the inputs; of a run of several searches those of the first.

  Raises:
    UserError, ModelError: a name stands for nothing.
  """
  # Not at import: it loads jax, and --help should answer at once.
  from evojax_llm.models.folders import existing_folder

  config = stages_lib.split(config)[0].config
  if config.begin:
    raise errors.UserError(
      f'Got config.begin={config.begin!r}, which only a stage of a run has: '
      'name the whole list in config.stages, or what this search begins with '
      'in config.model, config.adapters, config.experts or config.warm_start.'
    )
  space = space_class(config)
  if not space.shares_base and config.execution.base_dtype:
    raise errors.UserError(
      'config.execution.base_dtype is of a base that members share; members '
      f'of config.space={config.space} share nothing: leave it off.'
    )
  given = {
    'adapters': given_experts(config.adapters, 'adapters'),
    'experts': given_experts(config.experts, 'experts'),
  }
  others = sum(given.values(), [])
  others = [name for name in others if not name.startswith('pocket:')]
  if others and not config.model:
    raise errors.UserError(
      f'{others[0]} is an expert of some model: name it with '
      '--config.model=FOLDER, or --config.model=pocket for the embedded one.'
    )
  model = existing_folder(config.model or 'pocket', 'a model folder')
  if config.model.endswith('.gguf'):
    # The file is the input; its folder goes with this process.
    model = pathlib.Path(config.model)
  # Not of `model`: snapshots in the hub's cache are called by a number.
  name = pathlib.Path(config.model or 'pocket').resolve()
  name = name.name.removesuffix('.gguf')
  experts = {
    kind: tuple(_expert(name, kind, config, space) for name in found)
    for kind, found in given.items()
  }
  folders = [folder.resolve() for folder in sum(experts.values(), ())]
  if twice := len(folders) - len(set(folders)):
    errors.say(
      f'warning: {twice} of the {len(folders)} experts are the same folder as '
      'another one: averages and searches count them twice.'
    )
  if config.model in ('', 'pocket') and not folders:
    experts['adapters'] = pocket.expert_folders()
  if not any(experts.values()):
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
  return Files(name, model, tasks=tasks, heldout=heldout, **experts)


def given_experts(value: str, kind: str) -> list[str]:
  """Returns names of experts; 'pocket' is all of the pocket's of a kind."""
  embedded = {'adapters': pocket.expert_names, 'experts': pocket.dense_names}
  found = []
  for name in names(value):
    of_pocket = [f'pocket:{expert}' for expert in embedded[kind]()]
    found += of_pocket if name == 'pocket' else [name]
  return found


def _expert(
  name: str, kind: str, config: RunConfig, space: Any
) -> pathlib.Path:
  """The folder of an expert.

  Raises:
    UserError: it is of the other kind, or the space does not take such ones.
    ModelError: there is no such folder.
  """
  from evojax_llm.models.folders import existing_folder

  what = {'adapters': 'a PEFT adapter folder', 'experts': 'a model folder'}
  folder = existing_folder(name, what[kind])
  has_adapter = os.path.lexists(folder / 'adapter_config.json')
  has_model = os.path.lexists(folder / 'config.json')
  if kind == 'experts' and has_adapter and not has_model:
    raise errors.UserError(
      f'config.experts are whole models, and {name} is an adapter: name it in '
      'config.adapters.'
    )
  dense = kind == 'experts' or has_model and not has_adapter
  if dense and 'models' not in space.takes:
    merged = config.space == 'merged'
    whole = f'config.{"merged.on" if merged else "space"}=weights'
    out = f'adapters/{name.rpartition(":")[2].rstrip("/").rpartition("/")[2]}'
    raise errors.UserError(
      f'{name} is a whole model, and config.space={config.space} is made of '
      f'adapters: set {whole} and name it in config.experts, or extract it:\n'
      '  evojax-llm extract '
      f'--model={name} --base={config.model or "pocket"} --out={out}\nand name '
      f'{out} in config.adapters.'
    )
  if dense and kind == 'adapters':
    raise errors.UserError(
      f'config.adapters are adapters, and {name} is a whole model: name it in '
      'config.experts.'
    )
  return folder


def space_class(config: RunConfig) -> Any:
  """Returns the class of a configuration's space.

  Raises:
    UserError: there is no such space, or its options do not go together.
  """
  from evojax_llm.genomes.space import find_space

  with errors.as_user_error(ValueError, what='config.space'):
    find_space(config.space)
  with errors.as_user_error(ValueError, what=f'config.{space_part(config)}'):
    return find_space(config.space, space_options(config))


def space_part(config: RunConfig) -> str | None:
  """Returns the name of what a configuration tells its space; None to most."""
  from evojax_llm.genomes.space import find_space

  kind = getattr(find_space(config.space), 'options', None)
  parts = vars(config).items() if kind else ()
  return next((name for name, part in parts if isinstance(part, kind)), None)


def space_options(config: RunConfig) -> dict[str, Any]:
  """Returns what else a configuration's space is told; nothing to most."""
  part = space_part(config)
  return dataclasses.asdict(getattr(config, part)) if part else {}


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
