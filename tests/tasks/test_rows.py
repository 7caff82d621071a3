"""Rows that need care: padded options, bad ones, copies, names of code."""

import json

import pytest

from evojax_llm.tasks.prompts import encode_passes
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from evojax_llm.tasks.task_files import load_tasks


@pytest.fixture
def load(tmp_path):
  """load(dev, test=..., rules=..., **top) -> task."""

  def load(dev, rules=None, **top):
    path = tmp_path / 'task.json'
    path.write_text(json.dumps({'dev': dev, **top}))
    return load_task(path, rules)

  return load


def rows(count, start=0, **changes):
  return [
    {'question': f'q{i}', 'answer': f'a{i}', **changes}
    for i in range(start, start + count)
  ]


def choice(**choices):
  return {'question': 'q', 'choices': choices, 'answer': next(iter(choices))}


def test_options_that_are_none(load):
  task = load([choice(A='x', B='y', C=None), choice(A='x', B='y', id=3)])
  assert {item.choices for item in task.dev} == {(('A', 'x'), ('B', 'y'))}
  # Where an answer is 'id' it is a key like others.
  named = load([choice(id='x', B='y'), choice(A='x', id='y')])
  assert [len(item.choices) for item in named.dev] == [2, 2]


def test_options_of_the_same_text_are_told(load, caplog):
  load([choice(A='x', B='y'), choice(A='x', B='x ')])
  assert "same text in 1 of 2 items, such as '1'" in caplog.text


@pytest.mark.parametrize(
  ('changes', 'keys', 'answer'),
  [
    ({'choices': ['w', 'x', 'y', 'z'], 'answer': 2}, 'ABCD', 'C'),
    ({'choices': ['3', '2', '1'], 'answer': 1}, 'ABC', 'B'),
    ({'choices': ['x', 'y', None], 'answer': 'y'}, 'AB', 'B'),
    ({'choices': ['x', 'y'], 'output': '1'}, 'AB', 'B'),
    ({'choices': ['x', 'y'], 'answer': ['A']}, 'AB', 'A'),
    ({'choices': {'text': ['x', 'y'], 'label': ['A', 'B']}}, 'AB', 'B'),
    (
      {'choices': {'text': ['x', 'y'], 'label': [1, 2]}, 'answer': 2},
      '12',
      '2',
    ),
    (
      {'choices': {'text': 'x', 'label': 'y'}, 'answer': 'label'},
      None,
      'label',
    ),
  ],
)
def test_options_of_published_layouts(load, changes, keys, answer):
  task = load([{'question': 'q', 'answerKey': 'B', **changes}])
  assert task.kind == 'multiple_choice' and task.dev[0].answer == answer
  assert [key for key, _ in task.dev[0].choices] == list(
    keys or ('text', 'label')
  )


def test_an_item_of_too_many_options_is_refused(load):
  many = {f'k{i}': 'x' for i in range(1001)}
  with pytest.raises(TaskError, match='1001 options; expected 1000 at most'):
    load([choice(**many)])


@pytest.mark.parametrize(
  'value',
  [10**5000, float('inf'), float('nan'), 'a\ud800', True],
  ids=['huge', 'inf', 'nan', 'half', 'true'],
)
def test_values_that_only_python_can_hold(value, tmp_path):
  path = tmp_path / 'task.py'
  path.write_text(
    'from evojax_llm.tasks.python_task import PythonTask\n'
    'class T(PythonTask):\n  def dev(self):\n    return ROWS\n'
  )
  from evojax_llm import lookup

  module = lookup.load_module(str(path))
  for row in (
    {'question': value, 'answer': 'a'},
    {'question': 'q', 'answer': value},
  ):
    module.ROWS = [row]
    with pytest.raises(TaskError, match='expected text that is not empty'):
      load_task(path)


def test_bad_rows_are_counted_and_may_be_left_out(load, caplog):
  dev = rows(6)
  dev[1]['answer'] = dev[3]['question'] = None
  del dev[4]['answer'], dev[5]['answer']
  with pytest.raises(TaskError) as refusal:
    load(dev)
  lines = str(refusal.value).splitlines()
  assert "row 1, field 'answer'" in lines[0] and 'row 4' in lines[2]
  assert lines[3] == '... and 1 more.'
  assert lines[4].startswith('4 of 6 rows cannot be used.')
  assert '(--config.skip_bad_rows of a run, --skip_bad_rows of' in lines[4]
  task = load(dev, Rules(skip_bad_rows=True))
  assert [item.id for item in task.dev] == ['0', '2']
  assert task.left_out == {'bad rows': 4}
  assert '4 of 6 rows are left out' in caplog.text
  with pytest.raises(TaskError, match='2 of 2 rows cannot be used.$'):
    load([{'a': 1}, {'b': 2}], Rules(skip_bad_rows=True))
  # Rows that the scorer cannot score are bad ones as well.
  numbers = [{'question': f'q{i}', 'answer': i} for i in range(3)] + rows(1)
  kind = {'kind': 'numeric_match'}
  task = load(numbers, Rules(skip_bad_rows=True), format=kind)
  assert len(task.dev) == 3 and task.left_out == {'bad rows': 1}


