"""Hugging Face model folders in and out.

A folder holds config.json, the weights in one safetensors file or in shards
with an index, and the tokenizer. What does not fit is refused before data is
read: the error names the file, the key, and what was expected.
"""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models import families
from evojax_llm.models import names
from evojax_llm.models.config import MODEL_FOLDER
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.config_json import load_config
from evojax_llm.models.config_json import rope_fields
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import new_folder
from evojax_llm.models.folders import read_json
from evojax_llm.models.folders import write_json
from evojax_llm.models.model_files import check_params
from evojax_llm.models.model_files import check_tied
from evojax_llm.models.model_files import get
from evojax_llm.models.model_files import open_model
from evojax_llm.models.model_files import put
from evojax_llm.models.model_files import read_leaf
from evojax_llm.models.model_files import write_weights
from evojax_llm.models.tokenizer import Tokenizer

# That read a model: enough for a disk that serves many at once.
_MOST_THREADS = 16
# The small files that go with the weights: what transformers writes of a
# tokenizer, templates, and what the licence asks to pass on.
_KEPT = (
  'generation_config*',
  'tokenizer*',
  'special_tokens_map*',
  'added_tokens*',
  'chat_template*',
  'preprocessor_config*',
  'processor_config*',
  'additional_chat_templates/*',
  '*.jinja',
  'vocab.*',
  'merges.txt',
  '*.model',
  'LICEN[CS]E*',
  'NOTICE*',
  'USE_POLICY*',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A model, with what is known of where it comes from.

  Attributes:
    config: its configuration.
    params: parameter tree of `models.transformer`.
    folder: that it was loaded from; gives tokenizer, stored types and the name
      of the base to what is exported. None for a model without files.
    tokenizer: None if it was not asked for.
    hops: most hops of members that are paths through its layers; None where
      all members go through them in order.
  """

  config: ModelConfig
  params: dict[str, Any]
  folder: str | os.PathLike | None = None
  tokenizer: Tokenizer | None = None
  hops: int | None = None


def load_model(folder: str | os.PathLike, dtype: Any = jnp.float32) -> Model:
  """Loads configuration, parameters and tokenizer of a model folder.

  Args:
    folder: as in `load_config`.
    dtype: as in `load_checkpoint`.

  Raises:
    ModelError: what `load_checkpoint` or `Tokenizer.from_folder` refuses.
  """
  # A folder without a tokenizer is refused before its weights are read.
  tokenizer = Tokenizer.from_folder(folder)
  return Model(*load_checkpoint(folder, dtype), folder, tokenizer)


def load_checkpoint(
  folder: str | os.PathLike,
  dtype: Any = jnp.float32,
  place: Callable[[np.ndarray], Any] = jax.device_put,
  head: bool = False,
  into: dict[str, Any] | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads configuration and parameters of a model folder.

  Args:
    folder: as in `load_config`.
    dtype: type of all leaves; None keeps the stored one.
    place: called with each leaf as soon as it is whole; shard it here. The
      identity keeps numpy arrays. The host never holds more than two leaves
      beside what `place` returns.
    head: whether the folder may be that of a classification model, whose head
      is left out; `classifier.load_classifier` reads both.
    into: parameter tree of numpy arrays that the leaves are read into, cast to
      their types, so that no second copy is made of what is gathered.

  Returns:
    The configuration and the parameter tree.

  Raises:
    ModelError: what `load_config` refuses; a file that is missing, truncated
      or a pickle; a tensor that is missing, extra, misshapen or not a float;
      an output matrix that is not the embedding.
  """
  config, _ = load_config(folder)
  return config, load_params(folder, config, dtype, place, head, into)


def load_params(
  folder: str | os.PathLike,
  config: ModelConfig,
  dtype: Any = jnp.float32,
  place: Callable[[np.ndarray], Any] = jax.device_put,
  head: bool = False,
  into: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Loads the parameters of a configuration; see `load_checkpoint`."""
  params: dict[str, Any] = {}
  threads = min(_MOST_THREADS, 2 * (os.cpu_count() or 1))
  with (
    open_model(folder, config, head) as files,
    futures.ThreadPoolExecutor(threads) as pool,
  ):

    def read(leaf: names.Leaf) -> Callable[[], np.ndarray]:
      stored = [files.stored[n] for n in leaf.names()]
      return read_leaf(files, leaf, stored, dtype, pool, get(into, leaf.path))

    def finish(leaf: names.Leaf, wait: Callable[[], np.ndarray]) -> None:
      array = wait()
      if leaf.path == ('embedder', 'embedding'):
        check_tied(files, config, array)
      put(params, leaf.path, place(array))

    try:
      before = None
      for leaf in names.leaves(config):
        # Is read while the one before is placed.
        reading = leaf, read(leaf)
        if before:
          finish(*before)
        before = reading
      finish(*before)
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return params


def save_checkpoint(
  folder: str | os.PathLike,
  params: dict[str, Any],
  config: ModelConfig,
  like: str | os.PathLike,
  dtype: Any = None,
  max_shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a model folder that transformers loads.

  Args:
    folder: a new or empty folder; appears whole or not at all.
    params: parameter tree of `config`.
    config: differs from that of `like` in the number and types of layers at
      most.
    like: the folder whose config.json, generation settings and tokenizer are
      kept, and the vision side of a multimodal Gemma 3, bit for bit.
    dtype: of all tensors; None keeps that of each tensor of `like`.
    max_shard_bytes: more than that is written in shards with an index.

  Returns:
    The folder's path.

  Raises:
    ModelError: `folder` is not empty, `params` do not fit `config` or are not
      finite, or `config` does not fit `like`.
  """
  base_config, hf_config = load_config(like)
  like = existing_folder(like, MODEL_FOLDER)
  check_params(params, config)
  for path, leaf in jax.tree.leaves_with_path(params):
    if not np.isfinite(leaf).all():
      raise ModelError(
        f'The parameters {jax.tree_util.keystr(path)} have NaN or infinite '
        'numbers; expected finite ones. Nothing is written.'
      )
  dtypes = stored_types(like, config, dtype)
  with (
    open_model(like, base_config) as files,
    new_folder(folder) as path,
  ):
    # One without weights of it is written as a text model.
    whole = any('vision_tower.' in name for name in files.names)
    raw = _config_json(like, hf_config, base_config, config, dtype, whole)
    write_json(path / 'config.json', raw)
    _check_same(config, load_config(path)[0], like)
    for file in {file for kept in _KEPT for file in like.glob(kept)}:
      if file.is_file():
        to = path / file.relative_to(like)
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, to)
    more = files if whole else None
    write_weights(path, params, config, dtypes, max_shard_bytes, more)
  return pathlib.Path(folder)


def stored_types(
  like: str | os.PathLike, config: ModelConfig, dtype: Any = None
) -> dict[tuple[str, ...], np.dtype]:
  """Returns the type that `save_checkpoint` gives each leaf, by its path."""
  with open_model(like, load_config(like)[0]) as files:
    return {
      leaf.path: np.dtype(dtype or files.dtype(files.stored[leaf.names()[0]]))
      for leaf in names.leaves(config)
    }


def kept_change(
  params: dict[str, Any],
  base: dict[str, Any],
  types: dict[tuple[str, ...], np.dtype],
) -> tuple[float, float]:
  """Returns what is left of a change of weights when they are stored.

  Args:
    params: parameter tree of the changed model.
    base: that of the model it was made from, of the same shapes.
    types: of `stored_types`.

  Returns:
    The share of the change d that what is stored has of it, <stored, d> / |d|^2
    over all weights, within [0, 1]; and |stored - d| / |d|. (1, 0) for no
    change.
  """
  along = apart = total = 0.0
  for path, kind in types.items():
    pair = (np.asarray(get(tree, path)) for tree in (params, base))
    # Layer by layer, as copies of all of them would be large.
    layers = pair if path[0] == 'layers' else (leaf[None] for leaf in pair)
    for new, old in zip(*layers, strict=True):
      change = new.astype(np.float32) - old.astype(np.float32)
      if not change.any():
        continue
      stored, before = (x.astype(kind).astype(np.float32) for x in (new, old))
      stored -= before
      along += float(np.vdot(stored, change))
      apart += float(np.square(stored - change).sum())
      total += float(np.square(change).sum())
  if not total:
    return 1.0, 0.0
  return min(max(along / total, 0.0), 1.0), float(np.sqrt(apart / total))


def _config_json(
  like: pathlib.Path,
  hf_config: Any,
  base_config: ModelConfig,
  config: ModelConfig,
  dtype: Any,
  whole: bool,
) -> dict[str, Any]:
  """Returns config.json for a folder written after `like`.

  With `whole` that of a multimodal model, of which the text part may differ.
  """
  raw = outer = read_json(like / 'config.json')
  text = hf_config.get_text_config()
  if text is not hf_config:
    raw = json.loads(text.to_json_string(use_diff=False))
    raw['architectures'] = [families.FAMILIES[text.model_type].architecture]
    raw.pop('_name_or_path', None)
    if whole:
      del raw['architectures']
    for key in (
      *('eos_token_id', 'bos_token_id', 'pad_token_id'),
      *('dtype', 'torch_dtype'),
    ):
      if outer.get(key) is not None:
        raw[key] = outer[key]
  raw.update(rope_fields(text.rope_parameters))
  if config.num_layers != base_config.num_layers:
    raw['num_hidden_layers'] = config.num_layers
  if config.layer_types != base_config.layer_types:
    raw['layer_types'] = list(config.layer_types)
  if dtype is not None:
    raw['dtype'] = np.dtype(dtype).name
  if stored := raw.get('dtype') or raw.get('torch_dtype'):
    raw['dtype'] = raw['torch_dtype'] = stored
    if whole:
      outer['dtype'] = outer['torch_dtype'] = stored
  return {**outer, 'text_config': raw} if whole else raw


def _check_same(
  config: ModelConfig, written: ModelConfig, like: pathlib.Path
) -> None:
  """Refuses a configuration that does not read back as given."""
  read = dataclasses.asdict(written)
  other = [
    f'{k} {v!r}, there {read[k]!r}'
    for k, v in dataclasses.asdict(config).items()
    if v != read[k]
  ]
  if other:
    raise ModelError(
      f'{like / "config.json"}: not of the same family as the given '
      f'configuration: {listing(other)}. Only the number and the types of '
      'layers may differ.'
    )
