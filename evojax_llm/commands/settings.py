"""The flags --config=SOURCE and --config.x=VALUE."""

from absl import flags
from ml_collections import config_dict

from evojax_llm import systems
from evojax_llm.runs import fields
from evojax_llm.runs import run_config


def define() -> None:
  """Defines the flags; a change of a setting is kept as --setting=x=VALUE."""
  flags.DEFINE_string(
    'config',
    systems.DEFAULT,
    'Settings: a preset by name, a Python file with get_config, or the '
    'config.json of a run. Each can be changed: --config.NAME=VALUE.',
  )
  flags.DEFINE_multi_string('setting', [], 'As --config.NAME=VALUE.')


def read() -> config_dict.ConfigDict:
  """Returns the configuration that the flags give.

  Raises:
    UserError: there is no such configuration, setting or value.
  """
  source = flags.FLAGS.config
  config = systems.load(source)
  of_data = source.endswith('.json')
  if of_data:
    config.allow_code = False  # It is for whoever gives the command to say.
  held = config.to_dict()
  for change in flags.FLAGS.setting:
    field, _, text = change.partition('=')
    fields.set_text(config, field, text)
  if of_data and not config.allow_code:
    now = fields.flat(config)
    # What the command line names is what the user names.
    same = {k: v for k, v in fields.flat(held).items() if now.get(k) == v}
    fields.check_code(same, source)
  return config


def names() -> list[str]:
  """Returns the names of all settings, as flags without their dashes."""
  return [f'config.{name}' for name in fields.flat(run_config.make())]
