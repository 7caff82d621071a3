"""The flags --config=SOURCE and --config.x=VALUE."""

from absl import flags
from ml_collections import config_dict

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


def read() -> config_dict.ConfigDict:
  """Returns the configuration that the flags give.

  Raises:
    UserError: there is no such configuration, setting or value.
  """
  return load(flags.FLAGS.config)


def load(source: str) -> config_dict.ConfigDict:
  """Returns a configuration with the changes of the flags.

  Raises:
    UserError: there is no such configuration, setting or value.
  """
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


def names() -> list[str]:
  """Returns the names of all settings, as flags without their dashes."""
  return [f'config.{name}' for name in fields.flat(run_config.make())]
