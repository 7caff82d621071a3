"""Folders of paths: the layers that are used, and the hops through them.

config.json is that of a model of these layers, but for a `model_type` that no
other program takes for it, such as 'gemma2_path', and `num_hops`.
path.safetensors has `input_layers` (hops,) i32, the layer of each hop, and
`input_scales` (hops,) f32, which the whole residual stream is multiplied by
before the layer (the artefact of arXiv 2403.13187, EvoLLM-JP-v1-10B). Weights
and tokenizer are in the files of a model folder.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models import hub
from evojax_llm.models.config import PATH
from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.config import load_config
from evojax_llm.models.errors import ModelError
from evojax_llm.models.expression import Path
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import new_folder
from evojax_llm.models.folders import read_json
from evojax_llm.models.folders import write_json

_FILE = 'path.safetensors'
_LAYERS, _SCALES = 'input_layers', 'input_scales'
# Beyond these, what is left of a layer's own part is lost in rounding.
_SMALLEST, _LARGEST = 1e-3, 1e3


def is_path(folder: str | os.PathLike) -> bool:
  """Returns whether a folder is one of a path."""
  config = existing_folder(folder, 'a model folder') / 'config.json'
  if not config.is_file():
    return False
  return str(read_json(config).get('model_type')).endswith(PATH)


def save_path(
  folder: str | os.PathLike,
  params: dict[str, Any],
  config: GemmaConfig,
  hops: np.ndarray,
  scales: np.ndarray,
  like: str | os.PathLike | None,
) -> pathlib.Path:
  """Writes a path through the layers of a model.

  Args:
    folder: a new or empty folder.
    params: parameters of all layers that the hops are indices of.
    config: of these.
    hops: (H,) indices.
    scales: (H,) f32.
    like: folder of a model that differs in the number and types of layers; its
      tokenizer and stored types are kept.

  Raises:
    ModelError: as `hub.save_checkpoint`, or there is no hop.
  """
  used, hops = np.unique(_checked(hops, like), return_inverse=True)
  with new_folder(folder) as inner:
    params, config = _layers(params, config, used)
    hub.save_checkpoint(inner, params, config, like)
    raw = read_json(inner / 'config.json')
    raw |= {'architectures': ['LayerPath'], 'num_hops': len(hops)}
    raw['model_type'] += PATH
    write_json(inner / 'config.json', raw)
    tensors = {
      _LAYERS: hops.astype(np.int32),
      _SCALES: np.asarray(scales, np.float32),
    }
    save_file(tensors, inner / _FILE)
  return pathlib.Path(folder)


def load_path(
  folder: str | os.PathLike, dtype: Any = jnp.float32
) -> tuple[hub.Model, Path]:
  """Loads what `save_path` wrote.

  Returns:
    The model of the layers that are used, and the path through them.

  Raises:
    ModelError: a file is missing or does not fit the others.
  """
  config, _ = load_config(folder, path=True)
  where = existing_folder(folder, 'a folder of a path')
  with TensorFiles(where / _FILE, None) as files:
    missing = {_LAYERS, _SCALES} - set(files.names)
    if missing:
      raise ModelError(f'{where / _FILE}: has no {", ".join(sorted(missing))}.')
    hops, scales = files.read(_LAYERS), files.read(_SCALES)
  count = read_json(where / 'config.json').get('num_hops')
  if hops.shape != (count,) or hops.dtype.kind != 'i':
    raise ModelError(
      f'{where / _FILE}: {_LAYERS} is {hops.dtype} of shape {hops.shape}; '
      f'expected {count} integers, as num_hops in config.json says.'
    )
  if ((hops < 0) | (hops >= config.num_layers)).any():
    raise ModelError(
      f'{where / _FILE}: {_LAYERS} goes from {hops.min()} to {hops.max()}; '
      f'expected 0 to {config.num_layers - 1}, the layers that are there.'
    )
  floats = scales.dtype.kind == 'f' and np.isfinite(scales).all()
  if scales.shape != hops.shape or not floats:
    raise ModelError(
      f'{where / _FILE}: {_SCALES} is {scales.dtype} of shape {scales.shape}; '
      f'expected {count} finite floats.'
    )
  params = hub.load_params(folder, config, dtype)
  path = Path(jnp.asarray(hops, jnp.int32), jnp.asarray(scales, jnp.float32))
  return hub.Model(config, params, folder, hops=len(hops)), path


def unroll(
  params: dict[str, Any],
  config: GemmaConfig,
  hops: np.ndarray,
  scales: np.ndarray,
) -> tuple[dict[str, Any], GemmaConfig]:
  """Returns the plain model with a layer for every hop of a path.

  With S_t the product of the scales up to hop t, the stream of the path is S_t
  times one that is never scaled, if that which layer t adds is divided by S_t:
  norms before a layer see no positive factor, but for their epsilon. So the
  norm behind attention and feed-forward takes 1 / S_t, or the last kernel where
  there is no such norm; a negative S_t turns the sign of the norms before them.

  Raises:
    ModelError: a product of scales is 0 or beyond 1e-3 to 1e3 in size.
  """
  product = np.cumprod(np.asarray(scales, np.float64))
  size = np.abs(product)
  if not ((size >= _SMALLEST) & (size <= _LARGEST)).all():
    worst = product[np.argmax(np.abs(np.log(np.maximum(size, 1e-300))))]
    raise ModelError(
      f'The scales of the path come to a factor of {worst:.3g} of the stream; '
      f'a plain model can stand for {_SMALLEST:g} to {_LARGEST:g}, as its '
      'layers add what is divided by it. Export the path as it is.'
    )
  params, config = _layers(params, config, hops)
  if (product == 1).all():
    return params, config
  sign = np.sign(product)

  def times(tree, *path, by, offset):
    *nodes, leaf = path
    for name in nodes:
      tree[name] = dict(tree[name])
      tree = tree[name]
    old = np.asarray(tree[leaf], np.float64)
    by = by.reshape(by.shape + (1,) * (old.ndim - by.ndim))
    tree[leaf] = ((old + offset) * by - offset).astype(tree[leaf].dtype)

  layers, final = dict(params['layers']), dict(params)
  if config.post_norms:
    before = 'input_layernorm', 'pre_feedforward_layernorm'
    for norm in ('post_attention_layernorm', 'post_feedforward_layernorm'):
      times(layers, norm, 'scale', by=1 / product, offset=1.0)
  else:
    before = 'input_layernorm', 'post_attention_layernorm'
    for module in (('self_attn', 'o_proj'), ('mlp', 'down_proj')):
      times(layers, *module, 'kernel', by=1 / product, offset=0.0)
  for norm in before:
    times(layers, norm, 'scale', by=sign, offset=1.0)
  times(final, 'final_norm', 'scale', by=sign[-1:], offset=1.0)
  return {**final, 'layers': layers}, config


def save_unrolled(
  folder: str | os.PathLike,
  params: dict[str, Any],
  config: GemmaConfig,
  hops: np.ndarray,
  scales: np.ndarray,
  like: str | os.PathLike | None,
  dtype: Any = None,
) -> pathlib.Path:
  """Writes a path as a plain model folder; see `unroll` and `save_path`."""
  hops = _checked(hops, like)
  whole = unroll(params, config, hops, scales)
  return hub.save_checkpoint(folder, *whole, like, dtype)


def _checked(hops, like):
  if not len(hops):
    raise ModelError('The path has no hops; expected one at least to write.')
  if like is None:
    raise ModelError(
      'The base has no folder to take the tokenizer from; expected one to '
      'export a path. Give Model(folder=...).'
    )
  return np.asarray(hops)


def _layers(params, config, chosen):
  """The model of chosen layers, which may repeat."""
  taken = jax.tree.map(
    lambda leaf: np.asarray(leaf)[chosen], jax.device_get(params['layers'])
  )
  types = tuple(config.layer_types[i] for i in chosen)
  config = dataclasses.replace(
    config, num_layers=len(chosen), layer_types=types
  )
  return {**params, 'layers': taken}, config
