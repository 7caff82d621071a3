"""Rows to learn from: of files, and of tasks as their scorers want them."""

import json

import pytest

from evojax_llm.tasks import training_data
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from tests.fitness.setting import Letters
from tests.fitness.setting import tiny_tasks

TOKENIZER = Letters()


def written(tmp_path, *rows):
  path = tmp_path / 'rows.jsonl'
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text('\n'.join(lines) + '\n')
  return path


def test_reads_and_encodes_texts_and_pairs(tmp_path):
  path = written(
    tmp_path,
    {'prompt': 'one ', 'completion': 'two'},
    '',
    {'prompt': 'a' * 40, 'completion': 'b'},
  )
  rows = training_data.read(path)
  assert rows[0] == training_data.TrainingRow('one ', ('two',))
  (row,) = training_data.encode(rows, TOKENIZER, max_length=20)
  # The space goes to what follows, as in scoring; the end is learnt.
  assert TOKENIZER.decode(row.prompt[1:]) == 'one'
  assert TOKENIZER.decode(row.completions[0][:-1]) == ' two'
  assert row.completions[0][-1] == 2
  with pytest.raises(TaskError, match='All 2 rows .* longer than 3 tokens'):
    training_data.encode(rows, TOKENIZER, max_length=3)
  path = written(tmp_path, {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'})
  (row,) = training_data.encode(
    training_data.read(path, training_data.PAIRS), TOKENIZER
  )
  assert [TOKENIZER.decode(text[:-1]) for text in row.completions] == ['c', 'r']


@pytest.mark.parametrize(
  'row, keys, message',
  [
    ('{"prompt": ', training_data.TEXTS, 'line 2: not valid JSON'),
    ([1], training_data.TEXTS, r'line 2: got \[1\]. Expected an object'),
    ({'prompt': 'a'}, training_data.TEXTS, "line 2: no key 'completion'"),
    (
      {'prompt': 'a', 'completion': 3},
      training_data.TEXTS,
      "line 2, key 'completion': expected text that is not empty, got 3",
    ),
    (
      {'prompt': 'a', 'chosen': 'b', 'rejected': ' '},
      training_data.PAIRS,
      "line 2, key 'rejected'",
    ),
    (
      {'prompt': 'a', 'chosen': 'b', 'rejected': 'b'},
      training_data.PAIRS,
      "line 2: 'chosen' and 'rejected' are the same text",
    ),
  ],
)
def test_refuses_rows(tmp_path, row, keys, message):
  whole = {'prompt': 'a', 'completion': 'b', 'chosen': 'b', 'rejected': 'c'}
  path = written(tmp_path, whole, row)
  with pytest.raises(TaskError, match=message):
    training_data.read(path, keys)
  with pytest.raises(TaskError, match='the file has no rows'):
    training_data.read(written(tmp_path, ''), keys)


def shown(task, item=None):
  rows = training_data.encode_task(task, [item or task.dev[0]], TOKENIZER)
  if not rows:
    return None
  row = rows[0]
  text = row.completions[0]
  ended = text[-1] == 2
  return (
    TOKENIZER.decode(row.prompt[1:]),
    TOKENIZER.decode(text[: -1 if ended else None]),
    ended,
  )


def test_a_task_gives_its_gold_answers():
  choice, exact = tiny_tasks()
  assert shown(choice) == ('pick', ' yes', False)
  assert shown(exact) == ('say a', ' a', True)
  # Nothing parts an answer from what opens it.
  opened = Item('0', 'sor:ba=', 'ab')
  assert shown(exact, opened) == ('sor:ba=', 'ab', True)
  longer = training_data.encode_task(exact, exact.dev, TOKENIZER, max_length=12)
  assert 0 < len(longer) < len(exact.dev)


@pytest.mark.parametrize(
  'kind, options, wanted',
  [
    ('numeric_match', {}, '12'),
    ('exact_match', {'match': 'marked'}, 'Answer: 12'),
    ('exact_match', {'match': 'genome'}, 'Answer: 12'),
    ('regex_match', {'pattern': r'#### (\d+)'}, '#### 12'),
    ('code', {}, None),
    ('reward', {'folder': 'unread'}, None),
  ],
)
def test_answers_are_written_as_the_scorer_wants_them(kind, options, wanted):
  task = Task(
    'task',
    kind,
    (Item('0', 'How many?', '12'),),
    format=Format(),
    options=tuple(options.items()),
  )
  found = shown(task)
  assert found is None if wanted is None else found[1].strip() == wanted
