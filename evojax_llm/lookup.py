"""Objects by name: those of the package's tables, and a user's own.

Wherever a name is looked up (strategy, merge, space, scorer, objective, task),
'package.module:Object' and 'file.py:Object' name an object outside of the
package. The tables hold such names too, so that a module is imported only when
what it holds is asked for.
"""

from collections.abc import Callable
from collections.abc import Mapping
import difflib
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
from typing import Any


def find(name: str, table: Mapping[str, Any], what: str) -> Any:
  """Returns the entry of a table, or the object that a dotted name stands for.

  Args:
    name: a key of the table, 'package.module:Object' or 'file.py:Object'.
    table: objects by name, or 'package.module:Object' in place of an object.
    what: the kind of thing, for messages: 'strategy', 'merge', ...

  Raises:
    ValueError: the name is neither in the table nor that of an object.
  """
  if isinstance(name, str) and (name in table or ':' in name):
    entry = table.get(name, name)
    return load(entry, what) if isinstance(entry, str) else entry
  raise ValueError(
    f'Got {what} {name!r}'
    + expected(name, table, f"{', '.join(table)}, or 'package.module:Object'")
  )


def load(name: str, what: str) -> Any:
  """Imports the object 'package.module:Object' or 'file.py:Object'.

  Raises:
    ValueError: there is no such module, it fails when it is imported, or it
      has no such object.
  """
  where, _, attribute = name.rpartition(':')
  try:
    module = load_module(where)
  except Exception as error:
    raise ValueError(
      f'Got {what} {name!r}, but {where!r} cannot be imported: '
      f'{type(error).__name__}: {error}.'
    ) from error
  if not hasattr(module, attribute):
    known = [n for n in vars(module) if not n.startswith('_')]
    raise ValueError(
      f'Got {what} {name!r}, but {where!r} has no {attribute!r}.'
      f'{did_you_mean(attribute, known)}'
    )
  return getattr(module, attribute)


@functools.cache
def load_module(where: str) -> Any:
  """Imports a module by its dotted name, or a Python file by its path.

  Raises:
    Exception: whatever the import raises; FileNotFoundError for no file.
  """
  if not where.endswith('.py'):
    return importlib.import_module(where)
  path = pathlib.Path(os.path.expanduser(where))
  if not path.is_file():
    raise FileNotFoundError(f'there is no file {where}')
  name = f'_evojax_llm_extension_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up there.
  spec.loader.exec_module(module)
  return module


def did_you_mean(name: object, known: Any) -> str:
  """Returns " Did you mean 'x'?" where a known name is close, else ''."""
  close = difflib.get_close_matches(str(name), list(known), n=1)
  return f' Did you mean {close[0]!r}?' if close else ''


def expected(
  name: object, known: Any, names: str | None = None, some: str = 'one of'
) -> str:
  """Returns '; expected one of x, y.', the likeliest in front if one is close.

  `names` says how the known names are listed; by default joined by commas.
  """
  hint = did_you_mean(name, known)
  names = f'{some} {", ".join(known) if names is None else names}.'
  return f'.{hint} Expected {names}' if hint else f'; expected {names}'


def public_names(
  package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """Returns `__getattr__` and `__dir__` of a package that imports on demand.

  `names` are 'package.module:Object', or 'package.module', by name.
  """

  def get(name: str) -> Any:
    if name not in names:
      raise AttributeError(
        f'module {package!r} has no attribute {name!r}.'
        f'{did_you_mean(name, names)}'
      )
    where, _, attribute = names[name].partition(':')
    module = importlib.import_module(where)
    return getattr(module, attribute) if attribute else module

  return get, lambda: sorted(names)
