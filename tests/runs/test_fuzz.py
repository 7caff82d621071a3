"""Damaged and hostile records of a run: one clean error, or they are read."""

import json
import random
import shutil
import time

import pytest

from evojax_llm.files import FileError
from evojax_llm.models.errors import ModelError
from evojax_llm.runs import errors
from evojax_llm.runs import final_table
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import rows

_VALUES = (
  None, True, 0, -1, 7.5, 10**12, '', 'x', '\u2028', [], {}, [1], ['x'],
  {'a': 1}, [None], [[]], '/dev/null', 'os:system',
)  # fmt: skip
_TEXTS = (
  '', '[]', 'null', '7', '{', '{"a": 1e400}', '[' * 9999 + ']' * 9999,
  '{"rows": "\\ud800"}', '{"rows": ' + '9' * 5000 + '}',
)  # fmt: skip


def _mutated(good: bytes, rng: random.Random) -> bytes:
  """A file with one thing changed, anywhere in it."""
  kind, data = rng.randrange(8), bytearray(good)
  if kind == 0:
    return rng.choice(_TEXTS).encode()
  if kind == 1:
    return bytes(data[: rng.randrange(len(data))])
  if kind == 2:
    data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)
  # Of JSON lines, the first.
  first, _, rest = good.decode().partition('}\n{')
  top = json.loads(first + '}' if rest else first)
  part = top
  while True:
    keys = list(part) if isinstance(part, dict) else range(len(part))
    key = rng.choice(keys)
    if not isinstance(part[key], dict | list) or not part[key]:
      break
    if rng.randrange(3) == 0:
      break
    part = part[key]
  if kind == 3:
    del part[key]
  else:
    part[key] = rng.choice(_VALUES)
  return (json.dumps(top) + ('\n{' + rest if rest else '')).encode()


def _lines(folder):
  run = record.JsonLines(folder / 'members.jsonl', ('id', 'parents', 'tasks'))
  for row in run.read():
    assert {'generation', 'id'} <= row.keys()


def _row(folder):
  rows.Run.open(folder).row('no such row')


_READERS = {
  'config.json': recorded_inputs.find,
  'summary.json': final_table.show,
  'baselines.json': _row,
  'members.jsonl': _lines,
}


@pytest.mark.parametrize('name', _READERS)
def test_mutated_records(finished, tmp_path, capsys, name):
  rng = random.Random(name)
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  good, refused = (folder / name).read_bytes(), 0
  for _ in range(150):
    data = _mutated(good, rng)
    (folder / name).write_bytes(data)
    start = time.process_time()
    try:
      _READERS[name](folder)
    except (errors.UserError, ModelError, FileError) as error:
      refused += 1
      assert len(str(error)) < 3000
    assert time.process_time() - start < 10, data
    assert (folder / name).read_bytes() == data
    capsys.readouterr()
  assert refused > 15 or name == 'members.jsonl'
