"""Flags of settings: --config=SOURCE, --config.x=VALUE, and some by name."""

from absl import flags
from ml_collections import config_dict

from evojax_llm import options
from evojax_llm import systems
from evojax_llm.runs import fields
from evojax_llm.runs import run_config


def define() -> None:
  """Defines the flags of a command that has one configuration."""
  flags.DEFINE_string(
    'config',
    systems.DEFAULT,
    'Settings: a preset by name, a Python file with get_config, a YAML file of '
    'mergekit-evolve, or the config.json of a run. Each can be changed: '
    '--config.NAME=VALUE.',
  )
  define_changes()


def define_changes() -> None:
  """Defines --setting=x=VALUE, which `command` makes of --config.x=VALUE."""
  flags.DEFINE_multi_string('setting', [], 'As --config.NAME=VALUE.')


def define_own(*names: str, **others: str) -> dict[str, flags.FlagHolder]:
  """Defines flags of settings, some of other names; returns them by setting."""
  kinds = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    str: flags.DEFINE_string,
  }
  known = options.declared(run_config.RunConfig)
  return {
    name: kinds[known[name].kind](
      flag, known[name].default, f'{known[name].text}.'.capitalize()
    )
    for flag, name in (dict(zip(names, names, strict=True)) | others).items()
  }


def load(source: str | None = None) -> config_dict.ConfigDict:
  """Returns a configuration, of --config by default, with the flags' changes.

  Raises:
    UserError: there is no such configuration, setting or value.
  """
  source = source or flags.FLAGS.config
  config = systems.load(source)
  held = fields.flat(config)
  of_data = source.endswith(('.json', '.yml', '.yaml'))
  if of_data:
    config.allow_code = False  # That is for the command line to say.
  for change in flags.FLAGS.setting:
    field, _, text = change.partition('=')
    fields.set_text(config, field, text)
    held.pop(field, None)
  if of_data and not config.allow_code:
    fields.check_code(held, source)
  return config
