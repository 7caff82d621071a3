"""Hugging Face model folders in and out.

A folder holds config.json, the weights in one safetensors file or in shards
with an index, and the tokenizer. Whatever does not fit is refused with the
file, the key, what was expected and what was found, before data is read.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models import names
from evojax_llm.models.config import MODEL_TYPES
from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.config import config_from_hf
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import new_folder
from evojax_llm.models.folders import read_json
from evojax_llm.models.folders import write_json
from evojax_llm.models.model_files import MODEL_FOLDER
from evojax_llm.models.model_files import check_tied
from evojax_llm.models.model_files import get
from evojax_llm.models.model_files import open_model
from evojax_llm.models.model_files import put
from evojax_llm.models.model_files import read_leaf
from evojax_llm.models.model_files import transpose_into

# Beginnings of the names of the small files that go with the weights.
_KEPT = (
  'generation_config',
  'tokenizer',
  'special_tokens_map',
  'added_tokens',
  'chat_template',
)


def load_config(folder: str | os.PathLike) -> tuple[GemmaConfig, Any]:
  """Reads config.json through transformers' AutoConfig.

  Args:
    folder: a Gemma 1, 2 or 3 folder; of a multimodal Gemma 3 the text part is
      taken.

  Returns:
    The configuration, and the transformers configuration it was read from.

  Raises:
    ModelError: no folder or file, broken JSON, another or a quantised model.
  """
  path = existing_folder(folder, MODEL_FOLDER) / 'config.json'
  raw = read_json(path)
  model_type = raw.get('model_type')
  if model_type not in (*MODEL_TYPES, 'gemma3'):
    hint = (
      ' This is an adapter folder; give it as an expert, not as the base.'
      if 'peft_type' in raw
      else ''
    )
    raise ModelError(
      f'{path}: model_type is {model_type!r}; expected one of '
      f'{", ".join((*MODEL_TYPES, "gemma3"))}.{hint}'
    )
  if raw.get('quantization_config'):
    raise ModelError(
      f'{path}: quantization_config is set; expected plain float weights. '
      'Convert them back first.'
    )
  try:
    hf_config = import_transformers().AutoConfig.from_pretrained(
      path.parent, local_files_only=True, trust_remote_code=False
    )
    return config_from_hf(hf_config), hf_config
  except Exception as error:
    raise ModelError(f'{path}: {error}') from error


def load_checkpoint(
  folder: str | os.PathLike,
  dtype: Any = jnp.float32,
  place: Callable[[np.ndarray], Any] = jax.device_put,
  head: bool = False,
) -> tuple[GemmaConfig, dict[str, Any]]:
  """Loads a model folder, one leaf at a time.

  Args:
    folder: as in `load_config`.
    dtype: type of all leaves; None keeps the stored one.
    place: called with each leaf on the host as soon as it is whole; the place
      to shard it. The identity keeps numpy arrays. The host never holds more
      than one leaf beside what `place` returns.
    head: whether the folder may be one of a classification model, whose head
      is left out; `classifier.load_classifier` reads both.

  Returns:
    The configuration and the parameter tree.

  Raises:
    ModelError: what `load_config` refuses; a file that is missing, truncated
      or a pickle; a tensor that is missing, extra, misshapen or not a float;
      an output matrix that is not the embedding.
  """
  config, _ = load_config(folder)
  with open_model(folder, config, head) as files:
    params: dict[str, Any] = {}
    for leaf in names.leaves(config):
      stored = [files.stored[n] for n in leaf.names(config.num_layers)]
      array = read_leaf(files, leaf, stored, dtype)
      if leaf.path == ('embedder', 'embedding'):
        check_tied(files, array)
      put(params, leaf.path, place(array))
  return config, params


def save_checkpoint(
  folder: str | os.PathLike,
  params: dict[str, Any],
  config: GemmaConfig,
  like: str | os.PathLike,
  dtype: Any = None,
  max_shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a model folder that transformers loads.

  Args:
    folder: a new or empty folder; appears whole or not at all.
    params: parameter tree of `config`.
    config: may have other layers than `like` (their number and types), and
      nothing else.
    like: the folder whose config.json, generation settings and tokenizer are
      kept. Of a multimodal Gemma 3 the text model alone is written.
    dtype: of all tensors; None keeps that of each tensor of `like`.
    max_shard_bytes: more than that is written in shards with an index.

  Returns:
    The folder's path.

  Raises:
    ModelError: `folder` is not empty, `params` do not fit `config`, or
      `config` does not fit `like`.
  """
  base_config, hf_config = load_config(like)
  like = pathlib.Path(like).expanduser()
  _check_params(params, config)
  with open_model(like, base_config) as files:
    dtypes = {
      leaf.path: np.dtype(dtype or files.dtype(files.stored[leaf.names(1)[0]]))
      for leaf in names.leaves(config)
    }
  with new_folder(folder) as path:
    raw = _config_json(like, hf_config, base_config, config, dtype)
    write_json(path / 'config.json', raw)
    _check_same(config, load_config(path)[0], like)
    for file in sorted(like.iterdir()):
      if file.is_file() and file.name.startswith(_KEPT):
        shutil.copyfile(file, path / file.name)
    _write_weights(path, params, config, dtypes, max_shard_bytes)
  return pathlib.Path(folder)


