"""The reader of outside files: what is refused, and where it says it is."""

import gzip
import json
import os

import pytest

from evojax_llm import files

HALF = r'"a\ud83d"'
EMOJI = r'"\ud83d\ude00"'


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'f.json'


def _fifo(path):
  os.mkfifo(path)


@pytest.mark.parametrize(
  'make, parts',
  [
    (lambda p: None, ['no such file']),
    (lambda p: p.mkdir(), ['is a folder']),
    (_fifo, ['is a FIFO', 'regular file']),
    (lambda p: p.symlink_to('gone'), ['a link to gone', 'not there']),
    (lambda p: p.symlink_to(p.name), ['a link to f.json', 'back to itself']),
    (lambda p: p.symlink_to('/dev/zero'), ['is a device']),
    (lambda p: p.write_bytes(b'a\nb\xff'), ['0xff', 'offset 3', 'line 2']),
    (lambda p: p.write_bytes(b'\xef\xbb\xbf\xff'), ['0xff', 'offset 3']),
    (lambda p: p.write_text('version https://git-lfs'), ['git lfs pull']),
    (lambda p: p.write_text('x' * 101), ['more than 100 bytes']),
  ],
)
def test_texts_refused(make, parts, path):
  make(path)
  with pytest.raises(files.FileError) as caught:
    files.read_text(path, max_bytes=100)
  for part in (str(path), *parts):
    assert part in str(caught.value)


def test_texts(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\xef\xbb\xbfna\xc3\xafve\n')
  assert files.read_text(path) == 'naïve\n'
  with pytest.raises(files.FileError, match="file. Did you mean 'a.txt'?"):
    files.read_text(tmp_path / 'aa.txt')
  packed = tmp_path / 'b.jsonl.gz'
  packed.write_bytes(gzip.compress(b'{"a": "b"}\n'))
  assert files.read_text(packed) == '{"a": "b"}\n'
  with pytest.raises(KeyError, match='more than 9 bytes'):
    files.read_text(packed, _Own, max_bytes=9)
  for damaged in (b'plain', packed.read_bytes()[:-9]):
    packed.write_bytes(damaged)
    with pytest.raises(files.FileError, match='no whole gzip file'):
      files.read_text(packed)


class _Own(KeyError, ValueError):
  """An error of a caller."""


@pytest.mark.parametrize(
  'text, parts',
  [
    ('{"a": 1,}', ['at column 9', 'Fetch it']),
    ('[' * 100_000 + ']' * 100_000, ['100 deep']),
    ('{"a": ' * 102 + '1' + '}' * 102, ['100 deep']),
    ('[' * 101 + ']' * 101, ['100 deep']),
    ('{"dev": [{"a": 1}, {"b": ' + '9' * 6000 + '}]}', ['dev[1].b', '999...']),
    ('{"a": 1e400}', ['a: 1e400']),
    ('{"a": -Infinity}', ['a: -Infinity']),
    ('{"a": NaN, "a": 1}', ['NaN']),
    (f'{{"a": [{HALF}]}}', ['a[0]', 'surrogate']),
    (f'{{{HALF}: 1}}', ['surrogate', 'ud83d']),
    (HALF, ['the value', 'surrogate']),
  ],
  ids=lambda x: f'{x[:20]}{len(x)}',
)  # fmt: skip
def test_json_refused(text, parts, path):
  path.write_text(text)
  with pytest.raises(files.FileError) as caught:
    files.read_json(path, advice='Fetch it again.')
  message = str(caught.value)
  message.encode()
  for part in (str(path), *parts):
    assert part in message


@pytest.mark.parametrize(
  'text',
  [
    '[' * 100 + ']' * 100,
    '9' * 308,
    '0.' + '1' * 5000,
    '[' + '[],' * 500 + '1e308]',
    f'{{"a": {EMOJI}, "b": "\\\\ud83d"}}',
  ],
  ids=lambda x: x[:20],
)
def test_json_taken(text, path):
  path.write_text(text)
  assert files.read_json(path) == json.loads(text)


def test_objects_and_repeated_keys(path):
  path.write_text('{"a": 1, "a": 2}')
  assert files.read_object(path) == {'a': 2}
  with pytest.raises(KeyError, match="'a' stands twice"):
    files.parse_json(path.read_text(), path, _Own, unique_keys=True)
  path.write_text('[]')
  with pytest.raises(KeyError, match='JSON list; expected an object'):
    files.read_object(path, _Own)
