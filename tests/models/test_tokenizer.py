"""Tokenizer folders through transformers."""

import importlib.util
import json
import os
import pathlib
import shutil
import socket

import huggingface_hub.constants
import pytest

from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from tests import tiny
from tests.models import cases

TEXT = 'The cat ate 12 pies, naïvely.\n'


@pytest.fixture(scope='module')
def tokenizer(tiny_gemma_folder):
  return Tokenizer.from_folder(tiny_gemma_folder('gemma2'))


@pytest.fixture
def folder(tiny_gemma_folder, tmp_path):
  source = tiny_gemma_folder('gemma2')
  return pathlib.Path(shutil.copytree(source, tmp_path / 'model'))


def test_text_and_back(tokenizer):
  ids = tokenizer.encode(TEXT)
  assert ids[0] == tokenizer.bos_id == tiny.BOS
  assert tokenizer.encode(TEXT, bos=False) == ids[1:]
  assert all(type(i) is int for i in ids)
  assert tokenizer.decode(ids) == TEXT
  assert tokenizer.decode([*ids, tiny.EOS, tiny.END_OF_TURN, tiny.PAD]) == TEXT


def test_spaces_are_kept(tokenizer):
  for text in (' a', 'a  b', ' , .'):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_parts_of_a_text_join(tokenizer):
  """A continuation is encoded alone and put behind its prompt."""
  ids = tokenizer.encode('ab') + tokenizer.encode(' cd', bos=False)
  assert tokenizer.decode(ids) == 'ab cd'


def test_ids(tokenizer):
  assert tokenizer.stop_ids == (tiny.EOS, tiny.END_OF_TURN)
  assert tokenizer.pad_id == tiny.PAD
  assert tokenizer.vocab_size == 363


def test_ends_named_by_the_model(folder):
  path = folder / 'generation_config.json'
  path.write_text(json.dumps({'eos_token_id': [9, tiny.EOS]}))
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.stop_ids == (tiny.EOS, 9, tiny.END_OF_TURN)


def test_chat(tokenizer):
  messages = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Yes?'},
    {'role': 'user', 'content': 'Why'},
  ]
  ids = tokenizer.encode_chat(messages)
  # One <bos>, and the turns open and close with ids of their own.
  assert ids.count(tiny.BOS) == 1 and ids[0] == tiny.BOS
  assert ids.count(tiny.START_OF_TURN) == 4
  assert ids.count(tiny.END_OF_TURN) == 3
  assert tokenizer.decode(ids) == 'user\nHi\nmodel\nYes?\nuser\nWhy\nmodel\n'


def test_no_chat_template(folder):
  (folder / 'chat_template.jinja').unlink()
  tokenizer = Tokenizer.from_folder(folder)
  with pytest.raises(ModelError, match='no chat template'):
    tokenizer.encode_chat([{'role': 'user', 'content': 'Hi'}])


def test_a_template_that_refuses(folder):
  (folder / 'chat_template.jinja').write_text(
    "{{ raise_exception('System role not supported') }}"
  )
  with pytest.raises(ModelError, match='System role not supported'):
    Tokenizer.from_folder(folder).encode_chat([{'role': 'x', 'content': ''}])


def test_no_tokenizer(folder, tmp_path):
  with pytest.raises(ModelError, match='does not exist'):
    Tokenizer.from_folder(tmp_path / 'absent')
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(ModelError, match='neither tokenizer.json nor'):
    Tokenizer.from_folder(folder)


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
def test_broken_tokenizer(name, folder):
  (folder / name).write_text('{"version"')
  with pytest.raises(ModelError, match=str(folder)):
    Tokenizer.from_folder(folder)


def _edit(folder, name, **changes):
  raw = json.loads((folder / name).read_text())
  (folder / name).write_text(json.dumps(raw | changes))


@pytest.mark.parametrize('name', ['generation_config.json', 'config.json'])
@pytest.mark.parametrize(
  'value', [-1, 363, 10**12, {'a': 1}, [[1, 5]], ['<eos>'], '1', True, 1.0]
)  # fmt: skip
def test_ends_that_are_no_token(name, value, folder):
  _edit(folder, name, eos_token_id=value)
  with pytest.raises(ModelError, match=f'{folder / name}.*eos_token_id'):
    Tokenizer.from_folder(folder)


