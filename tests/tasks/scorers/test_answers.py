"""exact_match, numeric_match and multiple_choice on hard cases."""

import numpy as np
import pytest

from evojax_llm.tasks.scorers.answers import cut_at_stop
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.exact import ExactMatch
from evojax_llm.tasks.scorers.numeric import NumericMatch
from evojax_llm.tasks.scorers.options import MultipleChoice
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import load_task

STOP = ('\nQuestion:', '\nQ:')
EXACT, CLAUSE = ExactMatch(), ExactMatch(match='clause')
NUMERIC, CHOICE = NumericMatch(), MultipleChoice()


def gold(answer):
  return Item('0', 'q', answer)


def score_generation(scorer, item, text):
  """(prediction, right) of a text."""
  verdict = scorer.score(item, Answer((cut_at_stop(text, STOP),)))
  return verdict.prediction, verdict.value == 1


def score_options(scorer, item, values):
  """(prediction, right) of log-likelihoods."""
  verdict = scorer.score(item, Answer(loglik=tuple(values)))
  return verdict.prediction, verdict.value == 1


@pytest.mark.parametrize(
  ('answer', 'text', 'prediction', 'correct'),
  [
    ('No', 'No', 'No', True),
    ('No', ' No\n', 'No', True),
    ('No', 'No.', 'No', True),
    ('No', '\n\n  No\nNode 3 is not connected.', 'No', True),
    ('No', '**No**', 'No', True),
    ('No', '"No."', 'No', True),
    ('No', 'The answer is No.', 'No', True),
    ('No', 'the answer is: **No**.', 'No', True),
    ('No', 'Answer: No', 'No', True),
    ('No', 'So the final answer is No', 'No', True),
    # Contained in something else is not the same.
    ('No', 'Node', 'Node', False),
    ('No', 'No node is', 'No node is', False),
    ('No', 'Yes', 'Yes', False),
    ('No', 'Yes, or No', 'Yes, or No', False),
    ('No', 'No, there is no path.', 'No, there is no path', False),
    ('No', 'Yes\nNo', 'Yes', False),
    ('No', 'no', 'no', False),
    ('No', '', None, False),
    ('No', ' \n\t\n', None, False),
    ('1', '1', '1', True),
    ('1', '12', '12', False),
    ('1', '21', '21', False),
    ('1', '1.5', '1.5', False),
    ('1', '1,000', '1,000', False),
    ('1', '-1', '-1', False),
    ('3', '3\n\nQuestion: next', '3', True),
    ('3', '\nQ: 3', None, False),
    ('a b c', 'a  b\tc', 'a b c', True),
    ('a b c', 'a b', 'a b', False),
    ('a b', 'a b c', 'a b c', False),
    # Golds of BIG-Bench Hard: option letters and brackets.
    ('A', '(A)', 'A', True),
    ('(A)', 'A', 'A', True),
    ('A', '(A) The white book', '(A) The white book', False),
    (') >', ') >', ') >', True),
    (')', ')', ')', True),
    (')', ')]', ')]', False),
    ('> ]', '>]', '>]', False),
    ('valid', 'invalid', 'invalid', False),
    ('answer', 'answer', 'answer', True),
  ],
)
def test_exact_match(answer, text, prediction, correct):
  assert score_generation(EXACT, gold(answer), text) == (prediction, correct)


@pytest.mark.parametrize(
  ('answer', 'text', 'prediction', 'correct'),
  [
    ('No', 'No, there is no path.', 'No', True),
    ('No', 'No. Yes.', 'No', True),
    ('No', 'Answer: No; see above', 'No', True),
    ('No', 'Node 1, no', 'Node 1', False),
    ('No', 'No path is there.', 'No path is there', False),
    ('1', '1.5, as said', '1.5', False),
    ('1', '1,000: many', '1,000', False),
    ('1', '12, not 1', '12', False),
    ('.', '. x', '. x', False),
  ],
)
def test_first_clause(answer, text, prediction, correct):
  assert score_generation(CLAUSE, gold(answer), text) == (prediction, correct)


