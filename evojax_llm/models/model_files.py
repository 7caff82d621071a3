"""The tensors of a model folder: checked, read leaf by leaf, and written."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import itertools
import os
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models import names
from evojax_llm.models.config import MODEL_FOLDER
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import write_json
from evojax_llm.models.safetensors_files import aligned


class ModelFiles(TensorFiles):
  """The tensors of a model folder.

  Attributes:
    stored: stored name of each tensor by its name without the model's prefix.
  """

  stored: dict[str, str]


def open_model(
  folder: str | os.PathLike, config: ModelConfig, head: bool = False
) -> ModelFiles:
  """Opens the weights of a model folder and checks every name and shape.

  With `head` a classification head is allowed, and ignored.
  """
  files = ModelFiles.of_model(existing_folder(folder, MODEL_FOLDER))
  try:
    files.stored = _stored_names(files, head)
    _check_tensors(files, config)
  except ModelError:
    files.__exit__()
    raise
  return files


def _stored_names(files: TensorFiles, head: bool) -> dict[str, str]:
  """Maps names without a prefix to stored ones; refuses unknown tensors."""
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
      f'{files.path}: tensors that no text model has: '
      f'{listing(unknown)} ({len(unknown)} in all).'
    )
  return stored


def _check_tensors(files: ModelFiles, config: ModelConfig) -> None:
  """Refuses missing, extra and misshapen tensors."""
  shapes = {
    name: leaf.shape for leaf in names.leaves(config) for name in leaf.names()
  }
  missing = [n for n in shapes if n not in files.stored]
  if missing:
    raise ModelError(
      f'{files.path}: tensors are missing: {listing(missing)} '
      f'({len(missing)} of {len(shapes)}). The folder is incomplete or '
      'config.json is that of another model.'
    )
  shapes[names.LM_HEAD] = shapes['embed_tokens.weight']
  for name in names.unused(config) & set(files.stored):
    del files.stored[name]
  extra = [s for n, s in files.stored.items() if n not in shapes]
  if extra:
    raise ModelError(
      f'{files.path}: extra tensors: {listing(extra)} ({len(extra)} in all); '
      f'expected those of {config.num_layers} layers of {config.model_type}. '
      'config.json is that of another model.'
    )
  for name, stored in files.stored.items():
    shape = files.shape(stored)
    if shape != shapes[name]:
      raise ModelError(
        f'{files.file(stored)}: tensor {stored} has shape {shape}; config.json '
        f'expects {shapes[name]}.'
      )
    files.dtype(stored)


def read_leaf(
  files: TensorFiles,
  leaf: names.Leaf,
  stored: list[str],
  dtype: Any,
  pool: futures.Executor,
  out: np.ndarray | None = None,
) -> Callable[[], np.ndarray]:
  """Begins to read one leaf, cast and stacked on L, in the threads of a pool.

  It is read into `out` where that is given, whatever the `dtype`.

  Returns:
    What waits for the leaf and returns it.
  """
  if dtype is None:
    kinds = {files.dtype(name) for name in stored}
    # Layers share an array; where their types differ, f32 holds all of them.
    dtype = kinds.pop() if len(kinds) == 1 else np.float32
  if out is None:
    out = aligned(leaf.leaf_shape(), dtype)
  layers = out[None] if leaf.layers is None else out

  def read(name: str, layer: np.ndarray, start: int, part: Callable) -> None:
    # What is beyond the type becomes infinity, and is refused with it.
    with np.errstate(over='ignore'):
      rows = part().astype(out.dtype, copy=False)
    files.check_finite(name, rows)
    span = slice(start, start + len(rows))
    _write(layer[:, span] if leaf.transposed else layer[span], rows, leaf)

  running = [
    pool.submit(read, name, layer, *part)
    for layer, name in zip(layers, stored, strict=True)
    for part in files.parts(name)
  ]

  def wait() -> np.ndarray:
    for part in running:
      part.result()
    return out

  return wait


def _write(out: np.ndarray, tensor: np.ndarray, leaf: names.Leaf) -> None:
  """Writes a tensor into `out`, cast and transposed where the leaf is."""
  if out.dtype == tensor.dtype and out.itemsize == 2:
    # Of types that numpy does not know it copies number by number.
    out, tensor = out.view(np.uint16), tensor.view(np.uint16)
  if not leaf.transposed:
    out[...] = tensor.astype(out.dtype, copy=False)
    return
  # A few rows at a time stay in the processor's cache: five times as fast.
  for i in range(0, len(tensor), 256):
    out[:, i : i + 256] = tensor[i : i + 256].astype(out.dtype, copy=False).T


def check_tied(
  files: ModelFiles, config: ModelConfig, embedding: np.ndarray
) -> None:
  """Refuses an output matrix that is not the embedding."""
  stored = files.stored.get(names.LM_HEAD)
  if stored is None or not config.tied:
    return
  head = files.read(stored).astype(embedding.dtype, copy=False)
  if not np.array_equal(head, embedding):
    raise ModelError(
      f'{files.file(stored)}: {stored} differs from the embedding '
      f'{files.stored["embed_tokens.weight"]}, and config.json ties them. Tie '
      'the weights, remove the tensor or, where the family allows it, set '
      'tie_word_embeddings to false.'
    )


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Sets a leaf of a nested dictionary, making the nodes above it."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def get(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
  """Returns a leaf of a nested dictionary, or None."""
  for key in path:
    if not isinstance(tree, dict) or key not in tree:
      return None
    tree = tree[key]
  return tree


def check_params(params: dict[str, Any], config: ModelConfig) -> None:
  """Refuses a parameter tree that is not one of `config`."""
  for leaf in names.leaves(config):
    array = get(params, leaf.path)
    shape = None if array is None else tuple(array.shape)
    expected = leaf.leaf_shape()
    if shape != expected:
      raise ModelError(
        f'params[{"/".join(leaf.path)}] has shape {shape}; the configuration '
        f'expects {expected}.'
      )


def write_weights(
  folder: pathlib.Path,
  params: dict[str, Any],
  config: ModelConfig,
  dtypes: dict[tuple[str, ...], np.dtype],
  max_shard_bytes: int,
  like: ModelFiles | None = None,
) -> None:
  """Writes the parameters of a model; see `write_tensors`.

  Args:
    folder: where to.
    params: parameter tree of `config`.
    config: the model's configuration.
    dtypes: type of the tensors of each leaf, by its path.
    max_shard_bytes: of one file, unless a single tensor has more.
    like: files of a multimodal model, whose names are taken, and whose tensors
      beside the text model are written through.
  """
  prefix, others = 'model.', []
  if like is not None:
    first = 'embed_tokens.weight'
    prefix = like.stored[first].removesuffix(first)
    others = [name for name in like.names if names.is_other_part(name)]
  tensors = itertools.chain(
    _tensors(params, config, dtypes, prefix),
    ((name, like.read(name)) for name in others),
  )
  write_tensors(folder, tensors, max_shard_bytes)


def write_tensors(
  folder: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  max_shard_bytes: int,
) -> None:
  """Writes model.safetensors, or shards with their index.

  Of the tensors (name, array), one shard at a time is held.
  """
  shards: list[list[str]] = []
  total = 0
  shard: dict[str, np.ndarray] = {}
  size = 0

  def flush():
    save_file(shard, folder / f'{len(shards)}.shard', metadata={'format': 'pt'})
    shards.append(list(shard))
    shard.clear()

  for name, tensor in tensors:
    if shard and size + tensor.nbytes > max_shard_bytes:
      flush()
      size = 0
    shard[name] = tensor
    size += tensor.nbytes
    total += tensor.nbytes
  flush()
  if len(shards) == 1:
    os.rename(folder / '0.shard', folder / 'model.safetensors')
    return
  weight_map = {}
  for i, held in enumerate(shards):
    file = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    os.rename(folder / f'{i}.shard', folder / file)
    weight_map.update(dict.fromkeys(held, file))
  write_json(
    folder / 'model.safetensors.index.json',
    {'metadata': {'total_size': total}, 'weight_map': weight_map},
  )


def _tensors(
  params: dict[str, Any],
  config: ModelConfig,
  dtypes: dict[tuple[str, ...], np.dtype],
  prefix: str,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields stored names and tensors, with one leaf on the host at a time."""
  for leaf in names.leaves(config):
    array = np.asarray(get(params, leaf.path))
    layers = array[None] if leaf.layers is None else array
    for name, values in zip(leaf.names(), layers, strict=True):
      # A copy, not a view of the leaf, which is dropped before the next.
      tensor = np.empty(leaf.shape, dtypes[leaf.path])
      _write(tensor, values, leaf)
      yield name if name == names.LM_HEAD else prefix + name, tensor
