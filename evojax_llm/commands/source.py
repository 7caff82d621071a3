"""Which members a command is about: flags, and what they name.

A model and adapters, a row of a run, or an exported vote.
"""

import dataclasses
from typing import Any

from absl import flags

from evojax_llm.commands import command

_CODE = 'Run code that the run folder names.'


def define_row(allow_code: str = _CODE) -> None:
  """Defines the flags of commands that take a row of a run."""
  row = "Row of the run's table: 'scaled average', 'vote', or an expert."
  flags.DEFINE_string('row', 'evolved', row)
  for name, text in (
    ('unfinished', 'the best so far of a run that has not finished.'),
    ('changed', 'a base or experts that have changed since the run.'),
  ):
    flags.DEFINE_bool(f'allow_{name}', False, f'Take {text}')
  flags.DEFINE_bool('allow_code', False, allow_code)


def allowed() -> dict[str, bool]:
  """Returns the values of --allow_changed, --allow_code, --allow_unfinished."""
  names = 'allow_changed', 'allow_code', 'allow_unfinished'
  return {name: flags.FLAGS[name].value for name in names}


def define(allow_code: str = _CODE) -> None:
  """Defines the flags of commands that take a model or a run, as above."""
  flags.DEFINE_string(
    'model', None, 'Model folder in Hugging Face form, or a GGUF file.'
  )
  flags.DEFINE_list(
    'adapters', [], 'PEFT LoRA folders, separated by commas; none by default.'
  )
  flags.DEFINE_string('run', None, 'Run folder, in their place.')
  define_row(allow_code)


@dataclasses.dataclass(frozen=True)
class Source:
  """What the flags name."""

  folder: str  # --model or --run, as it was given
  adapters: list[str]
  run: Any  # the `rows.Run` of --run; None of --model and an exported vote
  row: str  # the name of the row that stands for --row
  named: str | None  # the row in files that are written; None of --model

  @property
  def reads(self) -> list[Any]:
    """The files and folders that are read."""
    return self.run.reads() if self.run else [self.folder, *self.adapters]

  def load(self, dtype: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """Returns the `BaseAndAdapters`, and how they vote if they do."""
    from evojax_llm.runs import base_and_adapters

    command.say(f'loading {self.folder}')
    if self.named is None:
      return base_and_adapters.load(self.folder, self.adapters, dtype), None
    return base_and_adapters.of_row(self.run or self.folder, self.row, dtype)

  def record(self, members: Any) -> dict[str, Any]:
    """What the file of results says of the loaded members."""
    of_run = {'run': self.folder, 'row': self.named}
    return {
      'model': str(members.space.model().folder),
      'adapters': self.adapters,
      **({} if self.named is None else of_run),
    }


def read() -> Source:
  """Returns what the flags name.

  Raises:
    UserError: neither is given or both are, or the run cannot be read.
    ModelError: one of the folders is not there.
  """
  given = flags.FLAGS
  model, adapters, run, row = given.model, given.adapters, given.run, given.row
  if run and (model or adapters):
    raise command.UserError(
      '--run is given with --model or --adapters: a run has its own; leave '
      'them out.'
    )
  if not (run or model):
    raise command.UserError(
      '--model is missing: a model folder; or --run, a run folder. See --help.'
    )
  if not run:
    from evojax_llm.models.folders import existing_folder

    existing_folder(model, 'a model folder')
    for folder in adapters:
      existing_folder(folder, 'a PEFT adapter folder')
    return Source(model, adapters, None, row, None)
  from evojax_llm.runs import rows

  if name := rows.exported_vote(run):
    return Source(run, adapters, None, name, name)
  found, name = rows.find(run, row, **allowed())
  return Source(run, adapters, found, name, row)
