"""The pocket population: a tiny Gemma 2, experts of it, and their tasks.

Trained on generated text families by `python -m experiments.pocket.build`; see
experiments/pocket/README.md for what its numbers can and cannot show.
"""

import json
import pathlib

_HERE = pathlib.Path(__file__).parent


def base_folder() -> pathlib.Path:
  """The base, a Hugging Face model folder."""
  return _HERE / 'base'


def expert_names() -> tuple[str, ...]:
  """The experts in their fixed order."""
  folder = _HERE / 'experts'
  return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))


def expert_folders() -> tuple[pathlib.Path, ...]:
  """The experts' PEFT adapter folders, in the order of their names."""
  return tuple(_HERE / 'experts' / name for name in expert_names())


def dense_names() -> tuple[str, ...]:
  """The experts that are whole models, in their fixed order."""
  return tuple(sorted(p.name for p in (_HERE / 'dense').iterdir()))


def dense_folders() -> tuple[pathlib.Path, ...]:
  """The Hugging Face folders of the dense experts, in the order of names."""
  return tuple(_HERE / 'dense' / name for name in dense_names())


def expert_folder(name: str) -> pathlib.Path:
  """The folder of an expert, an adapter or dense.

  Raises:
    ValueError: there is no such expert.
  """
  folders = {f.name: f for f in (*expert_folders(), *dense_folders())}
  if name not in folders:
    raise ValueError(
      f'no pocket expert {name!r}; expected one of {", ".join(folders)}.'
    )
  return folders[name]


def task_names() -> tuple[str, ...]:
  """All tasks, sorted."""
  return tuple(sorted(p.stem for p in (_HERE / 'tasks').glob('*.json')))


def task_file(name: str) -> pathlib.Path:
  """The JSON file of one task.

  Raises:
    ValueError: there is no such task.
  """
  if name not in task_names():
    raise ValueError(
      f'no pocket task {name!r}; expected one of {", ".join(task_names())}.'
    )
  return _HERE / 'tasks' / f'{name}.json'


def title(name: str) -> str:
  """What a task asks for, in a few words."""
  titles = json.loads((_HERE / 'titles.json').read_text())
  functions = name.removesuffix('-new').split('.')
  words = ', then '.join(titles[function] for function in functions)
  return words + (', asked in another form' if name.endswith('-new') else '')


def _stages() -> dict[str, list[str]]:
  return json.loads((_HERE / 'stages.json').read_text())


def stage_names() -> tuple[str, ...]:
  """All stages, in the order of stages.json."""
  return tuple(_stages())


def stage(name: str) -> tuple[str, ...]:
  """The names of the tasks that a stage asks for together.

  Raises:
    ValueError: there is no such stage.
  """
  found = _stages().get(name)
  if found is None:
    raise ValueError(
      f'no pocket stage {name!r}; expected one of {", ".join(stage_names())}.'
    )
  return tuple(found)
