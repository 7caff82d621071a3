"""What the commands share: their frame, progress, output files."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import json
import logging as std_logging
import os
import pathlib
import re
import shlex
import signal
import sys
import time
import traceback
from typing import Any

from absl import flags
from absl import logging

from evojax_llm import lookup
from evojax_llm.commands import compiled_programs
from evojax_llm.runs import outputs
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.errors import cannot_write
from evojax_llm.runs.errors import say

_SMALL_MODEL_BYTES = 1 << 28
_HAS_AFFINITY = hasattr(os, 'sched_getaffinity')
_HELP = re.compile(r'--?(?:h|help|helpfull|helpshort)(?:=(.*))?')
# --config.x=VALUE, --config.x VALUE, --config.x and --noconfig.x.
_SETTING = re.compile(r'--?(no)?config\.([^=]*)(?:=(.*))?', re.DOTALL)

Main = Callable[[Sequence[str]], int | None]


class _Terminated(KeyboardInterrupt):
  """The process was asked to end, by SIGTERM."""


class _Voice(std_logging.Formatter):
  """What is logged, in the form in which errors are said."""

  def format(self, record: std_logging.LogRecord) -> str:
    return f'{record.levelname.lower()}: {super().format(record)}'


def launch(main: Main, quiet: bool = True) -> None:
  """Runs the `main` of a command on the command line, and exits."""
  logging.use_absl_handler()
  logging.get_absl_handler().setFormatter(_Voice())

  def terminate(*_: Any) -> None:
    raise _Terminated

  signal.signal(signal.SIGTERM, terminate)
  try:
    code = run(main, sys.argv, quiet)
    sys.stdout.flush()
    sys.exit(code)
  except BrokenPipeError:  # of a reader such as head, which has what it wants
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except KeyboardInterrupt as error:
    print(f'\nstopped{going_on(sys.orig_argv)}', file=sys.stderr)
    number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
    sys.exit(128 + number)


def going_on(argv: Sequence[str]) -> str:
  """Returns how a command line that was stopped goes on, for a shell."""
  known = own_flags()
  if 'workdir' in known:
    workdir = known['workdir'].value
    if workdir is None:
      return ' before anything was kept'
    if not any(re.match('--?workdir(=|$)', arg) for arg in argv):
      argv = [*argv, f'--workdir={workdir}']
  elif 'setting' not in known:
    return ''
  return f'; it goes on with\n  {shlex.join(argv)}'


def new_workdir(name: str) -> str:
  """Returns --workdir, or makes a folder below runs/ and says which."""
  from evojax_llm.population import hosts

  if flags.FLAGS.workdir is None:
    from evojax_llm.runs import record

    made = str(record.new_workdir('runs', name)) if hosts.is_first() else None
    workdir = flags.FLAGS.workdir = hosts.agreed(made)
    say(
      f'new folder {workdir}: a run that is stopped goes on when the same '
      f'command is given with --workdir={workdir}'
    )
  return str(hosts.own_workdir(flags.FLAGS.workdir))


def run(main: Main, argv: Sequence[str], quiet: bool = True) -> int | None:
  """Returns what `main` returns for a command line, or 1 after a message.

  Errors that the user can do nothing about keep their traceback. `quiet` logs
  warnings only, unless flags say otherwise.
  """
  try:
    for arg in argv[1:]:
      if asked := _HELP.fullmatch(arg):
        from evojax_llm.commands import help_text

        print(help_text.describe(main, asked[1] or ''))
        return 0
    _parse(argv)
    if quiet and not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax tells of every step.
    compiled_programs.keep()
    return main(argv[:1])
  except ValueError as error:
    if not isinstance(error, _user_errors()):
      raise
    print(f'error: {error}', file=sys.stderr)
  except (AssertionError, RuntimeError) as error:
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if pathlib.Path(where).name != 'xla_bridge.py':  # where jax looks for them
      raise
    asked = os.environ.get('JAX_PLATFORMS')
    named = f'JAX_PLATFORMS={asked} names' if asked else 'there are'
    print(
      f'error: {named} devices that jax does not find or cannot use. '
      f'{" ".join(str(error).split())[:300]}\nSet JAX_PLATFORMS=cpu, or '
      'install what jax needs for them: see README.md.',
      file=sys.stderr,
    )
  except OSError as error:
    if not cannot_write(error):
      raise
    # Of a copy that fails the second name is where it goes.
    where = error.filename2 or error.filename
    where = f' at {where}' if where else ''
    print(
      f'error: {error.strerror}{where}. Nothing that was complete is lost: '
      'make room, or see to the disk, and give the same command again; with '
      '--workdir a run goes on where it was.',
      file=sys.stderr,
    )
  return 1


def _parse(argv: Sequence[str]) -> None:
  """Reads the flags of a command; --config.x=VALUE become --setting=x=VALUE.

  Raises:
    UserError: there is no such flag, or a value is not one of it.
  """
  known = own_flags()
  given, rest = [argv[0]], list(argv[1:])
  while rest:
    arg = rest.pop(0)
    setting = _SETTING.fullmatch(arg)
    if setting and 'setting' in known:
      no, field, value = setting.groups()
      if value is None and (no or not rest or rest[0].startswith('--')):
        value = 'false' if no else 'true'
      value = rest.pop(0) if value is None else value
      given.append(f'--setting={field}={value}')
    else:
      # What a shell does in front of a path, and not behind an equals sign.
      given.append(re.sub(r'(?<=[=,])~(?=/)', os.path.expanduser('~'), arg))
  try:
    left = flags.FLAGS(given)[1:]
  except flags.UnrecognizedFlagError as error:
    raise UserError(_unknown(error.flagname, known)) from error
  except flags.Error as error:
    missing = re.match(r'flag --(\w+)=None: .* other than None', str(error))
    if not missing:
      said = ' '.join(str(error).split()).rstrip('.')
      said = re.sub(r'invalid literal for int.*?:', 'no whole number:', said)
      said = said.replace('could not convert string to float:', 'no number:')
      raise UserError(f'{said}. See --help.') from error
    said = f'--{missing[1]} is missing: {known[missing[1]].help}'
    raise UserError(f'{said} See --help.') from error
  if left:
    raise UserError(
      f"Unexpected argument '{left[0]}': all options have the form "
      '--name=value. See --help.'
    )


def own_flags() -> dict[str, flags.Flag]:
  """Returns the flags that a command has of its own, by name."""
  return {
    flag.name: flag
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    if not module.startswith('absl')
    for flag in defined
  }


def _unknown(name: str, known: dict[str, flags.Flag]) -> str:
  names = [name for name in known if name != 'setting']
  everything, listed = list(names), ', '.join(f'--{name}' for name in names)
  settings: list[str] = []
  if 'setting' in known:
    from evojax_llm.runs import fields
    from evojax_llm.runs.run_config import RunConfig

    config = RunConfig().to_config()
    flat = fields.flat(config)
    everything += [f'config.{field}' for field in flat]
    settings = [f'config.{field}' for field in fields.named(name, flat)]
  # A setting without what stands before it is the likeliest mistake.
  like = next(iter(settings), name)
  wanted = lookup.expected(like, everything, listed, 'some of')
  wanted = re.sub(r"mean '(.*?)'\?", r'mean --\1?', wanted)
  return f'Got unknown flag --{name}{wanted} See --help.'


def _user_errors() -> tuple[type[ValueError], ...]:
  # Not at import: these load jax, and --help should answer at once.
  from evojax_llm.engine.plan import MemoryPlanError
  from evojax_llm.files import FileError
  from evojax_llm.models.errors import ModelError
  from evojax_llm.population.hosts import HostError
  from evojax_llm.tasks.scorers.judge import JudgeError
  from evojax_llm.tasks.scorers.sandbox import SandboxError
  from evojax_llm.tasks.task import TaskError

  ours = UserError, FileError, TaskError, MemoryPlanError, ModelError
  return *ours, HostError, JudgeError, SandboxError


def use_cores(model: str | os.PathLike, members: int) -> None:
  """Makes one CPU device a core for a small model; call before jax starts.

  The products of a small model keep one core busy and no more, so that its
  members are spread over devices, `members` at most. Large models use all cores
  anyway, and would be held once a device. Other platforms than the CPU are not
  touched, nor is a number of devices that the environment asks for.
  """
  if 'JAX_NUM_CPU_DEVICES' in os.environ or (
    'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  ):
    return
  from evojax_llm.models.folders import existing_folder

  folder = existing_folder(model, 'a model folder')
  weights = [*folder.glob('*.safetensors'), *folder.glob('*.gguf')]
  if sum(f.stat().st_size for f in weights if f.is_file()) > _SMALL_MODEL_BYTES:
    return
  import jax

  cores = len(os.sched_getaffinity(0)) if _HAS_AFFINITY else os.cpu_count() or 1
  # Where jax has started already its devices stay as they are.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', max(1, min(cores, members)))


def define_hosts() -> None:
  """Defines the flags of `joined`."""
  flags.DEFINE_string(
    'coordinator',
    os.environ.get('JAX_COORDINATOR_ADDRESS'),
    'HOST:PORT of the first of several hosts that are given the same command; '
    'auto on Slurm, Kubernetes, Open MPI and TPU pods, which tell the rest.',
  )
  flags.DEFINE_integer(
    'processes', None, 'How many hosts there are.', lower_bound=1
  )
  flags.DEFINE_integer(
    'process', None, 'Number of this host, from 0.', lower_bound=0
  )


def joined() -> Any:
  """Returns a context in which this process works with other hosts, if any.

  Raises:
    UserError: the flags do not say which.
  """
  from evojax_llm.population import hosts

  given = flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process
  if given[0] is None and given[1:] != (None, None):
    raise UserError(
      'Got --processes or --process without --coordinator=HOST:PORT, the '
      'address of the first host.'
    )
  address, count, number = given
  if address not in (None, 'auto') and not re.fullmatch(r'.+:\d+', address):
    raise UserError(
      f'Got --coordinator={address}; expected HOST:PORT, the address of the '
      'first host and a free port of it, or auto.'
    )
  if count is not None and number is not None and number >= count:
    raise UserError(
      f'Got --process={number} of --processes={count}; expected 0 to '
      f'{count - 1}, each on one host.'
    )
  return hosts.joined(
    *given,
    'This one ends, too. Give the same command again on all hosts, or on fewer '
    'of them: a run goes on after its last checkpoint.',
  )


def check_same(settings: Any, read: Iterable[str | os.PathLike]) -> None:
  """Refuses hosts that were given, or have, other things than the first one.

  Args:
    settings: what this host was told, of JSON types.
    read: files and folders of the run, or names of what is embedded.
  """
  from evojax_llm.population import hosts
  from evojax_llm.runs.recorded_inputs import fingerprint

  if not hosts.several():
    return
  import jax

  import evojax_llm

  code = pathlib.Path(evojax_llm.__file__).parent
  own = {
    'settings': json.loads(json.dumps(settings)),
    'code': [jax.__version__, fingerprint(code, ('.py',))],
    **{
      str(path): fingerprint(path) if os.path.exists(path) else ''
      for path in read
    },
  }
  remedy = {
    'settings': 'Give the same command on each, but for --process.',
    'code': 'Install the same versions of evojax_llm and jax on each.',
  }
  for host, other in enumerate(hosts.gathered(own)):
    for name in own:
      if other.get(name) != own[name]:
        what = name if name in remedy else f'contents of {name}'
        raise UserError(
          f'Host {host} has other {what} than this one. '
          + remedy.get(name, 'Copy the same files to the same path of each.')
        )


def check_hosts(tasks: Iterable[Any]) -> None:
  """Refuses tasks whose scores may differ from host to host."""
  from evojax_llm.population import hosts

  for task in tasks:
    if hosts.several() and task.kind in ('code', 'judge'):
      raise UserError(
        f'{task.name} is of the kind {task.kind}, whose scores may differ from '
        'host to host. Score it on one host, without --coordinator.'
      )


def define_out() -> None:
  """Defines the flags of `check_out`."""
  flags.DEFINE_string('out', None, 'JSON file to write, if any.')
  flags.DEFINE_bool('overwrite', False, 'Replace --out if it exists.')


def check_out(inputs: Iterable[str | os.PathLike]) -> pathlib.Path | None:
  """Returns the path of --out; refuses before any work is done.

  `inputs` are what the command reads, which is never replaced.
  """
  path = flags.FLAGS.out
  if path is None:
    return None
  out = pathlib.Path(os.path.expanduser(path))
  outputs.prepare(out, inputs)
  # A link stays, and what it names is written.
  out = out.resolve() if out.is_symlink() else out
  if out.is_dir():
    raise UserError(f'--out={path} is a folder; expected a file name.')
  if out.exists() and not out.is_file():
    raise UserError(
      f'--out={path} is a device or a FIFO; only regular files are replaced.'
    )
  if out.exists() and not flags.FLAGS.overwrite:
    raise UserError(
      f'--out={path} exists. Name another file, or allow to replace it with '
      '--overwrite.'
    )
  return out


def write_json(path: pathlib.Path | None, value: Any) -> None:
  """Writes a file that is there whole or not at all, if one is asked for."""
  from evojax_llm.population import hosts

  if path is None or not hosts.is_first():
    return
  partial = path.with_name(path.name + '.partial')
  text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
  partial.write_text(text + '\n', encoding='utf-8')
  partial.replace(path)
  say(f'wrote {path}')


class Progress:
  """Says how much of the work is done, at most once in a while."""

  def __init__(self, seconds: float = 5.0):
    self._start = self._last = time.monotonic()
    self._seconds, self._share = seconds, 0.0

  def __call__(self, share: float) -> None:
    now, before = time.monotonic(), self._share
    if before >= 1 or share < 1 and now - self._last < self._seconds:
      return
    self._last, self._share = now, share
    say(f'{share:4.0%} done after {now - self._start:.1f} s')
