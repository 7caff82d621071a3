"""The tokenizer of a model folder, through transformers' AutoTokenizer."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import os
import pathlib
import reprlib
from typing import Any

from evojax_llm import files
from evojax_llm.models.config_json import load_config
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import read_json
from evojax_llm.models.image_tokens import ImageTokens

# End a turn of the chat templates of Gemma, before 4 and since.
ENDS_OF_TURN = ('<end_of_turn>', '<turn|>')


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Text to token ids and back.

  Attributes:
    backend: the transformers tokenizer.
    path: its folder, for messages.
    bos_id: begins a text; None if the tokenizer puts none there.
    stop_ids: end a generation: those of the tokenizer and of the model's
      configuration files, and the end of a chat turn.
    pad_id: fills rows; any valid id.
    vocab_size: V, rows of the model's embedding; without a config.json the
      number of tokens.
    images: how prompts have images; None for a model that reads text alone.
  """

  backend: Any
  path: str
  bos_id: int | None
  stop_ids: tuple[int, ...]
  pad_id: int
  vocab_size: int
  images: ImageTokens | None = None

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> 'Tokenizer':
    """Loads the tokenizer of a model folder; nothing is downloaded.

    Raises:
      ModelError: no folder, no tokenizer in it, or one that does not load; an
        end that is no token of the model.
    """
    path = existing_folder(folder, 'a model folder with its tokenizer')
    # Also first, so that its faults are not taken for the tokenizer's.
    config, hf_config, read = None, None, {}
    if (path / 'config.json').exists():
      of_path = (path / 'path.safetensors').exists()
      config, hf_config = load_config(path, path=of_path)
      # Of a type that transformers does not know.
      read = {'config': hf_config} if of_path else {}
    backend = _load(path, **read)
    vocab_size = config.vocab_size if config else len(backend)
    vocab = backend.get_vocab()
    ids = [backend.eos_token_id, *(vocab.get(end) for end in ENDS_OF_TURN)]
    # A token that the model cannot write ends nothing.
    ends = [i for i in ids if i is not None and i < vocab_size]
    ends[1:1] = _named_ends(path, vocab_size)
    pad_id, bos_id = backend.pad_token_id, None
    # Some have the token and put none before a text, as SmolLM2.
    begun = backend.encode('a', verbose=False)
    if begun[:1] != backend.encode('a', add_special_tokens=False)[:1]:
      bos_id = begun[0]
    tokenizer = cls(
      backend=backend,
      path=str(path),
      bos_id=bos_id,
      stop_ids=tuple(dict.fromkeys(ends)),
      # What fills rows is never read, but is looked up in the embedding.
      pad_id=0 if pad_id is None or pad_id >= vocab_size else pad_id,
      vocab_size=vocab_size,
      images=ImageTokens.of(hf_config, backend, vocab_size),
    )
    if bos_id is not None:
      tokenizer._known([bos_id])
    return tokenizer

  @functools.cached_property
  def vision(self) -> Any:
    """The `VisionSide` of the model's folder, read when it is first asked for.

    Raises:
      ModelError: there is none, or it cannot be used.
    """
    # Only now, as texts are encoded without jax.
    from evojax_llm.models.vision import VisionSide

    return VisionSide.from_folder(self.path)

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Returns the token ids of a text, `bos_id` first if `bos`.

    Raises:
      ModelError: the text has a token that the model does not have.
    """
    # The caller cuts to the context and says so; transformers need not warn.
    ids = self.backend.encode(text, add_special_tokens=False, verbose=False)
    self._known(ids)
    return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

  def encode_chat(
    self, messages: Sequence[dict[str, str]], reply: bool = True
  ) -> list[int]:
    """Returns the token ids of a conversation.

    Args:
      messages: each {'role': 'user' | 'assistant', 'content': text}.
      reply: whether the beginning of the model's turn follows.

    Raises:
      ModelError: the folder has no chat template, or it refuses the messages;
        as `encode`.
    """
    ids = self._apply_template(
      messages,
      add_generation_prompt=reply,
      tokenize=True,
      return_dict=False,
      tokenizer_kwargs={'verbose': False},
    )
    self._known(ids)
    return ids

  def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
    """Returns the text of a conversation that `encode_chat` would encode."""
    return self._apply_template(
      messages, add_generation_prompt=True, tokenize=False
    )

  def _apply_template(self, messages: Sequence[dict[str, str]], **how) -> Any:
    """Puts messages through the chat template."""
    if not self.backend.chat_template:
      raise ModelError(
        f'{self.path}: the tokenizer has no chat template; expected '
        'chat_template.jinja, as instruction-tuned models have. Score this '
        'model without chat, or copy the template into its folder.'
      )
    try:
      return self.backend.apply_chat_template(list(messages), **how)
    except Exception as error:
      raise ModelError(
        f'{self.path}: the chat template refuses {list(messages)!r}: {error}'
      ) from error

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of token ids, special tokens left out."""
    return self.backend.decode(
      [int(i) for i in ids],
      skip_special_tokens=True,
      clean_up_tokenization_spaces=False,
    )

  def _known(self, ids: Iterable[int]) -> None:
    """Refuses ids without a row in the embedding."""
    last = max(ids, default=0)
    if last >= self.vocab_size:
      token = self.backend.convert_ids_to_tokens(last)
      raise ModelError(
        f'{self.path}: the token {token!r} is {last}, and the embedding of the '
        f'model has {self.vocab_size} rows, 0 to {self.vocab_size - 1}: leave '
        'it out of the text, or take a model that was trained with it.'
      )


