import json

import pytest

from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from evojax_llm.tasks.task_files import load_tasks

# name: (kind, dev items, test items, options of an item)
PUBLISHED = {
  'arc_challenge': ('multiple_choice', 299, 1172, {3, 4, 5}),
  'bbh': ('exact_match', 1000, 1000, None),
  'gsm8k': ('numeric_match', 200, 1000, None),
  'hellaswag': ('multiple_choice', 200, 1000, {4}),
  'knowledge_crosswords': ('multiple_choice', 200, 1000, {4}),
  'medqa': ('multiple_choice', 200, 1000, {4}),
  'mmlu': ('multiple_choice', 200, 1000, {4}),
  'nlgraph': ('exact_match', 200, 1000, None),
  'truthfulqa': ('multiple_choice', 200, 617, set(range(2, 14))),
}


def choice_row(number, **changes):
  row = {
    'question': f'What is {number} + {number}?',
    'choices': {'A': str(2 * number), 'B': str(3 * number + 1)},
    'answer': 'A',
    'id': number,
  }
  return row | changes


def exact_row(number, **changes):
  return {
    'question': f'Say word {number}.',
    'answer': f'word {number}',
  } | changes


@pytest.fixture
def write(tmp_path):
  """write(value, name) -> path of a file with that JSON, or that text."""

  def write(value, name='task.json'):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path

  return write


def refusal(path, **options):
  with pytest.raises(TaskError) as error:
    load_task(path, Rules(**options))
  return str(error.value)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_files_load(data_folder, name):
  kind, dev, test, options = PUBLISHED[name]
  task = load_task(data_folder / f'{name}.json')
  assert (task.kind, len(task.dev), len(task.test)) == (kind, dev, test)
  for items in (task.dev, task.test):
    assert len({item.id for item in items}) == len(items)
  if options:
    items = task.dev + task.test
    assert {len(item.choices) for item in items} == options
    assert all(item.answer in dict(item.choices) for item in items)
  assert bool(task.icl_prompt) == (name == 'knowledge_crosswords')
  assert task.name.lower() == name


def test_hearsay_rings_the_alarm(data_folder):
  message = refusal(data_folder / 'hearsay.json')
  assert '94 of 94 dev items occur in test' in message
  assert "dev '73' = test '73'" in message
  assert (
    len(load_task(data_folder / 'hearsay.json', Rules(allow_overlap=True)).dev)
    == 94
  )


def test_rows_without_id_get_their_index(write):
  rows = [choice_row(i) for i in range(1, 4)]
  del rows[1]['id']
  task = load_task(write({'dataset': 'sums', 'dev': rows}))
  assert [item.id for item in task.dev] == ['1', '1#1', '3']
  for row in rows:
    row.pop('id', None)
  task = load_task(write({'dataset': 'sums', 'dev': rows}))
  assert [item.id for item in task.dev] == ['0', '1', '2']


def test_repeated_ids_are_told_apart(write, caplog):
  names = ['0', '0', '0#1', '0', 0]
  rows = [exact_row(i, id=name) for i, name in enumerate(names)]
  task = load_task(write({'dev': rows}))
  ids = [item.id for item in task.dev]
  assert len(set(ids)) == 5
  assert (ids[0], ids[2], ids[3]) == ('0', '0#1', '0#3')
  assert 'repeated ids, in 3 of 5 rows' in caplog.text


def test_both_json_layouts_and_their_mixture(write):
  swarm = {'dataset': 'a', 'dev': [{'question': 'q', 'answer': 'x', 'id': 7}]}
  other = {
    'name': 'a',
    'task_type': 'exact_match',
    'dev': [{'input': 'q', 'output': 'x', 'id': 7}],
    'test': [],
  }
  mixed = {'dataset': 'a', 'dev': [{'input': 'q', 'answer': 'x', 'id': 7}]}
  expected = (Item('7', 'q', 'x'),)
  for value in (swarm, other, mixed):
    task = load_task(write(value))
    assert (task.name, task.dev, task.test) == ('a', expected, ())
    assert task.kind == 'exact_match'


