"""Edits of model and adapter folders, and how they are to be refused."""

import json

import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from evojax_llm.models.errors import ModelError


def edit_json(path, **changes):
  """Sets fields of a JSON file."""
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, edit):
  """Calls edit(tensors) on what a safetensors file holds."""
  stored = load_file(path)
  edit(stored)
  save_file(stored, path, metadata={'format': 'pt'})


def refused(load, *parts):
  """Calls load(), checks what the refusal says and returns it."""
  with pytest.raises(ModelError) as caught:
    load()
  message = str(caught.value)
  for part in parts:
    assert str(part) in message, message
  return message
