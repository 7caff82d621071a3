"""Tokenizer folders through transformers."""

import json
import pathlib
import shutil
import socket

import huggingface_hub.constants
import pytest

from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from tests import tiny

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


def test_nothing_is_fetched(folder, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError('the network was asked')

  monkeypatch.setattr(socket.socket, 'connect', refuse)
  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  # The tests run with this set; here it must not be what keeps us offline.
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
  hub.load_config(folder)
  assert Tokenizer.from_folder(folder).encode('a')
