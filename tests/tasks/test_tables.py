"""Tables of rows: endings, separators, packed files, and their formats."""

import gzip
import json

import pytest

from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task

CSV = 'id,question,A,B,answer,split\n7,"one, two",x,y,B,dev\n8,three,x,,A,dev\n'
ROWS = [{'question': f'q{i}', 'answer': 'a'} for i in range(3)]
LINES = ''.join(json.dumps(row) + '\n' for row in ROWS)
HEAD = '{"format": {"max_new_tokens": 4}, "name": "words"}\n'


def load(tmp_path, name, text, **rules):
  path = tmp_path / name
  data = text.encode()
  path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  return load_task(path, Rules(**rules))


@pytest.mark.parametrize('name', ['a.csv', 'a.CSV.gz', 'a.tsv'])
def test_rows_below_a_header(tmp_path, name):
  text = CSV.replace(',', '\t').replace('one\t', 'one,')
  text = text if name.endswith('tsv') else CSV
  text = text.replace('8,three,x,,A', '8,three,x,z,A')
  text = text.replace('8\tthree\tx\t\tA', '8\tthree\tx\tz\tA')
  task = load(tmp_path, name, text)
  assert task.name == 'a' and task.kind == 'multiple_choice'
  first, second = task.dev
  assert (first.id, first.question, first.answer) == ('7', 'one, two', 'B')
  assert first.choices == (('A', 'x'), ('B', 'y'))
  assert second.choices == (('A', 'x'), ('B', 'z'))


@pytest.mark.parametrize(
  ('name', 'text', 'words'),
  [
    ('a.csv', CSV, ["row 1, field 'choices'", '1 of 2 rows', 'skip_bad_rows']),
    ('a.csv', 'question,answer\na,b,c\n', ['line 2', '3 cells', '2 columns']),
    ('a.csv', 'question;answer\na;b\n', ["separated by ';'? Expected ','"]),
    ('a.tsv', 'question,answer\na,b\n', ["separated by ','?"]),
    ('a.csv', 'prompt,response\na,b\n', ["Rename 'response' to 'answer'"]),
    ('a.csv', 'question,question\n', ['two columns have one name']),
    ('a.tsv', '', ['is empty']),
    ('a.csv', 'question,answer\n"a' + 'b' * 200_000, ['line', 'field larger']),
    ('a.csv', 'question,choices,answer\nq,{"A",A\n', ["'choices'", 'JSON']),
    ('a.jsonl', HEAD.replace('max_new', 'max'), ["Did you mean 'max_new_tok"]),
    ('a.jsonl.gz', '{"question":', ['a.jsonl.gz line 1: not valid JSON']),
    ('a.json.xz', '{}', ['expected a file that ends in .json, .jsonl, .csv']),
  ],
)
def test_what_is_wrong_with_a_table(tmp_path, name, text, words):
  with pytest.raises(TaskError) as refusal:
    load(tmp_path, name, text + LINES * text.startswith('{"format'))
  for word in words:
    assert word in str(refusal.value)


def test_lines_carry_a_format(tmp_path):
  # A line separator within a text parts no rows.
  task = load(tmp_path, 'a.jsonl.gz', HEAD + LINES.replace('q0', 'q\u2028'))
  assert (task.name, task.format.max_new_tokens) == ('words', 4)
  assert [item.id for item in task.dev] == ['0', '1', '2']
  (tmp_path / 'b.format.json').write_text('{"max_new_tokens": 5}')
  for name, text in (
    ('b.jsonl', LINES),
    ('b.csv', 'question,answer\nq,a\n'),
    ('b.jsonl.gz', LINES),
  ):
    assert load(tmp_path, name, text).format.max_new_tokens == 5
  with pytest.raises(TaskError, match='both give a format: keep one'):
    load(tmp_path, 'b.jsonl', HEAD + LINES)
  # What is set for all tasks goes before.
  asked = load(tmp_path, 'b.jsonl', LINES, format={'max_new_tokens': 6})
  assert asked.format.max_new_tokens == 6


def test_a_name_that_is_nearly_right(tmp_path):
  (tmp_path / 'words.jsonl').write_text(LINES)
  with pytest.raises(TaskError, match=r'no such file. Did you mean .*words\.'):
    load_task(tmp_path / 'wrods.jsonl')
  with pytest.raises(TaskError, match=r'Did you mean .*words\.jsonl\?'):
    load_task(tmp_path / 'words.json')
  (tmp_path / 'scores.json').write_text('{}')
  with pytest.raises(TaskError, match='no such file.$'):
    load_task(tmp_path / 'a.json')
  with pytest.raises(TaskError, match='no such file.$'):
    load_task(tmp_path / 'tasks.json')
  with pytest.raises(TaskError, match='is a folder; .* it has scores.json, wo'):
    load_task(tmp_path)
