"""Every scorer of text on cases that lenient rules get wrong."""

import random

import pytest

from evojax_llm.tasks.scorers.choice_text import ChoiceText
from evojax_llm.tasks.scorers.exact import ExactMatch
from evojax_llm.tasks.scorers.exact import RegexMatch
from evojax_llm.tasks.scorers.measures import Drop
from evojax_llm.tasks.scorers.numeric import MathMatch
from evojax_llm.tasks.scorers.numeric import NumericMatch
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import letter_item
from tests.tasks.scorers.judging import text_item


@pytest.mark.parametrize(
  ('text', 'key'),
  [
    ('A.', 'A'),
    ('(B)', 'B'),
    (' B', 'B'),
    ('B) text', 'B'),
    ('**C**', 'C'),
    ('"D"', 'D'),
    ('[E]', 'E'),
    ('Option F', 'F'),
    ('G:', 'G'),
    ('\n\n H\nA', 'H'),
    ('The answer is K.', 'K'),
    ('Answer: (J) because it is', 'J'),
    ('The correct answer is: **P**', 'P'),
    ('the answer is B, since A is wrong', 'B'),
    ('Answer: B\nwait.\nAnswer: C', 'C'),
    ('\\boxed{E}', 'E'),
    ('so \\boxed{\\text{F}}, not A', 'F'),
    ('text c', 'C'),
    ('The answer is Text G.', 'G'),
    # An article, a pronoun, a word, two options, nothing.
    ('A dog', None),
    ('The answer is A dog', None),
    ('I think so', None),
    ('None of them', None),
    ('AB', None),
    ('A, B', None),
    ('A or B', None),
    ('b', None),
    ('Q', None),
    ('text', None),
    ('', None),
    (' \n', None),
  ],
)
def test_key_of_an_option(text, key):
  scorer = ChoiceText()
  assert judge(scorer, letter_item('B'), text) == (key, float(key == 'B'))


@pytest.mark.parametrize(
  ('text', 'key'),
  [
    ('2', '2'),
    ('2.', '2'),
    ('(2)', '2'),
    ('The answer is 3.', '3'),
    ('blue', '2'),
    ('2.5', None),
    ('12', None),
    ('1, 2', None),
    ('-1', None),
  ],
)
def test_numeric_key(text, key):
  choices = (('1', 'red'), ('2', 'blue'), ('3', 'green'))
  item = Item('0', 'q', '2', choices)
  assert judge(ChoiceText(), item, text)[0] == key


@pytest.mark.parametrize(
  ('parse', 'text', 'key'),
  [
    # 'A' of 'Answer' is in the first five characters.
    ('model_swarms', 'Answer: C', 'A'),
    ('model_swarms', 'it must be C', 'C'),
    ('model_swarms', 'the one of them is text b, as said here', 'B'),
    ('model_swarms', 'nothing at all', None),
    ('evogm', 'so the answer is (B), or is it', 'B'),
    # Letters past D are not looked for.
    ('evogm', 'well, the answer is K, I would guess so', None),
    ('evogm', 'this is far too long for it: text b, as said here', None),
    ('evogm', 'that is: text b, yes', 'B'),
    ('genome', 'think\nAnswer: B', 'B'),
    ('genome', 'Answer: B.', 'B.'),
    ('genome', 'B', 'C'),
  ],
)
def test_published_parsers_of_keys(parse, text, key):
  assert judge(ChoiceText(parse), letter_item('B'), text)[0] == key


@pytest.mark.parametrize(
  ('options', 'answer', 'text', 'right'),
  [
    ({'match': 'words'}, 'No', 'The answer: No, there is none', True),
    ({'match': 'words'}, 'No', 'Node 3', False),
    ({'match': 'words'}, 'No', 'no', False),
    ({'match': 'words', 'ignore_case': True}, 'No', 'no', True),
    ({'match': 'words'}, '1', 'x = 1.', True),
    ({'match': 'words'}, '1', '$1', True),
    ({'match': 'words'}, '1', '12', False),
    ({'match': 'words'}, '1', '1.5', False),
    ({'match': 'words'}, '1', '1,000', False),
    ({'match': 'words'}, '1', '-1', False),
    ({'match': 'words'}, '> ]', 'so: > ]', True),
    ({'match': 'marked'}, 'No', 'Yes\nAnswer: **No**.', True),
    ({'match': 'marked'}, 'No', 'No', False),
    ({'ignore_case': True}, 'No', 'NO.', True),
    ({'match': 'model_swarms'}, 'No', 'Node 3', True),
    ({'match': 'evogm'}, '1', 'it is 12', True),
    ({'match': 'model_swarms'}, 'No', 'Yes', False),
    ({'match': 'genome'}, '18', 'Answer: 18', True),
    ({'match': 'genome'}, '18', 'Answer: 18.', False),
    ({'match': 'genome'}, '18', '18', False),
    ({'match': 'words'}, 'No', '', False),
    ({'match': 'model_swarms'}, 'No', '', False),
  ],
)
def test_matches_of_text(options, answer, text, right):
  assert judge(ExactMatch(**options), text_item(answer), text)[1] == right


