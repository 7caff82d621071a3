"""The tensors of a model folder, checked against its configuration."""

import os
from typing import Any

import numpy as np

from evojax_llm.models import names
from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing

MODEL_FOLDER = 'a Gemma folder in Hugging Face layout'


class ModelFiles(TensorFiles):
  """The tensors of a model folder.

  Attributes:
    stored: stored name of each tensor by its name without the model's prefix.
  """

  stored: dict[str, str]


def open_model(
  folder: str | os.PathLike, config: GemmaConfig, head: bool = False
) -> 'ModelFiles':
  """Opens the weights of a model folder and checks every name and shape.

  A classification head is let pass, and left alone, with `head` only.
  """
  path = existing_folder(folder, MODEL_FOLDER)
  files = ModelFiles.of_model(path)
  try:
    files.stored = _stored_names(files, head)
    _check_tensors(files, config)
  except ModelError:
    files.__exit__()
    raise
  return files


def _stored_names(files: TensorFiles, head: bool) -> dict[str, str]:
  """Stored names by name without prefix; refuses what no text model has."""
  stored: dict[str, str] = {}
  unknown = []
  for name in files.names:
    if names.is_other_part(name) or (head and name == names.HEAD):
      continue
    short = names.text_name(name)
    if short is None:
      unknown.append(name)
    elif not names.is_buffer(short):
      if short in stored:
        raise ModelError(
          f'{files.path}: {name} and {stored[short]} are the same tensor; '
          'expected one of them.'
        )
      stored[short] = name
  if unknown:
    raise ModelError(
      f'{files.path}: tensors that no Gemma text model has: '
      f'{listing(unknown)} ({len(unknown)} in all).'
    )
  return stored


def _check_tensors(files: 'ModelFiles', config: GemmaConfig) -> None:
  """Refuses missing, extra and misshapen tensors."""
  shapes = {
    name: leaf.shape
    for leaf in names.leaves(config)
    for name in leaf.names(config.num_layers)
  }
  missing = [n for n in shapes if n not in files.stored]
  if missing:
    raise ModelError(
      f'{files.path}: tensors are missing: {listing(missing)} '
      f'({len(missing)} of {len(shapes)}). The folder is incomplete or '
      'config.json is that of another model.'
    )
  shapes[names.LM_HEAD] = shapes['embed_tokens.weight']
  extra = [s for n, s in files.stored.items() if n not in shapes]
  if extra:
    raise ModelError(
      f'{files.path}: extra tensors: {listing(extra)} ({len(extra)} in all); '
      f'expected those of {config.num_layers} layers of {config.model_type}. '
      'config.json is that of another model.'
    )
  for name, stored in files.stored.items():
    found = files.shape(stored)
    if found != shapes[name]:
      raise ModelError(
        f'{files.file(stored)}: tensor {stored} has shape {found}; config.json '
        f'expects {shapes[name]}.'
      )
    files.dtype(stored)


def read_leaf(
  files: TensorFiles, leaf: names.Leaf, stored: list[str], dtype: Any
) -> np.ndarray:
  """One leaf on the host, cast and stacked as it is read."""
  if dtype is None:
    kinds = {files.dtype(name) for name in stored}
    # Layers of one leaf share an array: if they differ, the widest holds all.
    dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
  dtype = np.dtype(dtype)
  if not leaf.stacked:
    return files.read(stored[0]).astype(dtype, copy=False)
  out = np.empty(leaf.leaf_shape(len(stored)), dtype)
  for layer, name in enumerate(stored):
    if leaf.transposed:
      transpose_into(out[layer], files.read(name))
    else:
      out[layer] = files.read(name).astype(dtype, copy=False)
  return out


def transpose_into(out: np.ndarray, matrix: np.ndarray) -> None:
  """Writes a matrix (rows, columns) into out (columns, rows), cast."""
  # A few rows at a time stay in the processor's cache: five times as fast.
  for i in range(0, len(matrix), 256):
    out[:, i : i + 256] = matrix[i : i + 256].astype(out.dtype, copy=False).T


def check_tied(files: 'ModelFiles', embedding: np.ndarray) -> None:
  """Refuses an output matrix that is not the embedding."""
  stored = files.stored.get(names.LM_HEAD)
  if stored is None:
    return
  head = files.read(stored).astype(embedding.dtype, copy=False)
  if not np.array_equal(head, embedding):
    raise ModelError(
      f'{files.file(stored)}: {stored} differs from the embedding '
      f'{files.stored["embed_tokens.weight"]}; Gemma ties them and an untied '
      'output is not supported. Tie the weights or remove the tensor.'
    )


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Sets a leaf of a nested dictionary, making what is on the way to it."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def get(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
  """A leaf of a nested dictionary, or None."""
  for key in path:
    if not isinstance(tree, dict) or key not in tree:
      return None
    tree = tree[key]
  return tree
