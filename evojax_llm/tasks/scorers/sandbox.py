"""Runs the code of an answer against tests, where neither can do harm.

The answer and its tests run in two processes of a new interpreter. Both may
calculate and read modules, and nothing else (see `sandbox_limits`). The tests
are not in the answer's process: they send it the arguments of a call and get
its value, as data (see `sandbox_data`). So an answer cannot see the tests,
change what they compare with, or say itself that it has passed. What is still
possible, and what fails though it may be right, is in the README of tasks.
"""

import ast
import builtins
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig
import threading

from absl import logging

from evojax_llm.tasks.scorers import sandbox_data

_START = (
  'import sys; sys.path.insert(0, sys.argv[1]); '
  'from evojax_llm.tasks.scorers import sandbox_child; sandbox_child.main()'
)
_OWN = str(pathlib.Path(__file__).parents[3])


class SandboxError(ValueError):
  """The limits cannot be set on this machine, so nothing was run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Whether an answer passed; 'passed', 'timeout', or the error."""

  passed: bool
  reason: str


def names_of_answer(
  tests: str, given: str = '', entry: str = ''
) -> tuple[set[str], set[str]]:
  """Returns the names that tests use and do not define, and modules among them.

  A name of Python's own is the answer's only where the tests use no other, as
  in `assert sum(10, 15) == 6`. For the arguments see `run`.

  Raises:
    SyntaxError, ValueError: one of them is no Python.
  """
  used, modules, defined = set(), set(), set()
  for node in (*ast.walk(ast.parse(given)), *ast.walk(ast.parse(tests))):
    if isinstance(node, ast.Name):
      (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
    elif isinstance(node, ast.arg):
      defined.add(node.arg)
    elif isinstance(node, ast.alias):
      defined.add(node.asname or node.name.partition('.')[0])
    elif isinstance(getattr(node, 'name', None), str):  # def, class, except
      defined.add(node.name)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      modules.add(node.value.id)
  used = {name for name in used - defined if not name.startswith('__')}
  modules &= used & set(sys.stdlib_module_names)
  used -= modules
  free = used.difference(dir(builtins))
  return free if free or entry else used, modules


def run(
  code: str,
  tests: str,
  given: str = '',
  entry: str = '',
  seconds: float = 10.0,
  megabytes: int = 512,
) -> Outcome:
  """Runs an answer with its tests.

  Args:
    code: Python source of the answer.
    tests: Python source that raises where the answer is wrong. What it does not
      define is looked up in the answer.
    given: Python source that runs before the tests, in their process.
    entry: the function of the answer with which `check` of the tests is called;
      '' where they call themselves what they define.
    seconds: wall time after which both are stopped.
    megabytes: address space that each may have.

  Raises:
    SandboxError: the limits cannot be set; nothing was run.
    SyntaxError, ValueError: the tests are no Python.
  """
  names, modules = names_of_answer(tests, given, entry)
  job = {
    'given': given + ''.join(f'\nimport {name}' for name in sorted(modules)),
    'tests': tests,
    'names': sorted(names),
    'entry': entry,
  }
  folders = {sysconfig.get_path(name) for name in ('purelib', 'platlib')}
  # A session of its own: it can be stopped as a whole.
  process = subprocess.Popen(
    [sys.executable, '-I', '-S', '-c', _START, _OWN]
    + [str(megabytes), str(seconds), *sorted(folders)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    cwd='/',
    env={'PATH': os.defpath, 'LANG': 'C.UTF-8', 'OMP_NUM_THREADS': '1'},
    start_new_session=True,
  )
  timed_out = threading.Event()

  def stop():
    timed_out.set()
    os.killpg(process.pid, signal.SIGKILL)

  timer = threading.Timer(seconds, stop)
  timer.start()
  messages = []
  with process:
    try:
      with contextlib.suppress(OSError):  # It has ended, and said why.
        for message in (code, job):
          sandbox_data.send(process.stdin.fileno(), message)
      with contextlib.suppress(EOFError, ValueError):
        for _ in range(2):
          messages.append(sandbox_data.receive(process.stdout.fileno()))
    finally:
      timer.cancel()
      timer.join()
      os.killpg(process.pid, signal.SIGKILL)
  return _outcome(messages, timed_out.is_set(), process.returncode)


def _outcome(messages, timed_out, code):
  if timed_out:
    return Outcome(False, 'timeout')
  start = messages[0] if messages else {'refused': f'exit code {code}'}
  if 'refused' in start:
    raise SandboxError(
      f'Code cannot be run safely on this machine: {start["refused"]}.'
    )
  if start['missing']:
    logging.log_first_n(
      logging.WARNING,
      'This machine lacks for generated code: %s. The other limits hold.',
      1,
      ', '.join(start['missing']),
    )
  reason = messages[1]['reason'] if messages[1:] else f'exit code {code}'
  return Outcome(not reason, reason or 'passed')
