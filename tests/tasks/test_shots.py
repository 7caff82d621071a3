"""Worked examples: chosen by a seed, shown, and never scored."""

import json

import pytest

from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.prompts import encode_passes
from evojax_llm.tasks.prompts import write_messages
from evojax_llm.tasks.prompts import write_prompt
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from tests import tiny


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tiny.write_tokenizer(folder)
  return Tokenizer.from_folder(folder)


def exact(number):
  return {'question': f'Say {number}.', 'answer': f'word {number}'}


def choice(number):
  return {
    'question': f'Which is {number}?',
    'choices': {'A': 'tea', 'B': f'inn {number}'},
    'answer': 'AB'[number % 2],
  }


@pytest.fixture
def load(tmp_path):
  def load(row=exact, rules=None, test=(), count=90, **format):
    path = tmp_path / 'task.json'
    top = {'name': 't', 'dev': [row(i) for i in range(count)]}
    path.write_text(
      json.dumps({**top, 'test': [row(i) for i in test], 'format': format})
    )
    return load_task(path, rules)

  return load


def test_shots_are_seeded_and_leave_dev(load):
  whole, few = load(), load(shots=3)
  assert len(few.shots) == 3 and len(few.dev) == 87
  assert set(few.shots) | set(few.dev) == set(whole.dev)
  assert not set(few.shots) & set(few.dev)
  assert load(shots=3).shots == few.shots
  assert load(shots=5).shots[:3] == few.shots
  assert load(shots=3, shots_seed=1).shots != few.shots
  # A limit chooses among what is left.
  assert not set(few.subset('dev', 20)) & set(few.shots)


def test_copies_of_a_shot_are_not_scored_and_no_shot_is_tested(load, caplog):
  repeated = load(lambda i: exact(i % 10), shots=4, count=40)
  shown = {shot.identity for shot in repeated.shots}
  assert len(shown) == 4
  assert not shown & {item.identity for item in repeated.dev}
  leaking = load(rules=Rules(allow_overlap=True), test=range(0, 80), shots=5)
  tested = {item.identity for item in leaking.test}
  assert not tested & {shot.identity for shot in leaking.shots}


def test_settings_for_all_tasks_come_first(load):
  assert len(load(rules=Rules(shots=2), shots=5).shots) == 2
  assert load(rules=Rules(shots=0), shots=5).shots == ()
  assert load(rules=Rules(system='Be brief.')).format.system == 'Be brief.'


def test_raw_prompts(load):
  task = load(choice, shots=2, system='Be brief.')
  a, b = task.shots
  item = task.dev[0]
  assert write_prompt(task, item) == (
    'Be brief.\n\n'
    'Please choose an option that best answers the question.\n'
    f'Question: {a.question}\nA: tea\nB: {a.choices[1][1]}\n'
    f'The answer is {a.answer}\n\n'
    f'Question: {b.question}\nA: tea\nB: {b.choices[1][1]}\n'
    f'The answer is {b.answer}\n\n'
    f'Question: {item.question}\nA: tea\nB: {item.choices[1][1]}\n'
    'The answer is'
  )
  task = load(choice, shots=1, choice='text')
  assert f'Answer: {dict(task.shots[0].choices)[task.shots[0].answer]}\n\n' in (
    write_prompt(task, task.dev[0])
  )
  task = load(shots=1, prompt='Q: {question}\nA: ')
  assert write_prompt(task, task.dev[0]) == (
    f'Q: {task.shots[0].question}\nA: {task.shots[0].answer}\n\n'
    f'Q: {task.dev[0].question}\nA: '
  )


def test_chat_prompts(load, tokenizer):
  task = load(shots=2, system='Be brief.')
  turns = write_messages(task, task.dev[0])
  assert [turn['role'] for turn in turns] == ['user', 'assistant'] * 2 + [
    'user'
  ]
  assert turns[0]['content'] == f'Be brief.\n\n{task.shots[0].question}'
  assert turns[1]['content'] == task.shots[0].answer
  assert turns[4]['content'] == task.dev[0].question
  encoded = encode_passes(task, task.dev[0], tokenizer, chat=True)[0]
  assert encoded.prompt == tuple(tokenizer.encode_chat(turns))
  alone = load(system='Be brief.')
  (turn,) = write_messages(alone, alone.dev[0])
  assert turn['content'].startswith('Be brief.\n\nSay')


def test_what_is_cut_is_counted(load, tokenizer, caplog):
  task = load(shots=5)
  items = encode_items(task, task.dev, tokenizer, max_length=60)
  assert all(len(item.prompt) + item.max_new_tokens == 60 for item in items)
  assert all(item.truncated > 0 for item in items)
  assert '85 of 85 prompts are longer' in caplog.text


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'shots': 90}, '90 shots of 90 dev items'),
    ({'shots': -1}, 'shots: expected an integer from 0'),
    ({'shots': '3'}, 'shots: expected an integer'),
    ({'shots': 1, 'shots_seed': -1}, 'shots_seed'),
    ({'system': 3}, 'Got system 3; expected str'),
  ],
)
def test_shots_that_cannot_be_are_refused(load, options, words):
  with pytest.raises(TaskError, match=words):
    load(**options)
