"""Generated code is run with limits; whether it passes is told truly."""

import platform
import sys

import pytest

from evojax_llm.tasks.scorers import sandbox
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.code import CodeTests
from evojax_llm.tasks.task import TaskError
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import text_item

pytestmark = pytest.mark.skipif(
  not sys.platform.startswith('linux')
  or platform.machine() not in ('x86_64', 'aarch64'),
  reason='the limits are those of the Linux kernel',
)

TESTS = text_item('assert double(2) == 4', 'assert double(-1) == -2')
RIGHT = 'def double(x):\n  return 2 * x\n'


def test_code_that_ends_has_passed():
  code = 'import resource as r\nassert r.getrlimit(r.RLIMIT_AS)[0] > 0'
  assert sandbox.run(code).passed
  assert sandbox.run('import math, re\nassert math.sqrt(4) == 2').passed
  assert sandbox.run('print("x" * 10**6)').passed
  outcome = sandbox.run('assert 1 == 2, "no"')
  assert (outcome.passed, outcome.reason) == (False, 'AssertionError: no')


@pytest.mark.parametrize(
  ('code', 'reason'),
  [
    ('import socket; socket.socket()', 'not permitted'),
    ('import socket; socket.create_connection(("127.0.0.1", 1))', 'permitted'),
    ('import os; os.fork()', 'not permitted'),
    ('import subprocess; subprocess.run(["true"])', 'not permitted'),
    ('import os; os.kill(os.getppid(), 9)', 'not permitted'),
    ('open("x", "w")', 'not permitted'),
    ('import os; os.remove("/nothing")', 'not permitted'),
    ('import os; os.mkdir("x")', 'not permitted'),
    ('import os; os.execv("/bin/true", ["true"])', 'not permitted'),
    ('import os; os.rename("a", "b")', 'not permitted'),
    ('import os; os.symlink("/etc/passwd", "x")', 'not permitted'),
    ('import os; os.chmod(".", 0)', 'not permitted'),
    ('open("/proc/self/mem", "r+b")', 'not permitted'),
    ('import threading; threading.Thread(target=print).start()', "can't start"),
    ('import urllib.request as u; u.urlopen("http://127.0.0.1:1")', 'permit'),
    # Around Python, and out of the limits again.
    (
      'import ctypes\nraise OSError(ctypes.CDLL(None).socket(2, 1, 0))',
      'OSError: -1',
    ),
    ('import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))', 'not allowed'),
    ('import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))', 'not allowed'),
    ('import ctypes; ctypes.string_at(0)', 'exit code -11'),
    ('import mmap; mmap.mmap(-1, 10**10)', 'Cannot allocate'),
    ('x = bytearray(10**9)', 'MemoryError'),
    ('def f(): f()\nf()', 'RecursionError'),
    ('1 +', 'SyntaxError'),
    # Leaving is not passing, whatever the exit code.
    ('exit(0)', 'SystemExit'),
    ('import os; os._exit(0)', 'exit code 0'),
    ('import os, sys; os.write(1, b"passed"); os._exit(0)', 'exit code 0'),
  ],
)
def test_what_is_not_allowed_fails_the_code_alone(code, reason):
  outcome = sandbox.run(code, seconds=10)
  assert not outcome.passed and reason in outcome.reason


@pytest.mark.parametrize(
  'code',
  [
    'while True: pass',
    'import time\ntime.sleep(9)',
    'try:\n  while True: pass\nfinally:\n  while True: pass',
    'import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\n'
    'while True: pass',
  ],
)
def test_time_is_limited(code):
  assert sandbox.run(code, seconds=0.7).reason == 'timeout'


def test_nothing_runs_without_the_limits(monkeypatch, tmp_path):
  child = tmp_path / 'child.py'
  text = sandbox._CHILD.read_text()
  child.write_text(text.replace("'x86_64'", "'x'").replace("'aarch64'", "'y'"))
  monkeypatch.setattr(sandbox, '_CHILD', child)
  with pytest.raises(sandbox.SandboxError, match='cannot be run safely'):
    sandbox.run('pass')


@pytest.mark.parametrize(
  ('text', 'right'),
  [
    (RIGHT, True),
    (f'Here it is:\n```python\n{RIGHT}```\nIt doubles.', True),
    (f'```\n{RIGHT}', True),
    (f'Here it is:\n{RIGHT}', False),
    ('def double(x):\n  return x + 2\n', False),
    (f'{RIGHT}exit(0)', False),
    ('', False),
    ('```python\n```', False),
  ],
)
def test_answers_in_code(text, right):
  assert judge(CodeTests(), TESTS, text)[1] == right


def test_published_extraction_keeps_what_parses():
  text = f'Here it is:\n{RIGHT}print(double(1))\nDone, I hope.'
  scorer = CodeTests(extract='genome')
  code, value = judge(scorer, TESTS, text)
  assert value == 1 and 'print' not in code
  assert judge(scorer, TESTS, 'I am sorry.') == (None, 0)


def test_a_question_that_is_the_beginning_of_the_code():
  question = 'import math\n\ndef double(x):\n  """Doubles."""\n'
  item = text_item('assert double(2) == 4', question=question)
  scorer = CodeTests(continues=True)
  assert judge(scorer, item, '  return 2 * x')[1] == 1
  assert judge(scorer, item, '  return x')[1] == 0
  again = RIGHT.replace('2', 'math.floor(2.5)')
  assert judge(scorer, item, f'```python\n{again}```')[1] == 1


def test_many_answers_keep_their_order():
  pairs = [(TESTS, Answer((RIGHT if i % 3 else 'x',))) for i in range(7)]
  values = [verdict.value for verdict in CodeTests().score_all(pairs)]
  assert values == [0, 1, 1, 0, 1, 1, 0]


def test_tests_that_are_no_python_are_refused():
  with pytest.raises(TaskError, match='Python tests'):
    CodeTests().check(text_item('assert ('))
