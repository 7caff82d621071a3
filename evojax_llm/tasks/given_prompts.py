"""Prompts that are given one by one, and not as items of a task."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from evojax_llm.models.image_tokens import MARK
from evojax_llm.models.images import Image
from evojax_llm.tasks import rows
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import shown
from evojax_llm.tasks.tokens import Prompt

_ROLES = ('user', 'assistant', 'system')
# Where messages of transformers have the file of an image.
_FILES = ('image', 'path', 'url')


@dataclasses.dataclass(frozen=True)
class GivenPrompt:
  """A prompt with a mark in the place of each of its images."""

  text: Prompt
  images: tuple[Image, ...] = ()


def read_prompt(
  value: Any, where: str, folder: str | os.PathLike = ''
) -> GivenPrompt:
  """Reads a prompt, and the images that it names.

  Args:
    value: a text; a row {"prompt": text, "image": file} or with "images", as
      rows of task files have them; or chat messages, whose content is a text
      or, as in transformers, a list of {"type": "text", "text": text} and
      {"type": "image", "path": file}.
    where: which prompt it is, for messages.
    folder: that of the images.

  Raises:
    TaskError: it is none of these, or an image cannot be read; names the field.
  """
  if isinstance(value, str):
    return GivenPrompt(value)
  if isinstance(value, Mapping):
    text = rows.field(value, rows.QUESTIONS, where)
    images = rows.read_images(value, folder, where)
    return GivenPrompt(rows.marked(text, images, where), images)
  if not _is_list(value) or not value:
    raise TaskError(
      f'{where}: expected a text, a list of messages, or a row '
      f'{{"prompt": text, "image": file}}, got {shown(value)}.'
    )
  messages, images = [], []
  for index, message in enumerate(value):
    place = f'{where}, message {index}'
    if (
      not isinstance(message, Mapping)
      or set(message) != {'role', 'content'}
      or message['role'] not in _ROLES
    ):
      raise TaskError(
        f'{place}: expected {{"role": "user" or "assistant" or "system", '
        f'"content": text}}, got {shown(message)}.'
      )
    content, found = _content(message['content'], place, folder)
    messages.append({'role': message['role'], 'content': content})
    images += found
  return GivenPrompt(messages, tuple(images))


def _content(
  value: Any, where: str, folder: str | os.PathLike
) -> tuple[str, list[Image]]:
  """Returns the text of a message, marks in it, and the images."""
  if isinstance(value, str):
    return value, []
  texts, images = [], []
  for index, part in enumerate(value if _is_list(value) else [value]):
    kind = part.get('type') if isinstance(part, Mapping) else None
    names = [key for key in _FILES if key in part] if kind == 'image' else []
    if kind == 'text' and isinstance(part.get('text'), str):
      # As chat templates that take lists do.
      texts.append(part['text'].strip())
    elif len(names) == 1:
      place = f'{where}, part {index}'
      images += rows.read_images({'image': part[names[0]]}, folder, place)
      texts.append(MARK)
    else:
      raise TaskError(
        f"{where}, field 'content', part {index}: expected a text, or a list "
        'of {"type": "text", "text": text} and {"type": "image", "path": file}'
        f', got {shown(part)}.'
      )
  return ''.join(texts), images


def _is_list(value: Any) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str | bytes)