@pytest.mark.parametrize(
  ('answers', 'extra', 'kind'),
  [
    (['1', '1,000', '-3.5'], {}, 'numeric_match'),
    ([1, 2.5], {}, 'numeric_match'),
    (['so 2 + 2 = 4\n#### 4'], {}, 'numeric_match'),
    (['1', 'Yes'], {}, 'exact_match'),
    (['1', '2'], {'task_type': 'exact_match'}, 'numeric_match'),
    (['1', '2'], {'format': {'kind': 'exact_match'}}, 'exact_match'),
    (['1', '2'], {'task_type': 'numeric_match'}, 'numeric_match'),
  ],
)
def test_kind_follows_from_the_answers(write, answers, extra, kind):
  rows = [exact_row(i, answer=answer) for i, answer in enumerate(answers)]
  task = load_task(write({'dev': rows, **extra}))
  assert task.kind == kind
  assert task.format.max_new_tokens == {'n': 256, 'e': 32}[kind[0]]


def test_format_is_read(write):
  options = {
    'prompt': '{question} {{x}}',
    'choice': 'text',
    'stop': 'END',
    'instruction': '',
  }
  task = load_task(write({'dev': [choice_row(1)], 'format': options}))
  assert task.format == Format(
    prompt='{question} {{x}}',
    instruction='',
    choice='text',
    max_new_tokens=0,
    stop=('END',),
  )


def test_a_byte_order_mark_is_skipped(tmp_path):
  path = tmp_path / 'task.json'
  path.write_text(json.dumps({'dev': [exact_row(1)]}), encoding='utf-8-sig')
  assert len(load_task(path).dev) == 1


def test_jsonl_with_splits(write):
  rows = [exact_row(i, split=('dev', 'test')[i % 2]) for i in range(5)]
  # A line separator inside a string ends no row.
  rows[0]['question'] = 'one\u2028two'
  text = '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in rows) + '\n'
  task = load_task(write(text, 'words.jsonl'))
  assert task.name == 'words'
  assert [item.answer for item in task.dev] == ['word 0', 'word 2', 'word 4']
  assert [item.answer for item in task.test] == ['word 1', 'word 3']
  assert task.dev[0].question == 'one\u2028two'


def test_a_list_of_json_is_read_as_lines_are(write):
  rows = [exact_row(i) for i in range(3)]
  assert len(load_task(write(rows)).dev) == 3
  rows = [{**row, 'split': 'test'} for row in rows[:1]] + [
    {**row, 'split': 'dev'} for row in rows[1:]
  ]
  task = load_task(write(rows))
  assert (len(task.dev), len(task.test)) == (2, 1)


def test_jsonl_without_splits_is_all_dev(write):
  text = '\n'.join(json.dumps(exact_row(i)) for i in range(3))
  task = load_task(write(text, 'words.jsonl'))
  assert len(task.dev) == 3
  with pytest.raises(TaskError, match="'words' .* has no test items"):
    task.items('test')
  with pytest.raises(TaskError, match='no test items'):
    task.subset('test', 2)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'question': None}, ["row 1, field 'question'", 'None']),
    ({'question': ' '}, ["field 'question'", 'not empty']),
    ({'question': ['a']}, ["field 'question'", "['a']"]),
    ({'answer': 'C'}, ["field 'answer'", 'keys A, B', "'C'"]),
    ({'answer': '7'}, ["field 'answer'", "Write its key, 'B'"]),
    ({'choices': {'A': '4'}}, ["field 'choices'", 'at least 2']),
    ({'choices': {'A': '4', 'B': ''}}, ["field 'choices'", "'B'"]),
    ({'choices': {'A': '4', '': 'x'}}, ["field 'choices'", "''"]),
    ({'id': [1]}, ["field 'id'", '[1]']),
    ({'input': 'twice'}, ["'question' or 'input' or 'prompt'", 'keep one']),
  ],
)
def test_broken_rows_are_named(write, change, words):
  rows = [choice_row(1), choice_row(2, **change)]
  message = refusal(write({'dev': [choice_row(9)], 'test': rows}))
  for word in ["task.json, 'test' row 1", *words]:
    assert word in message


