"""A file of prompts that a model is to continue."""

import json
from typing import Any

from evojax_llm import files
from evojax_llm.runs.errors import UserError


def read_prompts(path: str) -> list[str | list[dict[str, str]]]:
  """Reads a JSON list of texts and of lists of chat messages.

  Raises:
    UserError: the file cannot be read, or holds something else.
  """
  value = files.read_json(path, UserError)
  if not isinstance(value, list) or not value:
    raise UserError(
      f'--prompts={path}: expected a JSON list with at least one prompt.'
    )
  for index, prompt in enumerate(value):
    if not isinstance(prompt, str) and not _is_chat(prompt):
      raise UserError(
        f'--prompts={path}, prompt {index}: expected a text, or a list of '
        'messages {"role": "user" or "assistant", "content": text}, got '
        f'{json.dumps(prompt)[:80]}.'
      )
  return value


def _is_chat(prompt: Any) -> bool:
  return (
    isinstance(prompt, list)
    and bool(prompt)
    and all(
      isinstance(message, dict)
      and set(message) == {'role', 'content'}
      and message['role'] in ('user', 'assistant', 'system')
      and isinstance(message['content'], str)
      for message in prompt
    )
  )
