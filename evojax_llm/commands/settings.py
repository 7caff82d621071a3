"""--config=FILE and --config.x=VALUE, with mistakes shown as one message."""

from collections.abc import Callable
from collections.abc import Sequence
import pathlib
import re
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags


def define(default: pathlib.Path) -> tuple[Any, Callable]:
  """Defines the flag --config.

  Args:
    default: the file that is taken without the flag.

  Returns:
    The flag's holder, and a `flags_parser` for `absl.app.run`.
  """
  # Given to ml_collections as the flag's own default, the file would be loaded
  # and overridden at import, where no error can be shown cleanly.
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    f'File of settings; by default {default.parent.name}/{default.name}.',
  )

  flags.declare_key_flag('config')

  def parse(argv: Sequence[str]) -> list[str]:
    if not any(re.match(r'--?config(=|$)', arg) for arg in argv[1:]):
      argv = [argv[0], f'--config={default}', *argv[1:]]
    # Where ml_collections looks for the settings to change.
    sys.argv = list(argv)
    try:
      rest = flags.FLAGS(argv)
      # A file that cannot be read shows at the first use only.
      holder.value.to_dict()
      return rest
    except (
      flags.Error,
      AttributeError,
      KeyError,
      OSError,
      TypeError,
      ValueError,
    ) as error:
      print(f'error: {_message(error)}\nSee --help.', file=sys.stderr)
      sys.exit(1)

  return holder, parse


def _message(error: BaseException) -> str:
  """One line of what ml_collections says in several, wrapped or traced back."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  # The text of a KeyError is its argument as a literal.
  text = error.args[0] if isinstance(error, KeyError) else str(error)
  lines = [line.strip() for line in str(text).splitlines() if line.strip()]
  if 'Traceback (most recent call last):' in lines:
    return lines[-1].split(': ', 1)[-1]
  return ' '.join(lines)