@pytest.mark.parametrize(
  ('text', 'prediction'),
  [
    ('18', '18'),
    ('18.', '18'),
    ('$18', '18'),
    ('\\$18.00', '18'),
    ('18 dollars', '18'),
    ('18%', '18'),
    ('18kg', '18'),
    ('**18**', '18'),
    ('$1,000', '1000'),
    ('1,000,000.50', '1000000.5'),
    ('1\\,000', '1000'),
    ('1{,}000', '1000'),
    ('-3', '-3'),
    ('\u22123', '-3'),
    ('-$3', '-3'),
    ('$-3', '-3'),
    ('x = -3', '-3'),
    ('7 - 3', '3'),
    ('7-3', '3'),
    ('(7)-3', '3'),
    ('f(-3)', '-3'),
    ('pages 5\u20137', '7'),
    ('+4', '4'),
    ('007', '7'),
    ('3.50', '3.5'),
    ('.5', '0.5'),
    ('1/2', '0.5'),
    ('-1/2', '-0.5'),
    ('1 1/2', '1.5'),
    ('1/3', '1/3'),
    ('\\frac{1}{4}', '0.25'),
    ('1e3', '1000'),
    ('2 + 2 = 4', '4'),
    ('It takes 3 days and 4 nights.', '4'),
    ('#### 72', '72'),
    ('48/2 = 24. 48+24 = 72\n#### 72\n', '72'),
    ('#### $1,200 dollars\nThat took 3 steps.', '1200'),
    ('#### 5 per day.\nDone in 9', '5'),
    ('#### 1. Add\n2 + 3 = 5', '5'),
    ('#### 2 and 3\nso 6', '6'),
    ('####\nso 6', '6'),
    ('#### 4\nno:\n#### 5\nbut 6', '5'),
    ('\\boxed{18} is the answer to 3 questions', '18'),
    ('\\boxed{5} no, \\boxed{x = 6}', '6'),
    ('\\boxed{\\frac{3}{4}}', '0.75'),
    ('\\boxed{12', '12'),
    ('\\boxed{none} 4', '4'),
    ('18\nQuestion: 3 birds and 5 more?', '18'),
    ('none', None),
    ('', None),
    ('node12', None),
    ('1/0', None),
    ('1e99999999999', None),
    ('9' * 6000, None),
    ('3/4/2020', '2020'),
    ('1.2.3', '1.2'),
    ('wait...5', '5'),
    ('\u0665', None),
  ],
)
def test_number_of_an_output(text, prediction):
  assert score_generation(NUMERIC, gold('0'), text)[0] == prediction


@pytest.mark.parametrize(
  ('answer', 'text', 'correct'),
  [
    ('1', '12', False),
    ('12', '1', False),
    ('1000', '$1,000', True),
    ('1,000', '1000.0', True),
    ('-3', '3', False),
    ('0.5', '1/2', True),
    ('33.3', '33.33', False),
    ('0', '-0', True),
    ('They pay 5 + 5 = 10.\n#### 10', '10', True),
    ('50%', '50', True),
    ('18', 'no number', False),
  ],
)
def test_numeric_match(answer, text, correct):
  assert score_generation(NUMERIC, gold(answer), text)[1] == correct


def test_long_outputs_take_no_time():
  # A degenerate model repeats itself; no rule may backtrack over that.
  for text in ('9 ' * 20000, '(' * 20000, '#### ' * 20000, 'answer ' * 20000):
    for task in (EXACT, CLAUSE, NUMERIC):
      score_generation(task, gold('1'), text)


def test_the_answer_does_not_depend_on_the_gold():
  for task in (EXACT, CLAUSE, NUMERIC):
    for text in ('No, 12 is', '3 or 4'):
      predictions = {
        score_generation(task, gold(answer), text)[0]
        for answer in ('1', '12', '3', '4')
      }
      assert len(predictions) == 1


def test_gold_answers_match_themselves(data_folder):
  for name in ('bbh', 'gsm8k', 'nlgraph'):
    task = load_task(data_folder / f'{name}.json')
    scorer = scorer_of(task)
    for item in task.dev + task.test:
      assert score_generation(scorer, item, f' {item.answer}\n')[1]
      # Nor does any other answer of the task pass for it.
    answers = sorted({item.answer for item in task.dev})
    for item in task.dev[:50]:
      passed = [a for a in answers if score_generation(scorer, item, a)[1]]
      assert passed == [item.answer]


OPTIONS = Item('0', 'q', 'B', (('A', 'x'), ('B', 'y'), ('C', 'z')))
INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize(
  ('loglik', 'prediction', 'correct'),
  [
    ([-3.0, -1.0, -2.0], 'B', True),
    ([-1.0, -3.0, -2.0], 'A', False),
    ([-1.0, -1.0, -2.0], 'A', False),
    ([-2.0, -1.0, -1.0], 'B', True),
    ([NAN, -1.0, -2.0], None, False),
    ([-3.0, -1.0, NAN], None, False),
    ([-3.0, INF, -1.0], None, False),
    ([-INF, -INF, -INF], None, False),
    ([-INF, -1.0, -INF], 'B', True),
    ([0.0, 0.0, 0.0], 'A', False),
  ],
)
def test_options(loglik, prediction, correct):
  for values in (loglik, np.asarray(loglik, np.float32)):
    assert score_options(CHOICE, OPTIONS, values) == (prediction, correct)


def test_misuse_is_refused():
  with pytest.raises(TaskError, match='has 3 options, but 4 log-lik'):
    score_options(CHOICE, OPTIONS, [0.0] * 4)
  with pytest.raises(TaskError, match='no options'):
    score_options(CHOICE, gold('A'), [0.0])
  with pytest.raises(TaskError, match='needs a number'):
    score_generation(NUMERIC, gold('many'), '3')


def test_stop_strings():
  assert cut_at_stop('a\nQ: b\nQuestion: c', STOP) == 'a'
  # The first of several, and not the last.
  assert cut_at_stop('a\nQ: b\nQ: c', STOP) == 'a'
  assert cut_at_stop('abc', ()) == 'abc'
  assert cut_at_stop('abc', ('x',)) == 'abc'
  assert cut_at_stop('abc', ('c', 'a')) == ''
