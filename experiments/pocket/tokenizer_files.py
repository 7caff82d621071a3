"""The pocket tokenizer: one token per byte, plus Gemma's special tokens.

Every text round-trips, and a character of a prompt is one token, which is what
functions of single characters need.
"""

import json
import pathlib

SPECIAL = (
  '<pad>',
  '<eos>',
  '<bos>',
  '<unk>',
  '<start_of_turn>',
  '<end_of_turn>',
  '<unused0>',
  '<unused1>',
)
PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN = range(6)
VOCAB_SIZE = len(SPECIAL) + 256

CHAT_TEMPLATE = (
  "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
  "('model' if message['role'] == 'assistant' else message['role']) + '\\n' + "
  "message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def encode(text: str) -> list[int]:
  """Token ids of a text without special tokens, as the files encode it."""
  return [len(SPECIAL) + byte for byte in text.encode()]


def _byte_symbols() -> list[str]:
  """The printable character that byte-level tokenizers write for each byte."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = iter(range(256, 512))
  return [chr(b if b in shown else next(hidden)) for b in range(256)]


def write(folder: pathlib.Path, more: tuple[str, ...] = ()) -> None:
  """Writes tokenizer.json and tokenizer_config.json.

  More special tokens come behind all others.
  """
  ids = {token: i for i, token in enumerate(SPECIAL)}
  ids |= {token: VOCAB_SIZE + i for i, token in enumerate(more)}
  special = [
    {
      'id': i,
      'content': token,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for token, i in ids.items()
  ]
  vocab = dict(ids)
  for byte, symbol in enumerate(_byte_symbols()):
    vocab[symbol] = len(SPECIAL) + byte
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': False,
    'use_regex': False,
  }
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  bos = {'SpecialToken': {'id': '<bos>', 'type_id': 0}}
  tokenizer = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': special,
    'normalizer': None,
    'pre_tokenizer': byte_level,
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': [bos, text],
      'pair': [bos, text, {'Sequence': {'id': 'B', 'type_id': 0}}],
      'special_tokens': {
        '<bos>': {'id': '<bos>', 'ids': [BOS], 'tokens': ['<bos>']}
      },
    },
    'decoder': byte_level,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': False,
      'vocab': vocab,
      'merges': [],
    },
  }
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<bos>',
    'eos_token': '<eos>',
    'pad_token': '<pad>',
    'unk_token': '<unk>',
    'additional_special_tokens': ['<start_of_turn>', '<end_of_turn>'],
    'clean_up_tokenization_spaces': False,
    'padding_side': 'left',
    'model_max_length': 128,
    'chat_template': CHAT_TEMPLATE,
  }
  for name, content in (
    ('tokenizer.json', tokenizer),
    ('tokenizer_config.json', config),
  ):
    path = folder / name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n')
