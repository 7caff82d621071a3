"""What a command writes, kept apart from what it reads."""

from collections.abc import Iterable
import os
import pathlib

from evojax_llm.runs import errors


def prepare(out: pathlib.Path, inputs: Iterable[str | os.PathLike]) -> None:
  """Makes the folder that an output is to stand in.

  Raises:
    UserError: it cannot be written, or is an input or inside of one.
  """
  try:
    out.exists()
    target = out.resolve()
  except (OSError, RuntimeError) as error:  # too long, or a loop of links
    raise errors.UserError(
      f'--out={out} is no path to write to: {error}.'
    ) from error
  for given in inputs:
    source = pathlib.Path(os.path.expanduser(given))
    if not source.exists():
      continue
    source = source.resolve()
    if source == target or source in target.parents:
      inside = '' if source == target else 'inside of '
      raise errors.UserError(
        f'--out={out} is {inside}{given}, which this command reads. Name '
        'another place.'
      )
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    if errors.cannot_write(error):
      raise
    raise errors.UserError(
      f'--out={out} cannot be written: {error.strerror}: {error.filename}.'
    ) from error
  if not os.access(target.parent, os.W_OK):
    raise errors.UserError(f'--out={out} cannot be written: no permission.')
