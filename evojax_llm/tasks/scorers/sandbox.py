"""Runs foreign Python code in a process with limits.

The process has a memory limit, a time limit, no network, no other processes and
may write no file (see `sandbox_child`). It can read what its user can read:
the limits keep accidents of generated code small, and for code that is meant to
do harm there should be a container around all of this.
"""

import dataclasses
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile

_CHILD = pathlib.Path(__file__).with_name('sandbox_child.py')
_NOT_RUN = 3


class SandboxError(ValueError):
  """The limits cannot be set on this machine, so nothing was run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended.

  Attributes:
    passed: whether it came to its end without an error.
    reason: 'passed', 'timeout', or the last line of its errors.
  """

  passed: bool
  reason: str


def run(code: str, seconds: float = 10.0, megabytes: int = 512) -> Outcome:
  """Runs a program.

  Args:
    code: Python source; tests are part of it and raise where they fail.
    seconds: wall time after which it is stopped.
    megabytes: address space it may have.

  Raises:
    SandboxError: the limits cannot be set; nothing was run.
  """
  word = secrets.token_hex(16)
  with tempfile.TemporaryDirectory() as folder:
    # A session of its own: it can be stopped as a whole.
    process = subprocess.Popen(
      [sys.executable, '-I', _CHILD, str(megabytes), str(seconds)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      cwd=folder,
      env={'PATH': os.defpath, 'LANG': 'C.UTF-8', 'OMP_NUM_THREADS': '1'},
      start_new_session=True,
    )
    try:
      out, err = process.communicate(
        f'{word}\n{code}'.encode(errors='replace'), timeout=seconds
      )
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
      return Outcome(False, 'timeout')
  lines = err.decode(errors='replace').strip().splitlines()
  reason = lines[-1] if lines else f'exit code {process.returncode}'
  if process.returncode == _NOT_RUN and not out:
    raise SandboxError(f'Code cannot be run safely on this machine: {reason}.')
  passed = process.returncode == 0 and out == word.encode()
  return Outcome(passed, 'passed' if passed else reason)
