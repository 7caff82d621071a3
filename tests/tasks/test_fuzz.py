"""Damaged and hostile task files: one clean error each, or they are read."""

import copy
import gzip
import json
import random
import time

import pytest

from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task

_VALUES = (
  None, True, False, 0, -1, 1, 7.5, 1e308, 10**300, '', ' ', 'x', 'A', 'id',
  '\u2028', '{', '{question}', '{question:>99999999}', '(a+)+$', '\\boxed{',
  'a' * 999, '9' * 5000, '1e400', [], {}, [[]], ['x', 3], {'A': None},
  {'A': 'x', 'B': 'x'}, {'kind': 'judge'}, {'stop': ['']}, 'file.py:x', '\x00',
  'os:system',
)  # fmt: skip
_TEXTS = (
  '', '[]', 'null', '7', '"x"', '{', '{"dev": 1e400}', '{"dev": NaN}', '\x00',
  '\ufeff{}', '[' * 9999, '{"dev": ["\\ud800"]}', '{"dev": ' + '9' * 5000 + '}',
)  # fmt: skip
_TRIES = 400
_PARTS = (b'"', b'\n', b',', b'\\ud800', b'\t', b'{', b'9' * 400, b'\xff')
_CHOICE = {'question': 'q', 'choices': {'A': 'x', 'B': 'y'}, 'answer': 'A'}
_ROW = {'input': 'q', 'output': ['3', '4'], 'id': 3}
_SEEDS = {
  'choice.json': {
    'name': 'c',
    'task_type': 'multiple_choice',
    'dev': [_CHOICE, {**_CHOICE, 'question': 'p', 'id': 'i'}],
    'test': [{**_CHOICE, 'question': 'r'}],
    'format': {'choice': 'text', 'norm': 'bytes', 'instruction': 'i'},
  },
  'text.json': {
    'dataset': 't',
    'icl_prompt': 'like this',
    'dev': [_ROW, {**_ROW, 'input': 'p'}, {**_ROW, 'input': 'o'}],
    'format': {
      'kind': 'regex_match', 'pattern': '(x)', 'shots': 1, 'stop': ['a'],
      'prompt': '{question}', 'language': 'ja', 'max_new_tokens': 3,
    },
  },
  'judge.json': {
    'dev': [{'prompt': 'p'}],
    'format': {'kind': 'judge', 'endpoint': 'http://x', 'model': 'm', 'low': 1},
  },
  'lines.jsonl': [
    {**_ROW, 'input': f'q{i}', 'split': ('dev', 'test')[i % 2]}
    for i in range(6)
  ],
  'cells.csv': 'id,question,A,B,answer\n1,q,x,y,A\n2,p,"x, z",y,B\n',
}  # fmt: skip


class Bytes:
  """A tokenizer of bytes."""

  bos_id = 1

  def encode(self, text, bos=True):
    return [1] * bos + list(text.encode())


def _changed(value, rng):
  """A JSON value with one part of it changed."""
  value = copy.deepcopy(value)
  places = []

  def walk(part):
    keys = range(len(part)) if isinstance(part, list) else list(part)
    for key in keys:
      places.append((part, key))
      if isinstance(part[key], list | dict):
        walk(part[key])

  walk(value)
  part, key = rng.choice(places)
  kind = rng.randrange(4)
  if kind == 0:
    del part[key]
  elif kind == 1 and isinstance(part, dict):
    part[rng.choice(['', 'id', f'{key}x', 'format', 'C'])] = part.pop(key)
  else:
    part[key] = rng.choice([*_VALUES, copy.deepcopy(value)])
  return value


def _mutated(name, rng):
  """The bytes of a file of a seed, with one thing changed."""
  seed = _SEEDS[name]
  if rng.randrange(3) and not isinstance(seed, str):
    seed = _changed(seed, rng)
  if name.endswith('.jsonl'):
    text = '\n'.join(map(json.dumps, seed))
  else:
    text = seed if isinstance(seed, str) else json.dumps(seed)
  data = bytearray(text.encode())
  kind = rng.randrange(9)
  if kind == 0:
    return rng.choice(_TEXTS).encode()
  if kind == 1:
    return bytes(data[: rng.randrange(len(data))])
  at = rng.randrange(len(data))
  if kind == 2:
    data[at] = rng.randrange(256)
  elif kind == 3:
    data[at:at] = rng.choice(
      ['"', '\n', ',', '\\ud800', '\t', '{', '9' * 400]
    ).encode()
  return bytes(data)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', _SEEDS)
def test_mutations_end_in_one_error_or_are_read(tmp_path, name):
  """Many of each file: no other exception, nothing slow, no changed file."""
  rng = random.Random(name)
  read = 0
  for number in range(_TRIES):
    data = _mutated(name, rng)
    packed = number % 10 == 0
    path = tmp_path / (f'{name}.gz' if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    before, start = path.read_bytes(), time.process_time()
    rules = Rules(skip_bad_rows=number % 2 == 0, drop_overlap=number % 3 == 0)
    try:
      task = load_task(path, rules)
      encode_items(task, task.dev + task.test, Bytes(), max_length=300)
      scorer = scorer_of(task)
      if scorer.reads == 'text' and task.kind != 'judge':
        for item in task.dev[:2]:
          scorer.score(item, Answer(('The answer is A: 3.',)))
      task.fingerprint()
      json.dumps([item.id for item in task.dev]).encode()
      read += 1
    except TaskError as error:
      assert str(path) in str(error) or task.name in str(error), data
      str(error).encode()
    except Exception as error:
      raise AssertionError(f'mutation {number}: {data!r}') from error
    assert time.process_time() - start < 10, data
    assert path.read_bytes() == before
    path.unlink()
  assert read > 10, 'next to nothing is read: the seed is not a task'