def test_lines_that_are_no_json_are_bad_rows(tmp_path):
  path = tmp_path / 'task.jsonl'
  path.write_text('\n'.join([*map(json.dumps, rows(3)), '{"question": "x']))
  with pytest.raises(TaskError, match='line 4: not valid JSON at column'):
    load_task(path)
  task = load_task(path, Rules(skip_bad_rows=True))
  assert len(task.dev) == 3 and task.left_out == {'bad rows': 1}


def test_overlapping_items_may_be_dropped(load, tmp_path):
  with pytest.raises(TaskError, match='config.drop_overlap'):
    load(rows(5), test=rows(3, start=3))
  drop = Rules(drop_overlap=True)
  task = load(rows(5), drop, test=rows(3, start=3))
  assert [item.answer for item in task.dev] == ['a0', 'a1', 'a2']
  assert task.left_out == {'overlapping items': 2} and len(task.test) == 3
  other = tmp_path / 'other.json'
  other.write_text(json.dumps({'dev': rows(3, start=9), 'test': rows(1)}))
  tasks = load_tasks([tmp_path / 'task.json', other], drop)
  assert [len(task.dev) for task in tasks] == [2, 3]
  assert tasks[0].left_out == {'overlapping items': 3}
  with pytest.raises(TaskError, match='2 of 2 dev items'):
    load(rows(2), drop, test=rows(2))


@pytest.mark.parametrize(
  ('task_type', 'dev', 'kind', 'options'),
  [
    ('f1_match', rows(1), 'drop', {'score_by': 'f1'}),
    ('coding', rows(1, answer='assert f(1)'), 'code', {}),
    ('exact_match', rows(1, answer='3'), 'numeric_match', {}),
    ('AbstainQA', [choice(A='x', B='y')], 'abstain_qa', {}),
    ('multiple_choice', [choice(A='x', B='y')], 'multiple_choice', {}),
  ],
)
def test_kinds_of_published_files(load, task_type, dev, kind, options):
  rules = Rules(allow_code=True)
  task = load(dev, rules, task_type=task_type)
  assert (task.kind, dict(task.options)) == (kind, options)


def test_published_kinds_without_a_counterpart(load):
  with pytest.raises(TaskError, match='ifeval has no counterpart here. Say in'):
    load(rows(1), task_type='ifeval')
  task = load(rows(1), task_type='ifeval', format={'kind': 'exact_match'})
  assert task.kind == 'exact_match'
  with pytest.raises(TaskError, match='folder: name the folder of the reward'):
    load(rows(1), task_type='reward_model')


def test_rows_without_an_answer_ask_for_a_kind(load):
  with pytest.raises(TaskError, match='its kind in "format": judge or reward'):
    load([{'prompt': 'p', 'id': 1}])


CODE = "open({!r}, 'w').close()\ndef rate(a, b):\n  return [1.0 for _ in a]\n"


@pytest.mark.parametrize(
  ('top', 'word'),
  [
    ({'format': {'kind': 'judge', 'function': '{}:rate'}}, 'format.function'),
    ({'format': {'language': 'ja', 'detector': '{}:rate'}}, 'format.detector'),
    ({'format': {'kind': '{}:rate'}}, 'format.kind'),
    ({'task_type': '{}:rate'}, 'task_type'),
    (
      {'format': {'endpoint': 'http://x', 'model': 'm', 'key': 'HOME'}},
      'format.key',
    ),
    ({'format': {'cache': 'x'}}, 'format.cache'),
  ],
)
def test_code_in_a_task_file_is_run_where_it_is_allowed(
  load, tmp_path, top, word
):
  ran = tmp_path / 'ran'
  payload = tmp_path / 'payload.py'
  payload.write_text(CODE.format(str(ran)))
  top = json.loads(json.dumps(top).replace('{}', str(payload)))
  with pytest.raises(TaskError, match=rf"'{word}': .*\(--config.allow_code"):
    load(rows(1), **top)
  assert not ran.exists()
  if word == 'format.function':
    load(rows(1), Rules(allow_code=True), **top)
    assert ran.exists()


def test_a_default_of_new_tokens_follows_the_context(load):
  class Bytes:
    bos_id = 1

    def encode(self, text, bos=True):
      return [1] * bos + list(text.encode())

  numbers = rows(1, answer='3')
  for format_, length, left in (
    ({}, 256, 128),
    ({}, 100, 50),
    ({}, 1000, 256),
    ({'max_new_tokens': 90}, 100, 90),
  ):
    task = load(numbers, format=format_)
    (encoded,) = encode_passes(task, task.dev[0], Bytes(), max_length=length)
    assert encoded.max_new_tokens == left
  with pytest.raises(TaskError, match='max_new_tokens takes 90'):
    encode_passes(task, task.dev[0], Bytes(), max_length=90)
