"""What users write: modules, files and functions, found by name."""

from collections.abc import Callable
import functools
import importlib
import importlib.util
import pathlib
from typing import Any

from evojax_llm.tasks.task import TaskError


@functools.cache
def load_module(where: str) -> Any:
  """A module by its dotted name, or a Python file by its path.

  Raises:
    TaskError: there is none, or it fails when it is run.
  """
  try:
    if not where.endswith('.py'):
      return importlib.import_module(where)
    path = pathlib.Path(where)
    if not path.is_file():
      raise TaskError(f'{where}: there is no such Python file.')
    name = f'_evojax_llm_plugin_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
  except TaskError:
    raise
  except Exception as error:
    raise TaskError(
      f'{where}: the module cannot be used: {type(error).__name__}: {error}.'
    ) from error


def function(name: str) -> Callable:
  """The function 'module:function' or 'file.py:function'.

  Raises:
    TaskError: the name has another form, or there is no such function.
  """
  where, _, attribute = name.rpartition(':')
  found = getattr(load_module(where), attribute, None) if where else None
  if not callable(found):
    raise TaskError(
      f"Got {name!r}; expected a function as 'module:function' or "
      "'file.py:function'."
    )
  return found
