"""What a command writes, kept apart from what it reads."""

from collections.abc import Iterable
import os
import pathlib

from evojax_llm.runs.errors import UserError


def check_apart(out: pathlib.Path, inputs: Iterable[str | os.PathLike]) -> None:
  """Refuses an output that is one of the inputs, or inside of one.

  Raises:
    UserError: it is.
  """
  target = out.expanduser().resolve()
  for given in inputs:
    source = pathlib.Path(given).expanduser()
    if not source.exists():
      continue
    source = source.resolve()
    if source == target or source in target.parents:
      inside = '' if source == target else 'inside of '
      raise UserError(
        f'--out={out} is {inside}{given}, which this command reads. Name '
        'another place.'
      )