def test_missing_field_lists_what_is_there(write):
  message = refusal(write({'dev': [{'text': 'x', 'answer': 'y'}]}))
  assert "'question' or 'input' or 'prompt'; the row has text" in message


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    ({'dev': []}, ['no rows']),
    ({'dev': {'a': 1}}, ["'dev': expected a list"]),
    ({'dev': ['x']}, ["'dev' row 0: expected an object"]),
    ({'dev': [choice_row(1)], 'fromat': {}}, ['fromat', "mean 'format'"]),
    ({'dev': [choice_row(1)], 'format': [1]}, ["'format': expected an object"]),
    ({'dev': [choice_row(1)], 'name': 3}, ["'name': expected text"]),
    ({'dev': [choice_row(1)], 'name': 'a\nb'}, ["'name': expected text"]),
    ({'dev': [choice_row(1)], 'task_type': 'codes'}, ['codes', 'Expected']),
    ({'dev': [choice_row(1)], 'task_type': 'exact_match'}, ['have choices']),
    ({'dev': [exact_row(1)], 'task_type': 'multiple_choice'}, ['no choices']),
    ({'dev': [exact_row(1)], 'test': [choice_row(1)]}, ['only one of']),
    ({'dev': [exact_row(1)], 'task_type': 'numeric_match'}, ["'word 1'"]),
    ({'dev': [exact_row(1)], 'task_type': 'ifeval'}, ['no counterpart']),
  ],
)
def test_broken_files_are_refused(write, value, words):
  message = refusal(write(value))
  for word in ['task.json', *words]:
    assert word in message


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'max_tokens': 3}, ["'max_tokens'", "mean 'max_new_tokens'"]),
    ({'choice': 'letters'}, ['format', 'choice', "mean 'letter'"]),
    ({'max_new_tokens': -1}, ['max_new_tokens', '-1']),
    ({'max_new_tokens': True}, ['max_new_tokens', 'True']),
    ({'stop': ['']}, ['stop']),
    ({'stop': 3}, ['stop']),
    ({'prompt': '{question}'}, ['{choices} is missing']),
    ({'prompt': '{choices}'}, ['{question} is missing']),
    ({'prompt': '{question}{choices}{answer}'}, ['answer']),
    ({'prompt': '{question}{choices}{'}, ['prompt']),
    ({'prompt': '{question[0]}{choices}'}, ['prompt']),
    ({'prompt': 4}, ['prompt', 'text']),
    ({'instruction': 4}, ['Got instruction 4']),
    ({'kind': 'exact_match'}, ["'format.kind'", 'have choices']),
  ],
)
def test_broken_formats_are_refused(write, options, words):
  message = refusal(write({'dev': [choice_row(1)], 'format': options}))
  for word in ['task.json', *words]:
    assert word in message


def test_broken_json_is_refused(write, tmp_path):
  assert 'line 2, column' in refusal(write('{"dev":\n [}'))
  assert "'A' stands twice" in refusal(
    write('{"dev": [{"question": "q", "choices": {"A": "1", "A": "2"}}]}')
  )
  assert 'a.jsonl line 3: not valid JSON' in refusal(
    write(json.dumps(exact_row(1)) + '\n\n{', 'a.jsonl')
  )
  assert 'a.jsonl line 2' in refusal(
    write(json.dumps(exact_row(1)) + '\n[]', 'a.jsonl')
  )
  assert 'line 2' in refusal(
    write(
      '\n'.join(map(json.dumps, [exact_row(1, split='dev'), exact_row(2)])),
      'a.jsonl',
    )
  )
  assert 'is empty' in refusal(write('\n', 'a.jsonl'))
  (tmp_path / 'a.json').mkdir()
  assert 'is a folder' in refusal(tmp_path / 'a.json')


def test_tasks_of_one_name_are_refused(write):
  first = write({'name': 'a', 'dev': [exact_row(1)]}, 'one.json')
  second = write({'name': 'a', 'dev': [exact_row(2)]}, 'two.json')
  third = write({'name': 'b', 'dev': [exact_row(2)]}, 'three.json')
  with pytest.raises(TaskError, match="both named 'a'"):
    load_tasks([first, second])
  assert [task.name for task in load_tasks([first, third])] == ['a', 'b']
  with pytest.raises(TaskError, match='No task files'):
    load_tasks([])
  with pytest.raises(ValueError, match='Got names .*; expected a list'):
    load_tasks(first)


def test_subset_is_seeded_nested_and_in_order():
  items = tuple(Item(str(i), f'q{i}', 'a') for i in range(200))
  task = Task('t', 'exact_match', items)
  small, large = task.subset('dev', 20, 3), task.subset('dev', 50, 3)
  assert len(small) == 20 and set(small) < set(large)
  assert list(small) == sorted(small, key=items.index)
  assert small == task.subset('dev', 20, 3)
  assert small != task.subset('dev', 20, 4)
  other = Task('t', 'exact_match', items, items)
  assert other.subset('test', 20, 3) != small
  # Where an item stands does not matter to whether it is drawn.
  turned = Task('t', 'exact_match', items[::-1])
  assert set(turned.subset('dev', 20, 3)) == set(small)
  assert task.subset('dev') == task.subset('dev', 500) == items
  with pytest.raises(TaskError, match='limit=0'):
    task.subset('dev', 0)
  with pytest.raises(TaskError, match="'train'"):
    task.subset('train')
