"""Where the inputs of a run are, and what of its settings can be judged first.

Nothing is loaded here: a misspelt name is answered at once.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from evojax_llm import pocket
from evojax_llm.genomes.space import find_space
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.errors import asked_for


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the inputs of a run are.

  Attributes:
    name: of the model, for the run folder.
    model: its folder.
    adapters: folders of the experts that are adapters.
    experts: folders of the experts that are models.
    tasks: K files, or names of tasks that are no files.
    heldout: likewise, of tasks that the search does not see.
  """

  name: str
  model: pathlib.Path
  adapters: tuple[pathlib.Path, ...]
  experts: tuple[pathlib.Path, ...]
  tasks: tuple[pathlib.Path | str, ...]
  heldout: tuple[pathlib.Path | str, ...] = ()


def names(value: str | Sequence[str]) -> list[str]:
  """The names in 'a,b' or ('a', 'b')."""
  values = [value] if isinstance(value, str) else value
  return [name.strip() for v in values for name in v.split(',') if name.strip()]


def recipe(config: Any) -> list[Any]:
  """config.initial, of which an override may be 'experts,pairs'."""
  entries = []
  for entry in config.initial:
    entries += names(entry) if isinstance(entry, str) else [entry]
  return entries


def locate(config: Any) -> Files:
  """Finds the inputs; loads nothing.

  Raises:
    UserError: a name stands for nothing.
  """
  _check(config)
  with asked_for(ValueError, what='config.space'):
    space = find_space(config.space)
  if not space.shares_base and config.execution.base_dtype:
    raise UserError(
      'config.execution.base_dtype is of a base that members share; members of '
      f'config.space={config.space} share nothing: leave it off.'
    )
  adapters = [pathlib.Path(name) for name in names(config.adapters)]
  experts = [pathlib.Path(name) for name in names(config.experts)]
  if experts and 'models' not in space.takes:
    raise UserError(
      f'config.experts are whole models, and config.space={config.space} is '
      'made of adapters: set config.space=weights.'
    )
  if experts and adapters:
    raise UserError(
      'Got config.adapters and config.experts; expected one of them.'
    )
  if config.model in ('', 'pocket'):
    name, model = 'pocket', pocket.base_folder()
    if not experts:
      adapters = adapters or list(pocket.expert_folders())
  else:
    model = pathlib.Path(config.model)
    name = model.resolve().name
  if not adapters and not experts:
    raise UserError(
      f'No experts for {config.model}: name PEFT adapter folders of it, as in '
      '--config.adapters=experts/code,experts/cot, or models tuned from it, as '
      'in --config.space=weights --config.experts=models/code,models/cot'
    )
  for folder in (model, *adapters, *experts):
    if not folder.is_dir():
      raise UserError(f'{folder} is not a folder.')
  tasks = tuple(_task_files(config.tasks))
  if not tasks:
    raise UserError('No tasks: name one at least with --config.tasks.')
  heldout = tuple(_task_files(config.heldout_tasks))
  if set(tasks) & set(heldout):
    both = ', '.join(sorted(map(str, set(tasks) & set(heldout))))
    raise UserError(
      f'config.heldout_tasks names {both}, which the search sees: leave it out '
      'of one of config.tasks and config.heldout_tasks.'
    )
  return Files(name, model, tuple(adapters), tuple(experts), tasks, heldout)


def _task_files(value: str | Sequence[str]) -> list[pathlib.Path | str]:
  files = []
  for name in names(value):
    if pathlib.Path(name).is_file():
      files.append(pathlib.Path(name))
    elif name.startswith('lm_eval:') or '.py:' in name:
      files.append(name)
    elif name in pocket.stage_names():
      files += [pocket.task_file(task) for task in pocket.stage(name)]
    elif name in pocket.task_names():
      files.append(pocket.task_file(name))
    else:
      raise UserError(
        f'Got task {name!r}; expected a file, a pocket stage '
        f'({", ".join(pocket.stage_names())}) or a pocket task '
        f'({", ".join(pocket.task_names())}).'
      )
  return files


def _check(config: Any) -> None:
  """Values that can be judged without loading anything."""
  strategy, execution = config.strategy, config.execution
  for name, value, least in (
    ('strategy.population', strategy.population, 1),
    ('strategy.generations', strategy.generations, 0),
    ('strategy.patience', strategy.patience, 1),
    ('seed', config.seed, 0),
    ('seeds', config.seeds, 1),
    ('ensemble.size', config.ensemble.size, 0),
    ('dev_limit', config.dev_limit, 1),
    ('test_limit', config.test_limit, 1),
    ('shots', config.shots, 0),
    ('execution.members_per_group', execution.members_per_group, 1),
    ('execution.prompts_per_batch', execution.prompts_per_batch, 1),
    ('execution.max_length', execution.max_length, 1),
  ):
    if value is not None and value < least:
      raise UserError(f'Got config.{name}={value}; expected {least} or more.')
  if config.resample and not (config.dev_limit or any(config.dev_limits)):
    raise UserError(
      'config.resample chooses other dev items in every generation: say how '
      'many with config.dev_limit.'
    )
  if config.resample and config.racing.rule:
    raise UserError(
      'config.resample and config.racing both choose dev items: leave one off.'
    )
  if config.seed + config.seeds > 1 << 32:
    raise UserError(f'Got config.seed={config.seed}; expected 32 bits.')
  for name, value, known in (
    ('execution.dtype', execution.dtype, ('float32', 'bfloat16')),
    ('execution.base_dtype', execution.base_dtype, (None, 'int8')),
    ('racing.rule', config.racing.rule, ('', 'paired', 'halving')),
    ('execution.form', execution.form, ('auto', 'batched', 'folded')),
  ):
    if value not in known:
      raise UserError(
        f'Got config.{name}={value!r}; expected one of '
        f'{", ".join(map(repr, known))}.'
      )
