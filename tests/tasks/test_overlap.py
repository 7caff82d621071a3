import json

import pytest

from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import find_overlap
from evojax_llm.tasks.task_files import load_task

BASE = Item('1', 'What is it?', 'A', (('A', 'red'), ('B', 'blue')))


@pytest.mark.parametrize(
  ('other', 'same'),
  [
    (BASE, True),
    (Item('9', 'what  is\nIT? ', 'A', (('A', ' Red'), ('B', 'blue'))), True),
    # Shuffled options, other keys, another gold answer: still the same item.
    (Item('9', 'What is it?', 'B', (('A', 'blue'), ('B', 'red'))), True),
    (Item('9', 'What is it?', '2', (('1', 'red'), ('2', 'blue'))), True),
    (Item('9', 'What is it?', 'A', (('A', 'red'), ('B', 'green'))), False),
    (Item('9', 'What was it?', 'A', BASE.choices), False),
    (Item('9', 'What is it?', 'A'), False),
    (
      Item('9', 'What is it?', 'A', (*BASE.choices, ('C', 'red'))),
      False,
    ),
  ],
)
def test_what_makes_two_items_the_same(other, same):
  assert (BASE.identity == other.identity) == same
  assert bool(find_overlap([BASE], [other])) == same


def test_texts_without_a_question_are_their_answers():
  texts = [Item('1', '', 'Once upon a time'), Item('2', '', 'once  upon a tin')]
  assert not find_overlap(texts[:1], texts[1:])
  assert find_overlap(texts, [Item('9', '', 'once upon a TIME')])


def test_each_dev_item_counts_once():
  dev = [Item(f'd{i}', f'Question {i // 2}', 'x') for i in range(6)]
  test = [Item(f't{i}', f'question  {i // 2}', 'y') for i in range(4)]
  pairs = find_overlap(dev, test)
  assert [(a.id, b.id) for a, b in pairs] == [
    ('d0', 't0'),
    ('d1', 't0'),
    ('d2', 't2'),
    ('d3', 't2'),
  ]
  assert find_overlap(dev, []) == find_overlap([], test) == []


def test_load_task_refuses_or_warns(tmp_path, caplog):
  rows = [{'question': f'q {i}', 'answer': 'x'} for i in range(4)]
  path = tmp_path / 'task.json'
  path.write_text(
    json.dumps({'dev': rows[:3], 'test': [rows[3], {**rows[1], 'id': 'T'}]})
  )
  with pytest.raises(TaskError, match='1 of 3 dev items') as error:
    load_task(path)
  assert "dev '1' = test 'T': q 1" in str(error.value)
  assert '(--config.allow_overlap of' in str(error.value)
  assert len(load_task(path, Rules(allow_overlap=True)).test) == 2
  assert '1 of 3 dev items' in caplog.text
  path.write_text(json.dumps({'dev': rows, 'test': rows}))
  with pytest.raises(TaskError, match="dev '2' = test '2': q 2") as error:
    load_task(path)
  assert 'q 3' not in str(error.value) and '... and 1 more' in str(error.value)
