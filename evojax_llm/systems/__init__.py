"""Configurations by name: the published systems and their presets.

A system is a module here, with `PRESETS` and `get_config`, so that it is
installed with the package. Its folder in experiments/ has what is to be said of
it, and a config.py with the same two.
"""

import functools
import importlib
import os
import pathlib
from typing import Any

from ml_collections import config_dict

from evojax_llm import files
from evojax_llm import lookup
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig

DEFAULT = 'pocket'
_NAMES = (DEFAULT, 'genome', 'model_swarms', 'low_rank_es', 'coefficients')
_NAMES += ('evosax_algorithms', 'pso_merging', 'lorahub', 'evogm', 'sakana')
_NAMES += ('evomerge', 'm2n2', 'pareto', 'randopt')


@functools.cache
def systems() -> dict[str, Any]:
  """Returns the modules of all systems by name."""
  found = (importlib.import_module(f'{__name__}.{name}') for name in _NAMES)
  return dict(zip(_NAMES, found, strict=True))


def load(source: str) -> config_dict.ConfigDict:
  """Reads a configuration.

  Args:
    source: a preset, 'genome_plus'; a system with or without a preset of it,
      'genome:genome_plus'; a Python file with `get_config`, likewise; a YAML
      file of mergekit-evolve; or, for the same run again, its config.json.

  Raises:
    UserError: there is no such configuration, or it cannot be read.
  """
  if source.endswith('.json'):
    return _of_run(source)
  if source.endswith(('.yml', '.yaml')):
    # Not at import: it loads jax, which help need not wait for.
    from evojax_llm.systems import mergekit_evolve

    return mergekit_evolve.read(source)
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
      presets = [preset for s in systems().values() for preset in s.PRESETS]
      known = dict.fromkeys([*systems(), *presets])
      raise UserError(
        'there is no such configuration'
        + lookup.expected(
          preset,
          known,
          f'a Python file, the config.json of a run, {", ".join(known)}',
        )
      )
    config = module.get_config(*([argument] if argument else []))
    if isinstance(config, RunConfig):
      config = config.to_config()
    if not isinstance(config, config_dict.ConfigDict):
      raise ValueError(
        f'get_config() of {name} returns {config!r}; expected a ConfigDict or '
        'a RunConfig.'
      )
    return config
  except Exception as error:
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    raise UserError(f'Got --config={source}; {kind}{error}') from error


def of_file(name: str) -> Any:
  """Returns the module of a configuration file.

  experiments/SYSTEM/config.py is found from any folder.

  Raises:
    Exception: whatever its import raises.
  """
  path = pathlib.Path(name)
  if path.match('experiments/*/config.py') and not path.exists():
    return systems().get(path.parent.name) or lookup.load_module(name)
  return lookup.load_module(name)


def _of_run(name: str) -> config_dict.ConfigDict:
  """The configuration that a run has left in its folder."""
  read = files.read_object(pathlib.Path(os.path.expanduser(name)), UserError)
  if not isinstance(read.get('config'), dict):
    raise UserError(
      f'{name} is not the config.json of a run. Name a new folder, or one that '
      'a run has made.'
    )
  return RunConfig.from_config(read['config']).to_config()