def test_any_of_several_gold_answers_is_right():
  item = text_item('colour', 'color')
  for text, right in (('Color', 0), ('color', 1), ('colour.', 1), ('hue', 0)):
    assert judge(ExactMatch(), item, text)[1] == right
  assert judge(NumericMatch(), text_item('1', '2'), 'so 2')[1] == 1


@pytest.mark.parametrize(
  ('options', 'answer', 'text', 'right'),
  [
    ({'match': 'model_swarms'}, '5', 'the result is 15', True),
    ({'match': 'model_swarms'}, '5', '5 ' + 'x ' * 12, False),
    ({'match': 'model_swarms', 'last_words': 5}, '5', '5 a b c d e f', False),
    ({'match': 'evogm'}, '5', '5 a b c d e f', True),
    ({'match': 'genome'}, '3', 'Answer: -3', True),
    ({'match': 'genome'}, '15', 'Answer: 1.5', True),
    ({'match': 'genome'}, '15', '15', False),
    ({'match': 'sakana'}, '0', '1,000', True),
    ({'match': 'sakana'}, '1000', '1,000', False),
    ({'match': 'sakana'}, '-3', 'so -3', True),
    ({'tolerance': 0.01}, '3.14', '3.15', True),
    ({'tolerance': 0.01}, '3.14', '3.2', False),
  ],
)
def test_published_and_tolerant_numbers(options, answer, text, right):
  assert judge(NumericMatch(**options), text_item(answer), text)[1] == right


@pytest.mark.parametrize(
  ('options', 'text', 'prediction'),
  [
    ({'pattern': r'\d+'}, 'a 1 b 22', '22'),
    ({'pattern': r'\d+', 'occurrence': 'first'}, 'a 1 b 22', '1'),
    ({'pattern': r'is (\w+)'}, 'it is so', 'so'),
    ({'pattern': r'is (\w+)'}, 'none', None),
    ({'pattern': r'IS (\w+)', 'ignore_case': True}, 'it is so', 'so'),
  ],
)
def test_regex(options, text, prediction):
  scorer = RegexMatch(**options)
  assert judge(scorer, text_item('so'), text)[0] == prediction


@pytest.mark.parametrize(
  ('gold', 'text', 'right'),
  [
    ('\\frac{1}{2}', '\\boxed{\\dfrac12}', True),
    ('\\frac{1}{2}', 'The answer is $1/2$.', True),
    ('\\frac{1}{2}', '0.5', True),
    ('\\frac{1}{2}', '\\boxed{.5}', True),
    ('-\\frac{1}{2}', '\\boxed{\\frac{-1}{2}}', True),
    ('\\frac{3}{4}', '\\boxed{\\frac{4}{3}}', False),
    ('so \\boxed{3}', 'thus \\boxed{3}', True),
    ('12', '\\boxed{1}', False),
    ('10000', '\\boxed{10,000}', True),
    ('5', '\\boxed{\\$5}', True),
    ('90', '\\boxed{90^\\circ}', True),
    ('50', '\\boxed{50\\%}', True),
    ('5', '\\boxed{5\\text{ cm}}', True),
    ('\\text{Evelyn}', '\\boxed{Evelyn}', True),
    ('3', '\\boxed{x = 3}', True),
    ('\\sqrt{3}', '\\boxed{\\sqrt3}', True),
    ('x^2', '\\boxed{x^{2}}', True),
    ('(1, 2)', '\\boxed{\\left(1,2\\right)}', True),
    ('(1, \\frac{1}{2})', '\\boxed{(1,0.5)}', True),
    ('(1, 2)', '\\boxed{(2, 1)}', False),
    ('(1, 2)', '\\boxed{[1, 2]}', False),
    ('-3', '\\boxed{3}', False),
    ('2\\pi', '\\boxed{2 \\pi}', True),
    ('7', 'first\n\nx = 7.', True),
    ('7', '', False),
    ('7', '\\boxed{}', False),
  ],
)
def test_math(gold, text, right):
  assert judge(MathMatch(), text_item(gold), text)[1] == right


