"""Answers are run where they can do no harm and cannot judge themselves."""

import resource

import pytest

from evojax_llm.tasks.scorers import sandbox
from tests.tasks.scorers.judging import ON_LINUX

pytestmark = ON_LINUX

SQUARE = 'assert f(3) == 9\nassert f(4) == 16'
LIE = '__eq__ = lambda *_: True\n  __ne__ = lambda *_: False\n  __hash__ = None'
# Writes to all that is open, behind the length that a message has.
WRITE = """
import os
def f(x):
  for stream in range(64):
    try:
      os.write(stream, len(TEXT).to_bytes(8, "big") + TEXT)
    except OSError:
      pass
"""


@pytest.mark.parametrize(
  ('code', 'tests', 'reason'),
  [
    *(
      (f'class L({kind}):\n  {LIE}\ndef f(x): return L()', SQUARE, reason)
      for kind, reason in (
        ('int', 'Assertion'),
        ('float', 'Assertion'),
        ('list', 'Assertion'),
        ('object', 'a L is no data'),
      )
    ),
    (
      f'class L:\n  {LIE}\ndef f(x): return [L()]',
      'assert f(3) == [9]',
      'a L is no data',
    ),
    # Leaving is not passing, whatever the exit code.
    ('import os\ndef f(x): os._exit(0)', SQUARE, 'exit code 0'),
    ('import os; os._exit(0)', SQUARE, 'exit code 0'),
    ('def f(x): raise SystemExit(0)', SQUARE, 'SystemExit'),
    ('import sys; sys.exit(0)', SQUARE, 'SystemExit'),
    ('def f(x): raise StopIteration', 'all(map(f, [1]))', 'RuntimeError'),
    # What tests use is theirs.
    (
      'import builtins\nbuiltins.abs = len',
      'assert abs(f(3)) == 9',
      'NameError',
    ),
    (
      'abs = lambda x: 9\ndef f(x): return x',
      'assert abs(f(3)) == 9',
      'Assertion',
    ),
    (
      'class math:\n  isclose = lambda *_: True\ndef f(x): return x',
      'assert math.isclose(f(3), 9)',
      'Assertion',
    ),
    (
      'import builtins, sys\nbuiltins.AssertionError = Warning\n'
      'sys.settrace(lambda *_: None)\ndef f(x): return x',
      SQUARE,
      'Assertion',
    ),
    (
      'import sys\ndef f(x):\n  frame, seen = sys._getframe(), []\n'
      '  while frame:\n    seen += frame.f_locals\n    frame = frame.f_back\n'
      '  return {"tests", "job", "answer"} & {*seen}',
      'assert f(3)',
      'Assertion',
    ),
    (
      'import gc\ndef f(x): return [o for o in gc.get_objects() '
      'if type(o) is dict and "tests" in o and "entry" in o]',
      'assert f(3)',
      'Assertion',
    ),
    ('x = 1', 'assert True', 'use nothing of the answer'),
    ('x = 1', SQUARE, "name 'f' is not defined"),
    # What is no message is no value.
    *(
      (WRITE.replace('TEXT', text), SQUARE, 'no data from the answer')
      for text in (
        """b'{"reason": ""}'""",
        "b''",
        "b'[' * 10**6",
        """b'[true, ["dict", [[["list", []], 1]]]]'""",
        """b'[true, ["type", "print"]]'""",
        """b'[true, ["object", "x"]]'""",
      )
    ),
    (
      WRITE.replace('len(TEXT).to_bytes(8, "big") + TEXT', 'bytes([255] * 8)'),
      SQUARE,
      'more than 16 MB',
    ),
    ('def f(x): return "x" * 2**24', SQUARE, 'more than 16 MB'),
    ('def f(x):\n  x = []\n  x.append(x)\n  return x', SQUARE, 'Recursion'),
    ('def f(x): return input()', SQUARE, 'EOFError'),
    ('def f(x): return f(x)', SQUARE, 'RecursionError'),
    ('def f(x): return bytearray(10**9)', SQUARE, 'MemoryError'),
    ('import ctypes\ndef f(x): ctypes.string_at(0)', SQUARE, 'exit code -11'),
    ('1 +', SQUARE, 'SyntaxError'),
    ("x = '\udc80'", SQUARE, 'UnicodeEncodeError'),
    ('def f(x): return x', 'assert f(print) == 9', 'can pass no builtin'),
  ],
)
def test_an_answer_passes_by_its_values_alone(code, tests, reason):
  outcome = sandbox.run(code, tests)
  assert not outcome.passed and reason in outcome.reason


