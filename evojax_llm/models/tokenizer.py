"""The tokenizer of a model folder, through transformers' AutoTokenizer."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import read_json

# Ends a turn of Gemma's chat template.
END_OF_TURN = '<end_of_turn>'


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Text to token ids and back.

  Attributes:
    backend: the transformers tokenizer.
    path: its folder, for messages.
    bos_id: begins a text; None if the tokenizer has none.
    stop_ids: end a generation: those of the tokenizer and of the model's
      configuration files, and the end of a chat turn.
    pad_id: fills rows; any valid id.
    vocab_size: number of ids.
  """

  backend: Any
  path: str
  bos_id: int | None
  stop_ids: tuple[int, ...]
  pad_id: int
  vocab_size: int

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> 'Tokenizer':
    """Loads the tokenizer of a model folder; nothing is downloaded.

    Raises:
      ModelError: no folder, no tokenizer in it, or one that does not load.
    """
    path = existing_folder(folder, 'a model folder with its tokenizer')
    wanted = ('tokenizer.json', 'tokenizer.model')
    if not any((path / name).is_file() for name in wanted):
      raise ModelError(
        f'{path}: has neither {wanted[0]} nor {wanted[1]}; expected the '
        'tokenizer beside the weights. Copy it from the model it belongs to.'
      )
    if (path / 'tokenizer_config.json').exists():
      read_json(path / 'tokenizer_config.json')
    try:
      backend = import_transformers().AutoTokenizer.from_pretrained(
        path, local_files_only=True, trust_remote_code=False
      )
    except Exception as error:
      raise ModelError(
        f'{path}: the tokenizer does not load: {error}'
      ) from error
    ends = [backend.eos_token_id]
    for name in ('generation_config.json', 'config.json'):
      if (path / name).is_file():
        ids = read_json(path / name).get('eos_token_id')
        ends += ids if isinstance(ids, list) else [ids]
    ends.append(backend.get_vocab().get(END_OF_TURN))
    stop_ids = tuple(dict.fromkeys(i for i in ends if i is not None))
    pad_id = backend.pad_token_id
    return cls(
      backend=backend,
      path=str(path),
      bos_id=backend.bos_token_id,
      stop_ids=stop_ids,
      pad_id=0 if pad_id is None else pad_id,
      vocab_size=len(backend),
    )

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Returns the token ids of a text, `bos_id` first if `bos`."""
    # The caller cuts to the context and says so; transformers need not warn.
    ids = self.backend.encode(text, add_special_tokens=False, verbose=False)
    return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

  def encode_chat(
    self, messages: Sequence[dict[str, str]], reply: bool = True
  ) -> list[int]:
    """Returns the token ids of a conversation.

    Args:
      messages: each {'role': 'user' | 'assistant', 'content': text}.
      reply: whether the beginning of the model's turn follows.

    Raises:
      ModelError: the folder has no chat template, or it refuses the messages.
    """
    if not self.backend.chat_template:
      raise ModelError(
        f'{self.path}: the tokenizer has no chat template; expected '
        'chat_template.jinja, as instruction-tuned models have. Score this '
        'model without chat, or copy the template into its folder.'
      )
    try:
      return self.backend.apply_chat_template(
        list(messages),
        add_generation_prompt=reply,
        tokenize=True,
        return_dict=False,
        tokenizer_kwargs={'verbose': False},
      )
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