def test_ends_named_by_the_text_part(tmp_path):
  folder = cases.write_model(tmp_path / 'm', cases.CASES[6])
  tiny.write_tokenizer(folder)
  _edit(folder, 'config.json', eos_token_id=None)
  raw = json.loads((folder / 'config.json').read_text())
  raw['text_config'] |= {'eos_token_id': [1, 7], 'vocab_size': 363}
  _edit(folder, 'config.json', **raw)
  (folder / 'generation_config.json').unlink(missing_ok=True)
  assert {1, 7} <= set(Tokenizer.from_folder(folder).stop_ids)
  raw['text_config']['eos_token_id'] = -1
  _edit(folder, 'config.json', **raw)
  with pytest.raises(ModelError, match='eos_token_id'):
    Tokenizer.from_folder(folder)


def test_tokens_beyond_the_embedding(folder, tokenizer):
  raw = json.loads((folder / 'tokenizer.json').read_text())
  token = raw['added_tokens'][0]
  for i, text in enumerate(('[PAD]', '<image>')):
    raw['added_tokens'].append(token | {'id': 363 + i, 'content': text})
  (folder / 'tokenizer.json').write_text(json.dumps(raw))
  _edit(folder, 'tokenizer_config.json', pad_token='[PAD]')
  larger = Tokenizer.from_folder(folder)
  # A filler that the model does not have is replaced by one that it has.
  assert larger.pad_id == 0 and larger.vocab_size == 363
  assert larger.encode(TEXT) == tokenizer.encode(TEXT)
  words = "'<image>' is 364, and the embedding of the model has 363 rows"
  with pytest.raises(ModelError, match=words):
    larger.encode('a <image> b')
  with pytest.raises(ModelError, match=words):
    larger.encode_chat([{'role': 'user', 'content': '<image>'}])
  raw['post_processor']['special_tokens']['<bos>']['ids'] = [364]
  (folder / 'tokenizer.json').write_text(json.dumps(raw))
  with pytest.raises(ModelError, match=words):
    Tokenizer.from_folder(folder)


def test_a_text_begins_as_the_tokenizer_has_it(folder):
  assert Tokenizer.from_folder(folder).encode('a')[0] == tiny.BOS
  raw = json.loads((folder / 'tokenizer.json').read_text())
  (folder / 'tokenizer.json').write_text(
    json.dumps({**raw, 'post_processor': None})
  )
  tokenizer = Tokenizer.from_folder(folder)
  assert tokenizer.bos_id is None and tokenizer.backend.bos_token == '<bos>'
  assert tokenizer.encode('a') == tokenizer.encode('a', bos=False)


def test_tokenizer_model_alone(folder, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  (folder / 'tokenizer.json').rename(folder / 'tokenizer.model')
  _edit(folder, 'tokenizer_config.json', tokenizer_class='GemmaTokenizer')
  with pytest.raises(
    ModelError, match='tokenizer.model: .*sentencepiece.*copy'
  ):
    Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
  'name, text, part',
  [
    ('config.json', '{"model_type": "gemma2", "head_dim": -8}', 'head_dim'),
    ('tokenizer_config.json', '[' * 10**5 + ']' * 10**5, '100 deep'),
    ('special_tokens_map.json', '{"a": 1e999}', 'a: 1e999'),
    ('tokenizer.json', '{"a": [}', 'not valid JSON at column 8'),
    ('generation_config.json', '[1]', 'JSON list'),
  ],
)
def test_faults_are_named_by_file(name, text, part, folder):
  (folder / name).write_text(text)
  with pytest.raises(ModelError) as caught:
    Tokenizer.from_folder(folder)
  message = str(caught.value)
  assert str(folder / name) in message and part in message


@pytest.mark.parametrize('name', ['tokenizer.json', 'chat_template.jinja'])
def test_a_fifo_is_no_tokenizer(name, folder):
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with pytest.raises(ModelError, match='is a FIFO'):
    Tokenizer.from_folder(folder)


def test_nothing_is_fetched(folder, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError('the network was asked')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  # The tests run with this set; here it must not be what keeps us offline.
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
  hub.load_config(folder)
  assert Tokenizer.from_folder(folder).encode('a')
