"""Errors about what the user asked for, and lines about what is going on.

Nothing here needs jax: a misspelt name is answered at once.
"""

import contextlib
import errno
import sys

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
  """What the user asked for cannot be done; shown without a traceback."""


def has_no_room(error: BaseException) -> bool:
  """Whether an error is that of a full disk, or of a quota that is used up."""
  return isinstance(error, OSError) and error.errno in _NO_ROOM


@contextlib.contextmanager
def asked_for(*kinds: type[Exception], what: str = ''):
  """Turns errors about what the user asked for into ones without traceback."""
  try:
    yield
  except kinds as error:
    if isinstance(error, UserError) or has_no_room(error):
      raise
    raise UserError(f'{what}: {error}' if what else str(error)) from error


def say(text: str) -> None:
  """A line about what is going on, apart from the results."""
  print(text, file=sys.stderr, flush=True)