def test_published_math_knows_one_spelling():
  scorer = MathMatch(match='genome')
  gold = text_item('\\frac{1}{2}')
  assert judge(scorer, gold, 'Answer: \\frac{1}{2}')[1] == 1
  assert judge(scorer, gold, 'Answer: \\dfrac{1}{2}')[1] == 0


@pytest.mark.parametrize(
  ('gold', 'text', 'em', 'f1'),
  [
    ('Tom Brady', 'tom brady.', 1, 1),
    ('Tom Brady', 'the Brady', 0, 0.67),
    ('a|b c', 'B C', 1, 1),
    ('3', '3.0', 1, 1),
    ('3 yards', '4 yards', 0, 0),
    ('3 yards', '3', 0, 0.67),
    ('1,000', '1000', 1, 1),
    ('twenty-five', 'twenty five', 1, 1),
    ('x', '', 0, 0),
    ('x', 'the', 0, 0),
  ],
)
def test_drop(gold, text, em, f1):
  item = text_item(gold)
  assert judge(Drop(), item, text)[1] == em
  assert judge(Drop(score_by='f1'), item, text)[1] == pytest.approx(f1)


@pytest.mark.parametrize(
  ('gold', 'text', 'em', 'f1'),
  [
    ('Bell, Gray', 'gray, the Bell.', 1, 1),
    ('Bell, Gray', 'Bell', 0, 0.5),
    ('Bell, Gray', 'Bell, Gray, Tom', 0, 0.67),
    ('Bell, Gray', 'Bell Gray', 0, 0.33),
    # Each span has one partner: a span said twice is worth no more.
    ('Bell, Gray', 'Bell, Bell', 0, 0.5),
    ('Tom Bell, Bell', 'Bell, Tom', 0, 0.83),
    ('3 yards, 5 yards', '5 yards, 4 yards', 0, 0.5),
    ('Bell, Gray|Bell', 'Bell', 1, 1),
    ('Bell, Gray', ', the', 0, 0),
  ],
)
def test_drop_of_several_spans(gold, text, em, f1):
  item = text_item(gold)
  assert judge(Drop(spans=', '), item, text)[1] == em
  scorer = Drop(score_by='f1', spans=', ')
  assert judge(scorer, item, text)[1] == pytest.approx(f1)


@pytest.mark.filterwarnings('ignore')  # what the harness's packages warn of
def test_drop_is_that_of_the_official_script():
  script = pytest.importorskip(
    'lm_eval.tasks.drop.utils', reason='the harness has a copy of the script'
  )
  words = ['Tom', 'bell', '3', '3.0', '1,000', 'x-y', 'the inn', 'Bell.', '$5']
  rng = random.Random(0)
  seen = set()
  for _ in range(400):
    gold, said = (
      [
        ' '.join(rng.choices(words, k=rng.randint(1, 3)))
        for _ in range(rng.randint(1, 3))
      ]
      for _ in range(2)
    )
    em, f1 = script.get_metrics(said, gold)
    item = text_item('; '.join(gold))
    text = '; '.join(said)
    assert judge(Drop(spans='; '), item, text)[1] == em, (gold, said)
    scorer = Drop(score_by='f1', spans='; ')
    assert judge(scorer, item, text)[1] == f1, (gold, said)
    seen.add(f1)
  assert len(seen) > 10


def test_published_drop_takes_the_whole_text_without_a_mark():
  item = text_item('x')
  assert judge(Drop(extract='genome'), item, 'thinking\nAnswer: x')[1] == 1
  assert judge(Drop(extract='marked'), item, 'x')[1] == 0
  assert judge(Drop(extract='genome'), item, 'x')[1] == 1


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (
      lambda: ExactMatch(match='lines'),
      "Got match 'lines'; expected one of 'line'",
    ),
    (lambda: NumericMatch(last_words=0), 'Got last_words 0; expected 1 or'),
    (lambda: NumericMatch(tolerance='x'), "Got tolerance 'x'; expected 0 or"),
    (lambda: ExactMatch(ignore_case=1), 'Got ignore_case 1; expected bool'),
    (lambda: RegexMatch(pattern='('), 'regular expression'),
  ],
)
def test_wrong_options_are_refused(make, words):
  with pytest.raises(TaskError, match=words):
    make()


def test_a_pattern_that_takes_for_ever_is_told(monkeypatch):
  monkeypatch.setattr('evojax_llm.tasks.scorers.exact._SECONDS', 0.05)
  scorer = RegexMatch(pattern='(a|aa)+$')
  with pytest.raises(TaskError, match='takes more than 0.05 seconds'):
    judge(scorer, text_item('a'), 'a' * 99 + '!')
