"""Generated code is run with limits; whether it passes is told truly."""

import pytest

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.code import CodeTests
from evojax_llm.tasks.task import TaskError
from tests.tasks.scorers.judging import ON_LINUX
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import text_item

pytestmark = ON_LINUX

TESTS = text_item('assert double(2) == 4', 'assert double(-1) == -2')
RIGHT = 'def double(x):\n  return 2 * x\n'


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
  assert judge(scorer, TESTS, 'x = ' + '1 + ' * 999 + '1') == (None, 0)


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


CHECK = 'def check(candidate):\n  assert candidate(2) == 4\n'


@pytest.mark.parametrize(
  ('tests', 'message'),
  [
    ('assert (', 'Python tests'),
    ('assert True', 'call nothing'),
    ('def test():\n  assert double(2) == 4', 'call nothing'),
    ('x = double(2)', 'call nothing'),
    (CHECK, 'begin the function in the question'),
  ],
)
def test_tests_that_test_nothing_are_refused(tests, message):
  with pytest.raises(TaskError, match=message):
    CodeTests().check(text_item(tests))


HALVE = 'def halve(x):\n  return x / 2\n\n'
DOUBLE = 'def double(x):\n  """Doubles."""\n'


@pytest.mark.parametrize(
  ('tests', 'text', 'right'),
  [
    (CHECK, '  return 2 * x', True),
    (CHECK, '  return x', False),
    (CHECK, f'{DOUBLE}\n  pass\nx = 1', False),
    (CHECK + 'check(double)', '  return 2 * x', True),
    (CHECK + 'check(double)', '  return x', False),
    # What the question defines is not the answer's to change.
    (
      'def check(candidate):\n  assert halve(candidate(2)) == 2',
      '  return 0\n\ndef halve(x):\n  return 2',
      False,
    ),
  ],
)
def test_a_check_is_called_with_the_function_of_the_question(
  tests, text, right
):
  item = text_item(tests, question=HALVE + DOUBLE)
  scorer = CodeTests(continues=True)
  scorer.check(item)
  assert judge(scorer, item, text)[1] == right
