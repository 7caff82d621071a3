"""A model folder as named tensors, whatever its architecture.

Tensors are told apart by their names and shapes alone. What stands between
dots in front of a number, as `model.layers` of `model.layers.3.mlp...`, is a
stack of layers; that of a vision or an audio tower is not the text model's.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from evojax_llm.models import adapter_config
from evojax_llm.models import folders
from evojax_llm.models import names
from evojax_llm.models.errors import ModelError
from evojax_llm.models.safetensors_files import aligned

# Types that are merged, by their names in safetensors; others are copied.
FLOATS = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_LAYER = re.compile(
  r'^((?:[^.]+\.)*?(?:layers|layer|h|blocks|block))\.(\d{1,6})\.(.+)$'
)
_OTHER = re.compile(r'vision|visual|audio|speech|image|projector', re.I)
_FACTOR = re.compile(
  r'^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$'
)
_HEAD = re.compile(r'(?:^|\.)(?:lm_head|embed_out|output)\.weight$')
_EMBEDDING = re.compile(
  r'(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)'
  r'\.weight$'
)
# Where config.json says how many layers there are.
LAYER_COUNTS = ('num_hidden_layers', 'n_layer', 'n_layers', 'num_layers')


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where the bytes of a tensor are.

  Attributes:
    file: safetensors file.
    dtype: its type's name there.
    shape: of the tensor.
    offset: of the first byte in the file.
    size: in bytes.
  """

  file: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  offset: int
  size: int


def stored_tensors(files: folders.TensorFiles) -> dict[str, Stored]:
  """Returns where the tensors of checked safetensors files are, by name."""
  found = {}
  for file in {files.file(name) for name in files.names}:
    with file.open('rb') as f:
      length = int.from_bytes(f.read(8), 'little')
      header = json.loads(f.read(length))
    for name, entry in header.items():
      if name != '__metadata__':
        start, end = entry['data_offsets']
        found[name] = Stored(
          file,
          entry['dtype'],
          tuple(entry['shape']),
          8 + length + start,
          end - start,
        )
  return {name: found[name] for name in files.names}


def read(stored: Stored) -> np.ndarray:
  """Reads a float tensor, in its stored type."""
  data = aligned((stored.size,), np.uint8)
  with stored.file.open('rb', buffering=0) as f:
    f.seek(stored.offset)
    got = 0
    while got < stored.size:
      more = f.readinto(data[got:])
      if not more:
        raise ModelError(f'{stored.file}: has become shorter as it was read.')
      got += more
  return data.view(FLOATS[stored.dtype]).reshape(stored.shape)


