"""What the command-line programs share: user errors, progress, output files."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import errno
import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

_SMALL_MODEL_BYTES = 1 << 28
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HAS_AFFINITY = hasattr(os, 'sched_getaffinity')


class CommandError(ValueError):
  """What the user asked for cannot be done; shown without a traceback."""


def clean_errors(main: Callable[[Sequence[str]], int | None]):
  """A main that shows an error of the user as one message, with exit code 1.

  Errors that the user can do nothing about keep their traceback.
  """

  @functools.wraps(main)
  def wrapped(argv: Sequence[str]) -> int | None:
    try:
      if len(argv) > 1:
        raise CommandError(
          f"Unexpected argument '{argv[1]}': all options have the form "
          '--name=value. See --help.'
        )
      return main(argv)
    except ValueError as error:
      if not isinstance(error, _user_errors()):
        raise
      print(f'error: {error}', file=sys.stderr)
      return 1
    except OSError as error:
      if not has_no_room(error):
        raise
      where = f' at {error.filename}' if error.filename else ''
      print(
        f'error: {error.strerror}{where}. Nothing that was complete is lost: '
        'make room and give the same command again; with --workdir a run goes '
        'on where it was.',
        file=sys.stderr,
      )
      return 1

  return wrapped


def has_no_room(error: BaseException) -> bool:
  """Whether an error is that of a full disk, or of a quota that is used up."""
  return isinstance(error, OSError) and error.errno in _NO_ROOM


def _user_errors() -> tuple[type[ValueError], ...]:
  # Not at import: these load jax, and --help should answer at once.
  from evojax_llm.fitness.items import TaskError
  from evojax_llm.fitness.plan import MemoryPlanError
  from evojax_llm.fitness.scorers.endpoint import JudgeError
  from evojax_llm.fitness.scorers.sandbox import SandboxError
  from evojax_llm.gemma.errors import GemmaError

  return (
    CommandError,
    TaskError,
    MemoryPlanError,
    GemmaError,
    JudgeError,
    SandboxError,
  )


def use_cores(model: str | os.PathLike, members: int) -> None:
  """Makes one CPU device a core for a small model; call before jax starts.

  The products of a small model keep one core busy and no more. With a device a
  core the members of a population are spread over them, each core on members
  of its own. Large models use all cores anyway, and would be held once a
  device. Other platforms than the CPU are not touched, nor is a number of
  devices that was asked for through the environment.

  Args:
    model: its folder.
    members: most members that are scored at a time.
  """
  if 'JAX_NUM_CPU_DEVICES' in os.environ or (
    'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  ):
    return
  weights = pathlib.Path(model).glob('*.safetensors')
  if sum(file.stat().st_size for file in weights) > _SMALL_MODEL_BYTES:
    return
  import jax

  cores = len(os.sched_getaffinity(0)) if _HAS_AFFINITY else os.cpu_count() or 1
  # Where jax has started already its devices stay as they are.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', max(1, min(cores, members)))


def check_out(path: str, overwrite: bool) -> pathlib.Path:
  """The path of a file to be written; refuses before any work is done."""
  out = pathlib.Path(path).expanduser()
  if out.is_dir():
    raise CommandError(f'--out={path} is a folder; expected a file name.')
  if out.exists() and not overwrite:
    raise CommandError(
      f'--out={path} exists. Name another file, or allow to replace it with '
      '--overwrite.'
    )
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise CommandError(f'--out={path} cannot be written: {error}.') from error
  if not os.access(out.parent, os.W_OK):
    raise CommandError(f'--out={path} cannot be written: no permission.')
  return out


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file that is there whole or not at all."""
  partial = path.with_name(path.name + '.partial')
  text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
  partial.write_text(text + '\n', encoding='utf-8')
  partial.replace(path)


def say(text: str) -> None:
  """A line about what is going on, apart from the results."""
  print(text, file=sys.stderr, flush=True)


class Progress:
  """Says how much of the work is done, at most once in a while."""

  def __init__(self, seconds: float = 5.0):
    self._start = self._last = time.monotonic()
    self._seconds = seconds

  def __call__(self, share: float) -> None:
    now = time.monotonic()
    if share < 1 and now - self._last < self._seconds:
      return
    self._last = now
    say(f'{share:4.0%} done after {now - self._start:.1f} s')