def _load(path: pathlib.Path, **read: Any) -> Any:
  """Loads the transformers tokenizer of a folder."""
  wanted = ['tokenizer.json', 'tokenizer.model']
  there = [name for name in wanted if os.path.lexists(path / name)]
  if not there:
    raise ModelError(
      f'{path}: has neither {wanted[0]} nor {wanted[1]}; expected the '
      'tokenizer beside the weights. Copy it from the model it belongs to.'
    )
  if there == wanted[1:] and not importlib.util.find_spec('sentencepiece'):
    raise ModelError(
      f'{path / wanted[1]}: stands alone, and is read with the package '
      'sentencepiece: install it (pip install sentencepiece protobuf), or copy '
      'tokenizer.json beside it, which releases on the hub have.'
    )
  # Before transformers, which would wait for ever on a FIFO.
  for pattern in ('*token*', '*chat_template*', '*chat_template*/*'):
    for file in path.glob(pattern):
      if not file.is_dir():
        files.check_regular(file, ModelError)
  for name in (
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
  ):
    if (path / name).exists():
      read_json(path / name)
  try:
    backend = import_transformers().AutoTokenizer.from_pretrained(
      path, local_files_only=True, trust_remote_code=False, **read
    )
    # Fields of a wrong type show when they are used.
    backend.encode('a', add_special_tokens=False, verbose=False)
    return backend
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # A panic of tokenizers is no Exception.
    if wanted[0] in there:
      # Large, and read only to say more than "does not load".
      read_json(path / wanted[0])
    raise ModelError(
      f'{path}: the tokenizer does not load: {" ".join(str(error).split())}'
    ) from error


def _named_ends(path: pathlib.Path, vocab_size: int) -> list[int]:
  """The ends of a generation that the configuration files name."""
  ends = []
  for file in (path / 'generation_config.json', path / 'config.json'):
    if not os.path.lexists(file):
      continue
    raw = read_json(file)
    parts = [('', raw)]
    if isinstance(raw.get('text_config'), dict):
      parts.append(('text_config: ', raw['text_config']))
    for where, part in parts:
      named = part.get('eos_token_id')
      ids = named if isinstance(named, list) else [named]
      for i in ids if named is not None else ():
        if type(i) is not int or not 0 <= i < vocab_size:
          raise ModelError(
            f'{file}: {where}eos_token_id is {reprlib.repr(named)}; expected '
            f'ids of tokens, whole numbers from 0 to {vocab_size - 1}, or null.'
          )
        ends.append(i)
  return ends
