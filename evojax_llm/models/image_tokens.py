"""Images in prompts: where their soft tokens stand, and as which ids.

A text has MARK where an image is. It becomes what the processor of Gemma 3
writes there, with T soft tokens in it. Those of the image numbered n have the
ids V + n T, ..., V + n T + T - 1, beyond the V rows of the embedding: texts
begin alike as long as their ids agree, and so do their images.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.models.errors import ModelError
from evojax_llm.models.images import Image

MARK = '<start_of_image>'


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokens:
  """How a model's prompts have images, and the images they have so far.

  Attributes:
    begin: token before the soft tokens of an image.
    soft: placeholder of a soft token.
    soft_id: its id.
    end: token behind the soft tokens.
    count: T, soft tokens of an image.
    vocab_size: V.
    numbers: number of each image, by its digest.
    found: the images.
    read: soft tokens (T, D) f32 of those that were read, by digest.
  """

  begin: str
  soft: str
  soft_id: int
  end: str
  count: int
  vocab_size: int
  numbers: dict[str, int] = dataclasses.field(default_factory=dict)
  found: list[Image] = dataclasses.field(default_factory=list)
  read: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(
    cls, hf_config: Any, backend: Any, vocab_size: int
  ) -> 'ImageTokens | None':
    """Returns those of a model; None for one that reads text alone."""
    if getattr(hf_config, 'vision_config', None) is None:
      return None
    ids = [
      hf_config.boi_token_index,
      hf_config.image_token_id,
      hf_config.eoi_token_index,
    ]
    tokens = [backend.convert_ids_to_tokens(i) for i in ids]
    if None in tokens:
      # Files of the text side alone.
      return None
    count = hf_config.mm_tokens_per_image
    return cls(tokens[0], tokens[1], ids[1], tokens[2], count, vocab_size)

  def number(self, image: Image) -> int:
    """Returns n of an image, which is the next one where it is new."""
    known = len(self.found)
    number = self.numbers.setdefault(image.digest, known)
    if number == known:
      self.found.append(image)
    return number

  def expand(self, text: str) -> str:
    """Writes the place of an image in place of each mark."""
    place = f'\n\n{self.begin}{self.soft * self.count}{self.end}\n\n'
    return text.replace(MARK, place)

  def put(self, ids: Sequence[int], images: Sequence[Image]) -> list[int]:
    """Puts the ids of images in place of their placeholders, in order."""
    numbers = iter(
      self.vocab_size + self.number(image) * self.count + i
      for image in images
      for i in range(self.count)
    )
    return [next(numbers) if i == self.soft_id else i for i in ids]


class ImageReader:
  """A tokenizer for the texts of one item, which has images.

  It stands in for `tokenizer.Tokenizer`: a text has the mark of each of the
  images, in their order, or none.
  """

  def __init__(self, tokenizer: Any, images: Sequence[Image]):
    if tokenizer.images is None:
      raise ModelError(
        f'{tokenizer.path}: this model reads text alone, and there is an image '
        f'({images[0].path}); give a multimodal Gemma 3 with its vision side '
        'and its tokenizer, or leave the row out.'
      )
    self._tokenizer, self._images = tokenizer, images
    self.bos_id, self.stop_ids = tokenizer.bos_id, tokenizer.stop_ids

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Does what `Tokenizer.encode` does."""
    tokens, marks = self._tokenizer.images, text.count(MARK)
    if tokens.soft in text or marks not in (0, len(self._images)):
      raise ModelError(
        f'Got a text with {marks} times {MARK} and {text.count(tokens.soft)} '
        f'times {tokens.soft} for {len(self._images)} images; expected one '
        f'{MARK} for each.'
      )
    ids = self._tokenizer.encode(tokens.expand(text), bos)
    return tokens.put(ids, self._images)

  def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
    """Does what `Tokenizer.encode_chat` does."""
    return self.encode(self._tokenizer.render_chat(messages), bos=False)


def reader(tokenizer: Any, images: Sequence[Image]) -> Any:
  """Returns what encodes texts: the tokenizer where there are no images."""
  return ImageReader(tokenizer, images) if images else tokenizer
