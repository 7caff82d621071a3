"""Damaged and hostile small files: one clean error each, or they are read."""

import json
import pathlib
import random
import shutil
import time

import pytest

from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.tokenizer import Tokenizer
from tests import tiny

_VALUES = (
  None, True, False, 0, -1, 1, 2, 7.5, 1e308, -0.0, 10**12, 2**31, '', 'x',
  'gelu', '1', '<bos>', '\u2028', '(', 'a' * 99, [], {}, [1], [[1, 5]], ['x'],
  {'a': 1}, {'factor': 0}, [None], {'content': '<eos>'},
)  # fmt: skip
_TEXTS = (
  '', '[]', 'null', '7', '"x"', '{', '{"a": 1e400}', '{"a": NaN}', '\ufeff{}',
  '[' * 9999 + ']' * 9999, '{"a": "\\ud800"}', '{"a": ' + '9' * 5000 + '}',
)  # fmt: skip
# Each file, and how many mutations of it are tried.
_FILES = {
  'model/config.json': 350,
  'model/generation_config.json': 150,
  'model/tokenizer_config.json': 150,
  'adapter/adapter_config.json': 350,
  'adapter/adapter_model.safetensors': 200,
}


def _mutated(good: bytes, rng: random.Random) -> bytes:
  """A file with one thing changed: a value, a key, or some bytes."""
  kind = rng.randrange(8)
  data = bytearray(good)
  if b'lora_A' in good:  # The header, or the first numbers behind it.
    data[rng.randrange(4000)] = rng.randrange(256)
    return bytes(data)
  if kind == 0:
    return rng.choice(_TEXTS).encode()
  if kind == 1:  # Cut.
    return bytes(data[: rng.randrange(len(data))])
  if kind == 2:  # A byte, which may be no UTF-8.
    data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)
  top = json.loads(good)
  places = [top, *(v for v in top.values() if isinstance(v, dict) and v)]
  part = rng.choice(places)
  key = rng.choice(list(part))
  if kind == 3:
    del part[key]
  elif kind == 4:
    part[f'{key}_{rng.randrange(9)}'] = part.pop(key)
  elif kind == 5:
    part[key] = rng.choice(list(part.values()))
  else:
    part[key] = rng.choice(_VALUES)
  return json.dumps(top).encode()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model with an adapter, and every field that they may have."""
  folder = tmp_path_factory.mktemp('fuzz')
  tiny.write_gemma(folder / 'model', 'gemma3_text')
  tiny.write_adapter(
    folder / 'adapter',
    folder / 'model',
    exclude_modules='.*vision.*',
    layers_to_transform=[0, 1, 2],
    layers_pattern=['layers'],
    rank_pattern={'q_proj': 4},
    alpha_pattern={r'layers\.0.*': 3, 'k_proj': 2},
  )
  return folder


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', _FILES)
def test_mutated_files(name, folder, tmp_path):
  rng = random.Random(name)
  copy = pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))
  file = copy / name
  good = file.read_bytes()
  known = {p: p.read_bytes() for p in copy.rglob('*') if p.is_file()}
  config, _ = hub.load_config(copy / 'model')
  refused = 0
  for _ in range(_FILES[name]):
    data = _mutated(good, rng)
    file.write_bytes(data)
    start = time.process_time()
    try:
      if name.startswith('adapter'):
        load_adapters([copy / 'adapter'], config)
      else:
        Tokenizer.from_folder(copy / 'model').encode('a cat')
    except ModelError as error:
      refused += 1
      message = str(error)
      message.encode()
      assert str(copy) in message and len(message) < 2000, message
    assert time.process_time() - start < 10, data
    known[file] = data
    for path, before in known.items():
      assert path.read_bytes() == before, path
  assert refused > _FILES[name] // 5