@pytest.mark.parametrize(
  'code',
  [
    'while True: pass',
    'import time\ntime.sleep(9)',
    'import os\nos.closerange(0, 64)\nwhile True: pass',
    'import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\n'
    'while True: pass',
    'while True: print("x" * 10**6)',
    'import os\nwhile True:\n  for n in (1, 2): os.write(n, bytes(10**6))',
  ],
)
def test_time_is_limited_and_output_goes_nowhere(code):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert sandbox.run(code, 'f()', seconds=0.3).reason == 'timeout'
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 32768


@pytest.mark.parametrize(
  ('code', 'tests'),
  [
    ('def f(x): return x and x + f(x - 1)', 'assert f(200) == 20100'),
    ('def g(x): return x * x\ndef f(x): return g(x)', SQUARE),
    ('f = lambda x, *, y=2: x**y', SQUARE + '\nassert f(2, y=3) == 8'),
    (
      'import collections, dataclasses, datetime, decimal, fractions\n'
      'import functools, hashlib, heapq, itertools, json, math, random, re\n'
      'import statistics, string, sys, typing\nfrom typing import *\n'
      '@functools.lru_cache\ndef f(x: int) -> Optional[int]: return x**2',
      SQUARE,
    ),
    (
      'def f(x):\n  print(x)\n  return x * x\n'
      'if __name__ == "__main__": print("it is", f(2), flush=True)',
      SQUARE,
    ),
    # Data of all kinds.
    (
      'def f(*x): return x',
      'for x in (None, True, -1, 2**80, 1.5, float("inf"), 1j, "\\udc80é", int,'
      ' b"\\xff", [1, (2, {3})], {1: 2, (3,): [None]}, frozenset([1]), range(9)'
      '):\n'
      '  assert f(x) == (x,) and type(f(x)[0]) is type(x)',
    ),
    (
      'import collections, enum\nP = collections.namedtuple("P", "x y")\n'
      'class E(enum.IntEnum):\n  A = 7\n'
      'def f(): return P(1, collections.Counter("aab")), E.A',
      'assert f() == ((1, {"a": 2, "b": 1}), 7)',
    ),
    # Objects that stay with the answer.
    (
      'class Node:\n  next = None\n'
      '  def __init__(self, value): self.value = value\n'
      'def total(node): return node.value + total(node.next) if node else 0',
      'root = Node(1)\nroot.next = Node(2)\nassert total(root) == 3\n'
      'assert root.next.value == 2 and root == root',
    ),
    (
      'def f(x):\n  for i in range(x): yield i',
      'assert list(f(3)) == [0, 1, 2]',
    ),
    (
      'import re\ndef f(x): return re.match("a", x)',
      'assert f("a") and not f("")',
    ),
    ('def sum(a, b): return a - b', 'assert sum(3, 1) == 2'),
    (
      'class Own(ValueError): pass\ndef f(x): raise Own("no")',
      'try:\n  f(1)\n  assert False\nexcept ValueError as error:\n'
      '  assert str(error) == "no"\ntry:\n  f(1)\nexcept Own: pass',
    ),
    (
      'def f(x): return {}[x]',
      'try: f(1)\nexcept KeyError as e: assert e.args == (1,)',
    ),
    ('import math\ndef f(x): return x * x', 'assert math.isclose(f(3), 9)'),
    # It is not root, whoever has started it.
    ('import os\ndef f(): return os.getuid(), os.geteuid()', 'assert all(f())'),
  ],
)
def test_right_answers_pass(code, tests):
  assert sandbox.run(code, tests).reason == 'passed'