class ModelFolder:
  """A model, or a model with an adapter, by the names of its tensors.

  Attributes:
    ref: as the recipe has it.
    path: the model's folder.
    config: its config.json.
    tensors: by stored name.
    stack: what the names of the text model's layers begin with, such as
      'model.layers'; '' where there are none.
    layers: their number.
    factors: (lora_A, lora_B, scale) by the name of the tensor that is adapted.
  """

  def __init__(self, ref: str):
    """Opens a folder.

    Args:
      ref: a folder, a snapshot of the hub's local cache, or either with
        '+ADAPTER' behind, a PEFT folder.

    Raises:
      ModelError: it is none, or not whole.
    """
    self.ref = ref
    model, plus, adapter = ref, '', ''
    if not os.path.isdir(os.path.expanduser(ref)):
      model, plus, adapter = ref.partition('+')
    self.path = folders.existing_folder(model, 'a model folder')
    self.config = folders.read_json(self.path / 'config.json')
    with folders.TensorFiles.of_model(self.path) as files:
      self.tensors = stored_tensors(files)
    if 'quantization_config' in self.config:
      raise ModelError(
        f'{self.path / "config.json"}: has a quantization_config; quantised '
        'weights must be converted back before they are merged.'
      )
    self.stack, self.layers = self._find_layers()
    self.factors: dict[str, tuple[Stored, Stored, float]] = {}
    if plus:
      self._add_adapter(adapter)

  @property
  def name(self) -> str:
    """How messages and cards call it."""
    adapter = self.ref.partition('+')[2] if self.factors else ''
    own = folders.model_name(self.path)
    return f'{own}+{folders.model_name(adapter)}' if adapter else own

  @property
  def text_config(self) -> dict[str, Any]:
    """What config.json says of the text model."""
    inner = self.config.get('text_config')
    return inner if isinstance(inner, dict) else self.config

  @functools.cached_property
  def inside(self) -> dict[int, list[str]]:
    """What follows on 'STACK.N.' in the names of layer N, by N."""
    found: dict[int, list[str]] = {n: [] for n in range(self.layers)}
    for name in self.tensors:
      match = _LAYER.match(name)
      if match and match[1] == self.stack:
        found[int(match[2])].append(match[3])
    return found

  @functools.cached_property
  def outside(self) -> list[str]:
    """Names of tensors that are in no layer of the text model."""
    if not self.stack:
      return list(self.tensors)
    return [n for n in self.tensors if not n.startswith(f'{self.stack}.')]

  @functools.cached_property
  def _by_short_name(self) -> dict[str, str]:
    return {names.text_name(n) or n: n for n in self.tensors}

  def find(self, name: str) -> str | None:
    """Returns the name here of a tensor that another folder has by `name`.

    A prefix of the text model may differ; an output matrix that is tied is
    the embedding. None if there is no such tensor.
    """
    if name in self.tensors:
      return name
    found = self._by_short_name.get(names.text_name(name) or name)
    return found or (self.embedding if is_head(name) else None)

  @property
  def embedding(self) -> str | None:
    """The name of the embedding of tokens."""
    found = [n for n in self.outside if is_embedding(n)]
    return found[0] if found else None

  @property
  def tied(self) -> bool:
    """Whether the output matrix is the embedding."""
    config = self.text_config
    stated = config.get('tie_word_embeddings')
    if stated is None:
      stated = self.config.get('tie_word_embeddings')
    if stated is None and str(config.get('model_type')).startswith('gemma'):
      stated = True
    heads = any(is_head(name) for name in self.outside)
    return not heads if stated is None else bool(stated)

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor, in its stored type; f32 where an adapter is added."""
    value = read(self.tensors[name])
    if name in self.factors:
      a, b, scale = self.factors[name]
      a, b = (read(x).astype(np.float32) for x in (a, b))
      value = value.astype(np.float32) + np.float32(scale) * (b @ a)
    return value

  def dtype(self, name: str) -> str:
    """Returns the name of the stored type of a tensor."""
    return self.tensors[name].dtype

  def size(self, name: str) -> int:
    """Returns the bytes that are read of a tensor."""
    factors = self.factors.get(name, ())[:2]
    return self.tensors[name].size + sum(one.size for one in factors)

  def _find_layers(self) -> tuple[str, int]:
    stacks: dict[str, set[int]] = {}
    for name in self.tensors:
      if match := _LAYER.match(name):
        stacks.setdefault(match[1], set()).add(int(match[2]))
    own = {s: n for s, n in stacks.items() if not _OTHER.search(s)}
    stated = [self.text_config.get(key) for key in LAYER_COUNTS]
    stated = next((n for n in stated if isinstance(n, int)), None)
    if len(own) > 1:
      own = {s: n for s, n in own.items() if len(n) == stated} or own
    if len(own) > 1:
      raise ModelError(
        f'{self.path}: has several stacks of layers, {", ".join(sorted(own))}; '
        'expected one. Models of an encoder and a decoder are not merged.'
      )
    if not own:
      return '', 0
    ((stack, found),) = own.items()
    count = max(found) + 1
    if len(found) != count or stated not in (None, count):
      raise ModelError(
        f'{self.path}: has the layers {_ranges(found)} of {stack}; config.json '
        f'says {stated}. The folder is incomplete or config.json is that of '
        'another model.'
      )
    return stack, count

  def _add_adapter(self, folder: str) -> None:
    path = folders.existing_folder(folder, 'a PEFT adapter folder')
    peft = adapter_config.read_config(path)
    with folders.TensorFiles.of_adapter(path) as files:
      stored = stored_tensors(files)
    pairs: dict[str, dict[str, str]] = {}
    for name in stored:
      match = _FACTOR.match(name)
      if not match:
        raise ModelError(
          f'{path}: {name} is not a factor of a linear module; expected only '
          '*.lora_A.weight and *.lora_B.weight.'
        )
      pairs.setdefault(match[1], {})[match[2]] = name
    for module, pair in pairs.items():
      target = self.find(f'{module}.weight')
      if target is None or len(pair) < 2:
        what = (
          'has one factor of two' if target else 'is no module of the model'
        )
        raise ModelError(
          f'{path}: {module} {what} in {self.path}; the adapter belongs to '
          'another model or is incomplete.'
        )
      a, b = stored[pair['A']], stored[pair['B']]
      rank, alpha = peft.rank_and_alpha(module)
      shape = self.tensors[target].shape
      if (a.shape, b.shape) != ((rank, *shape[1:]), (*shape[:1], rank)):
        raise ModelError(
          f'{path}: the factors of {module} have shapes {a.shape} and '
          f'{b.shape}, its rank is {rank} and the weight {shape}; they do not '
          'fit together.'
        )
      for one in (a, b, self.tensors[target]):
        if one.dtype not in FLOATS:
          raise ModelError(f'{one.file}: {module} is stored as {one.dtype}.')
      scale = alpha / (math.sqrt(rank) if peft.raw.get('use_rslora') else rank)
      self.factors[target] = (a, b, scale)


def is_head(name: str) -> bool:
  """Whether a tensor is an output matrix."""
  other = _LAYER.match(name) or _OTHER.search(name)
  return bool(_HEAD.search(name)) and not other


def is_embedding(name: str) -> bool:
  """Whether a tensor is the embedding of tokens."""
  return bool(_EMBEDDING.search(name)) and not _OTHER.search(name)


def _ranges(numbers: set[int]) -> str:
  return folders.listing(map(str, sorted(numbers)))
