"""Errors that are shown to the user as a message, and lines of progress."""

import contextlib
import errno
import sys

_DISK = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EIO,
  errno.ESTALE,
)


class UserError(ValueError):
  """What the user asked for cannot be done; shown without a traceback."""


class CheckpointError(UserError):
  """A run folder or a checkpoint that cannot be used as it stands."""


class InUseError(CheckpointError):
  """A folder that another process works in."""


def cannot_write(error: BaseException) -> bool:
  """Returns whether an error is that of a disk that is full, or fails."""
  return isinstance(error, OSError) and error.errno in _DISK


@contextlib.contextmanager
def as_user_error(*kinds: type[Exception], what: str = ''):
  """Turns errors of these kinds into `UserError`, `what` in front.

  Not those of a disk, of which a program says what to do.
  """
  try:
    yield
  except kinds as error:
    if isinstance(error, UserError) or cannot_write(error):
      raise
    raise UserError(f'{what}: {error}' if what else str(error)) from error


def say(text: str) -> None:
  """Prints a line about what is going on, apart from the results."""
  print(text, file=sys.stderr, flush=True)
