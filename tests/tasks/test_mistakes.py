"""Likely mistakes in task files: where it is, what is wrong, what to do."""

import json

import pytest

from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import load_task

CHOICES = {'A': 'red', 'B': 'blue'}
ROW = {'question': 'q', 'choices': CHOICES, 'answer': 'A'}


def with_row(**changes):
  """A file whose second row is changed; None leaves a field out."""
  row = {k: v for k, v in (ROW | changes).items() if v is not None}
  return {'dev': [ROW | {'question': 'p'}, row]}


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('a.json', '{"dev": [{"answer": "a"},]}', ['near', 'a comma too many']),
    ('a.json', '{"dev": [{"ques', ['near', 'cut off']),
    ('a.json', '{"a": 1}\n{"a": 2}\n', ['Extra data', 'ends in .jsonl']),
    ('a.jsonl', '{\n "dev": []}', ['line 1', 'ends in .json.']),
    ('a.json', '{"dev": [{"answer": NaN}]}', ['NaN', 'in quotes']),
    ('a.json', ' \n', ['the file is empty']),
    ('a.json', {'train': [ROW]}, ['has train', 'Call the rows']),
    ('a.json', 'null', ['expected an object with "dev"']),
    ('a.json', [{**ROW, 'split': 'val'}], ['a.json row 0', "got 'val'"]),
    ('a.xls', 'question,answer', ['.json, .jsonl, .csv', 'an object a line']),
    ('a.JSON', '{"dev": {', ['near', 'cut off']),
    (
      'a.jsonl',
      {'split': 'train', **ROW},
      ['line 1', 'which a search may see', 'Rename it', "'train' and"],
    ),
    (
      'a.json',
      with_row(question=None, qestion='q'),
      ["'dev' row 1", "Rename 'qestion' to 'question'"],
    ),
    (
      'a.json',
      with_row(answer=None, answerKey='A'),
      ["'dev' row 1", "Rename 'answerKey' to 'answer'"],
    ),
    ('a.json', with_row(answer='a'), ["'dev' row 1", "Write its key, 'A'"]),
    ('a.json', with_row(answer='blue'), ['keys A, B', "Write its key, 'B'"]),
    ('a.json', with_row(answer=1), ["got '1'", 'a list of options takes']),
    (
      'a.json',
      with_row(answer=None, response='A'),
      ["Rename 'response' to 'answer'"],
    ),
    ('a.json', with_row(answer=True), ['row 1', 'got True', 'in quotes']),
    ('a.json', with_row(choices='a, b'), ['an object', 'or a list of 26']),
    ('a.json', with_row(choices=['x'] * 27), ['or a list of 26']),
    ('a.json', with_row(choices=['a', 'b'], answer=2), ['is 1 at most']),
    ('a.json', with_row(choices=['a', 'b'], answer=-1), ["B, got '-1'"]),
    (
      'a.json',
      with_row(choices=['B', 'A']),
      ['any of the options A, B: write'],
    ),
    ('a.json', with_row(choices=['1', '2'], answer='1'), ['options A, B']),
    ('a.json', with_row(choices=['a', 'a'], answer='a'), ['options A, B']),
    (
      'a.json',
      with_row(choices={'text': ['a', 'b'], 'label': ['A', 'A']}),
      ['two options have one key'],
    ),
    (
      'a.json',
      {'dev': [ROW], 'format': {'norm': 'characters'}},
      ["'format'.norm", 'by their keys', '"choice" to "text"'],
    ),
    (
      'a.json',
      with_row(choices=None),
      ["no field 'choices', unlike row 0", 'split the file in two'],
    ),
    (
      'a.json',
      {
        'dev': [{'question': 'q', 'answer': a} for a in ('3', 'many')],
        'format': {'kind': 'numeric_match'},
      },
      ["'dev' row 1, item '1'", 'needs a number', "'many'"],
    ),
  ],
)
def test_a_mistake_is_told(tmp_path, name, content, words):
  path = tmp_path / name
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(TaskError) as refusal:
    load_task(path)
  for word in (str(path), *words):
    assert word in str(refusal.value)


def test_another_encoding_is_told(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes('{"dev": [{"question": "\u00e9"}]}'.encode('latin-1'))
  with pytest.raises(TaskError, match='not UTF-8: byte 0xe9.*Save it as UTF-8'):
    load_task(path)


def test_what_is_ignored_is_not_told_before_a_refusal(tmp_path, caplog):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps({'validation': [ROW]}))
  with pytest.raises(TaskError, match='no "dev" rows'):
    load_task(path)
  assert not caplog.records
