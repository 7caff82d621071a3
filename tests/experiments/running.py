"""Runs a command-line program inside the test process.

Programs define flags of the same names, and absl has one list of flags for the
whole process: those of other programs are put aside meanwhile.
"""

from collections.abc import Sequence
import contextlib
import importlib
import sys

from absl import flags

from evojax_llm.commands import command


@contextlib.contextmanager
def fresh_program(name: str):
  """The module `name`, newly imported, its flags the only ones."""
  kept = _program_flags()
  _drop(kept)
  names = name, name.replace('experiments.', 'evojax_llm.commands.')
  for module in names:
    sys.modules.pop(module, None)
  try:
    yield importlib.import_module(name)
  finally:
    _drop(_program_flags())
    for module in names:
      sys.modules.pop(module, None)
    for module, flag in kept:
      flags.FLAGS[flag.name] = flag
      flags.FLAGS.register_flag_by_module(module, flag)


def run_program(name: str, *arguments: object) -> int | None:
  """What `main` of `experiments.<name>` returns for these arguments."""
  with fresh_program(f'experiments.{name}') as program:
    return command.run(program.main, [name, *map(str, arguments)])


def _program_flags() -> list[tuple[str, flags.Flag]]:
  return [
    (module, flag)
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    if not module.startswith('absl')
    for flag in defined
  ]


def _drop(found: Sequence[tuple[str, flags.Flag]]) -> None:
  for _, flag in found:
    if flag.name in flags.FLAGS:
      delattr(flags.FLAGS, flag.name)
