"""Configurations by name: the systems of experiments/ and their presets.

A system is a folder with a config.py, which has `PRESETS` and `get_config`. In
a clone they lie in experiments/, in an installed package beside this one.
"""

import functools
import pathlib
from typing import Any

from ml_collections import config_dict

from evojax_llm import files
from evojax_llm import lookup
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig

DEFAULT = 'pocket'
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


@functools.cache
def systems() -> dict[str, Any]:
  """Returns the modules with the configurations of each system, by name."""
  folders = (_PACKAGE / 'experiments', _PACKAGE.parent / 'experiments')
  files = next(filter(None, (sorted(f.glob('*/config.py')) for f in folders)))
  return {file.parent.name: lookup.load_module(str(file)) for file in files}


def load(source: str) -> config_dict.ConfigDict:
  """Reads a configuration.

  Args:
    source: a preset, 'genome_plus'; a system with or without a preset of it,
      'genome:genome_plus'; a Python file with `get_config`, likewise; or, for
      the same run again, its config.json.

  Raises:
    UserError: there is no such configuration, or it cannot be read.
  """
  if source.endswith('.json'):
    return _of_run(source)
  name, colon, argument = source.partition(':')
  preset = source.split('+')[0]
  of_preset = [s for s in systems().values() if preset in s.PRESETS]
  try:
    if name.endswith('.py'):
      module = of_file(name)
    elif of_preset:
      module, argument = of_preset[0], source
    elif name in systems():
      module = systems()[name]
    else:
      known = [*systems(), *(p for s in systems().values() for p in s.PRESETS)]
      raise UserError(
        'expected a Python file, the config.json of a run, or one of '
        f'{", ".join(known)}.{lookup.did_you_mean(preset, known)}'
      )
    return module.get_config(*([argument] if argument else []))
  except Exception as error:
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise UserError(f'Got --config={source}; {kind}{error}') from error


def of_file(name: str) -> Any:
  """Returns the module of a file; experiments/ is found from anywhere.

  Raises:
    Exception: whatever its import raises.
  """
  path = pathlib.PurePath(name)
  if not pathlib.Path(name).expanduser().is_file() and (
    path.parts[0] == 'experiments' and path.name == 'config.py'
  ):
    known = systems()
    if path.parent.name in known:
      return known[path.parent.name]
  return lookup.load_module(name)


def _of_run(name: str) -> config_dict.ConfigDict:
  """The configuration that a run has left in its folder."""
  read = files.read_object(pathlib.Path(name).expanduser(), UserError)
  if not isinstance(read.get('config'), dict):
    raise UserError(f'{name} is not the config.json of a run.')
  return RunConfig.from_config(read['config']).to_config()