def _check_params(params: dict[str, Any], config: GemmaConfig) -> None:
  """Refuses a parameter tree that is not one of `config`."""
  for leaf in names.leaves(config):
    array = get(params, leaf.path)
    found = None if array is None else tuple(array.shape)
    expected = leaf.leaf_shape(config.num_layers)
    if found != expected:
      raise ModelError(
        f'params[{"/".join(leaf.path)}] has shape {found}; the configuration '
        f'expects {expected}.'
      )


def _config_json(
  like: pathlib.Path,
  hf_config: Any,
  base_config: GemmaConfig,
  config: GemmaConfig,
  dtype: Any,
) -> dict[str, Any]:
  """config.json of a folder written after `like`."""
  raw = read_json(like / 'config.json')
  text = hf_config.get_text_config()
  if text is not hf_config:
    outer, raw = raw, json.loads(text.to_json_string(use_diff=False))
    raw['architectures'] = ['Gemma3ForCausalLM']
    for key in ('eos_token_id', 'bos_token_id', 'pad_token_id', 'dtype'):
      if outer.get(key) is not None:
        raw[key] = outer[key]
    if raw.get('dtype') is None:
      raw['dtype'] = outer.get('torch_dtype')
  if config.num_layers != base_config.num_layers:
    raw['num_hidden_layers'] = config.num_layers
  if config.layer_types != base_config.layer_types:
    raw['layer_types'] = list(config.layer_types)
  if dtype is not None:
    raw.pop('torch_dtype', None)
    raw['dtype'] = np.dtype(dtype).name
  return raw


def _check_same(
  config: GemmaConfig, written: GemmaConfig, like: pathlib.Path
) -> None:
  """Refuses to write a configuration that does not read back as given."""
  given, found = dataclasses.asdict(config), dataclasses.asdict(written)
  other = [
    f'{k} {given[k]!r}, there {found[k]!r}'
    for k in given
    if given[k] != found[k]
  ]
  if other:
    raise ModelError(
      f'{like / "config.json"}: not of the same family as the given '
      f'configuration: {listing(other)}. Only the number and the types of '
      'layers may differ.'
    )


def _write_weights(
  folder: pathlib.Path,
  params: dict[str, Any],
  config: GemmaConfig,
  dtypes: dict[tuple[str, ...], np.dtype],
  max_shard_bytes: int,
) -> None:
  """Writes model.safetensors, or shards with their index."""
  shards: list[list[str]] = []
  total = 0
  shard: dict[str, np.ndarray] = {}
  size = 0

  def flush():
    save_file(shard, folder / f'{len(shards)}.shard', metadata={'format': 'pt'})
    shards.append(list(shard))
    shard.clear()

  for name, tensor in _tensors(params, config, dtypes):
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
  config: GemmaConfig,
  dtypes: dict[tuple[str, ...], np.dtype],
) -> Iterator[tuple[str, np.ndarray]]:
  """Stored names and tensors, one leaf on the host at a time."""
  for leaf in names.leaves(config):
    array = np.asarray(get(params, leaf.path))
    layers = array if leaf.stacked else array[None]
    dtype = dtypes[leaf.path]
    for name, values in zip(leaf.names(config.num_layers), layers, strict=True):
      # A copy, not a view of the leaf, which is dropped before the next.
      tensor = np.empty(leaf.shape, dtype)
      if leaf.transposed:
        transpose_into(tensor, values)
      else:
        tensor[...] = values.astype(dtype)
      yield f'model.{name}', tensor
