import pytest

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.language import by_script
from evojax_llm.tasks.scorers.registry import make_scorer
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import text_item

JAPANESE, CHINESE = 'こたえは 3 です', '答案是 3'


def mostly_vowels(text, language):
  """A detector, as a user would write one."""
  assert language == 'xx'
  return sum(c in 'aeiou' for c in text) / max(1, len(text))


@pytest.mark.parametrize(
  ('text', 'language', 'share'),
  [
    (JAPANESE, 'ja', 1),
    (CHINESE, 'ja', 0),
    (CHINESE, 'zh', 1),
    ('The answer is 3', 'ja', 0),
    ('', 'ja', 0),
    ('ответ: 3', 'ru', 1),
    ('답은 3', 'ko', 1),
    ('ab한글', 'ko', 0.5),
  ],
)
def test_scripts(text, language, share):
  assert by_script(text, language) == pytest.approx(share)


def test_a_right_answer_in_another_language_is_wrong():
  gated = make_scorer('numeric_match', {'language': 'ja'})
  assert judge(gated, text_item('3'), JAPANESE) == ('3', 1)
  assert judge(gated, text_item('3'), 'The answer is 3') == ('3', 0)
  assert judge(gated, text_item('4'), JAPANESE) == ('3', 0)
  # All else is the scorer's own.
  assert (gated.metric, gated.reads, gated.binary) == (
    'numeric_match',
    'text',
    True,
  )
  verdicts = gated.score_all([(text_item('3'), Answer((JAPANESE,)))] * 2)
  assert gated.aggregate([], Verdicts.of(verdicts)) == 1


def test_a_detector_of_ones_own():
  options = {'language': 'xx', 'detector': f'{__name__}:mostly_vowels'}
  gated = make_scorer('exact_match', {**options, 'threshold': 0.6})
  assert judge(gated, text_item('aei'), 'aei')[1] == 1
  assert judge(gated, text_item('aeb'), 'aeb')[1] == 1
  assert judge(gated, text_item('abc'), 'abc')[1] == 0
  gated = make_scorer('exact_match', {**options, 'detector': 'posixpath:join'})
  with pytest.raises(TaskError, match="gave 'abc/xx'; expected a probability"):
    judge(gated, text_item('abc'), 'abc')


@pytest.mark.parametrize(
  ('kind', 'options', 'words'),
  [
    ('exact_match', {'language': 'de'}, 'Name another detector'),
    ('multiple_choice', {'language': 'ja'}, 'generates text'),
    ('exact_match', {'threshold': 0.5}, 'say the language'),
    (
      'exact_match',
      {'language': 'x', 'detector': 'nobody:here'},
      "'nobody' cannot be imported",
    ),
    ('exact_match', {'language': 'x', 'detector': 'here'}, "'module:function'"),
    ('exact_match', {'language': 'x', 'detector': 'os:rename'}, 'two argument'),
    ('exact_match', {'language': {}}, 'language: expected str, got {}'),
    ('exact_match', {'language': 'ja', 'threshold': 'x'}, 'expected float'),
    ('exact_match', {'language': 'ja', 'gate': 'x'}, "'all' or 'gold'"),
  ],
)
def test_gates_that_cannot_be_are_refused(kind, options, words):
  with pytest.raises(TaskError, match=words):
    make_scorer(kind, options)


def test_gate_by_the_gold_answer():
  options = {'language': 'ja', 'gate': 'gold'}
  gated = make_scorer('rouge_l', options | {'tokenize': 'characters'})
  for gold, said, value in (
    ('\u306d\u3053', '\u306d\u3053', 1.0),
    ('\u306d\u3053\u3060 A', 'A', 0.0),
    ('AB', 'AB', 1.0),
  ):
    item = Item('0', 'q', gold)
    assert gated.score(item, Answer(texts=(said,))).value == value
