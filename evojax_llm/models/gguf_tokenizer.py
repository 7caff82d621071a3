"""The tokenizer that the metadata of a GGUF file describe.

A GGUF file has the vocabulary, and merges of byte-level vocabularies; how text
is cut before that it only names. What is written here is a tokenizer.json that
cuts text as the tokenizers of these families do.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import write_json

# Kinds of tokens, by their number in the file.
_CONTROL, _USER = 3, 4
_SPACE = '\u2581'

_DIGITS_AND_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# How text is cut before its pieces are merged, by `tokenizer.ggml.pre`: a
# pattern, or None for that of GPT-2. Of these, smollm cuts digits apart first.
_CUTS = {
  'default': None,
  'gpt-2': None,
  'smollm': None,
  'llama-bpe': _DIGITS_AND_WORDS % '{1,3}',
  'llama3': _DIGITS_AND_WORDS % '{1,3}',
  'llama-v3': _DIGITS_AND_WORDS % '{1,3}',
  'smaug-bpe': _DIGITS_AND_WORDS % '{1,3}',
  'qwen2': _DIGITS_AND_WORDS % '',
  'deepseek-r1-qwen': _DIGITS_AND_WORDS % '',
}
# Names of special tokens in tokenizer_config.json and in the metadata.
_SPECIAL = {
  'bos_token': 'bos',
  'eos_token': 'eos',
  'unk_token': 'unknown',
  'pad_token': 'padding',
}


def write(
  folder: pathlib.Path, path: pathlib.Path, metadata: Mapping[str, Any]
) -> None:
  """Writes tokenizer.json, its configuration, and the chat template if any.

  Args:
    folder: where to.
    path: of the GGUF file, for messages.
    metadata: of its header.

  Raises:
    ModelError: it has no tokenizer, or one of a kind that is not known.
  """
  tokens = metadata.get('tokenizer.ggml.tokens')
  if not isinstance(tokens, list):
    raise ModelError(
      f'{path}: has no tokenizer.ggml.tokens; expected the tokenizer in the '
      'metadata. Convert the model with its tokenizer.'
    )
  kind = metadata.get('tokenizer.ggml.model')
  gemma = str(metadata.get('general.architecture')).startswith('gemma')
  # Before the use of tokenizers, whose import is slow without this.
  import_transformers()
  if kind == 'gpt2':
    tokenizer, tokens = _byte_level(path, metadata, tokens)
  elif kind == 'llama':
    tokenizer, tokens = _pieces(metadata, tokens, gemma)
  else:
    raise ModelError(
      f'{path}: tokenizer.ggml.model is {kind!r}; expected gpt2 (byte-level '
      'pairs) or llama (pieces).'
    )
  special = {}
  for name, key in _SPECIAL.items():
    index = metadata.get(f'tokenizer.ggml.{key}_token_id')
    if index is not None and not 0 <= index < len(tokens):
      raise ModelError(
        f'{path}: tokenizer.ggml.{key}_token_id is {index}; expected one of '
        f'{len(tokens)} tokens.'
      )
    special[name] = None if index is None else tokens[index]
  _add_tokens(tokenizer, metadata, tokens)
  begins = metadata.get('tokenizer.ggml.add_bos_token', kind == 'llama')
  _begin_and_end(tokenizer, metadata, special, begins)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'add_bos_token': bool(begins),
    'clean_up_tokenization_spaces': False,
    **special,
  }
  if template := metadata.get('tokenizer.chat_template'):
    config['chat_template'] = template
  write_json(folder / 'tokenizer_config.json', config)


def _byte_level(path, metadata, tokens):
  """Byte-level pairs, as of GPT-2, Llama 3 and Qwen."""
  import tokenizers
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import pre_tokenizers

  merges = metadata.get('tokenizer.ggml.merges')
  if not isinstance(merges, list):
    raise ModelError(
      f'{path}: has no tokenizer.ggml.merges; expected those of its pairs.'
    )
  name = metadata.get('tokenizer.ggml.pre', 'default')
  if name not in _CUTS:
    raise ModelError(
      f'{path}: tokenizer.ggml.pre is {name!r}; expected one of '
      f'{", ".join(_CUTS)}.'
    )
  vocab = {token: i for i, token in enumerate(tokens)}
  pairs = [tuple(merge.split(' ')) for merge in merges]
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
  pattern = _CUTS[name]
  level = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=pattern is None
  )
  before = []
  if name == 'smollm':
    before = [pre_tokenizers.Digits(individual_digits=True)]
  elif pattern:
    cut = tokenizers.Regex(pattern)
    before = [pre_tokenizers.Split(cut, behavior='isolated')]
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, level])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, tokens


def _pieces(metadata, tokens, gemma):
  """Pieces of SentencePiece that are merged in pairs, with bytes to fall back.

  The merges are not in the file: any two pieces that make a third one, the best
  third first. Of Gemma that is their order, of Llama their score.
  """
  import tokenizers
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers

  # Gemma's runs of spaces stand as they are in the file.
  tokens = [
    _SPACE * len(t) if gemma and t and not t.strip(' ') else t for t in tokens
  ]
  vocab = {token: i for i, token in enumerate(tokens)}
  scores = metadata.get('tokenizer.ggml.scores')
  if gemma or scores is None:
    scores = [-i for i in range(len(tokens))]
  pairs = _merges(vocab, dict(zip(tokens, scores, strict=True)))
  unknown = metadata.get('tokenizer.ggml.unknown_token_id')
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=pairs,
      unk_token=None if unknown is None else tokens[unknown],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  decoding = [
    decoders.Replace(_SPACE, ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if gemma:
    tokenizer.normalizer = normalizers.Replace(' ', _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
      ' ', behavior='merged_with_previous'
    )
  else:
    first = bool(metadata.get('tokenizer.ggml.add_space_prefix', True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      _SPACE, prepend_scheme='first' if first else 'never', split=False
    )
    decoding += [decoders.Strip(content=' ', left=1)] * first
  tokenizer.decoder = decoders.Sequence(decoding)
  return tokenizer, tokens


def _merges(
  vocab: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
  """Pairs of pieces that make a piece, best first, then longer halves."""
  found = []
  for piece, score in scores.items():
    for i in range(1, len(piece)):
      left, right = piece[:i], piece[i:]
      if left in vocab and right in vocab:
        order = vocab[left], vocab[right]
        found.append((-score, -i, i - len(piece), order, left, right))
  found.sort()
  return [(left, right) for *_, left, right in found]


def _add_tokens(tokenizer, metadata, tokens) -> None:
  """Has control and user-defined tokens found whole in a text."""
  from tokenizers import AddedToken

  kinds = metadata.get('tokenizer.ggml.token_type', ())
  by_kind = {_CONTROL: [], _USER: []}
  for token, kind in zip(tokens, kinds, strict=False):
    if kind in by_kind:
      control = int(kind) == _CONTROL
      added = AddedToken(token, normalized=False, special=control)
      by_kind[int(kind)].append(added)
  tokenizer.add_special_tokens(by_kind[_CONTROL])
  tokenizer.add_tokens(by_kind[_USER])


def _begin_and_end(tokenizer, metadata, special, begins) -> None:
  """Puts BOS before a text and EOS behind it, where the model expects them."""
  from tokenizers import processors

  ends = metadata.get('tokenizer.ggml.add_eos_token', False)
  bos = special['bos_token'] if begins else None
  eos = special['eos_token'] if ends else None
  around = [t for t in (bos, eos) if t is not None]
  if around:
    template = [bos, '$A', eos]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[part for part in template if part is not None],
      special_tokens=[(t, tokenizer.token_to_id(t)) for t in set(around)],
    )
