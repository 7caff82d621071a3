"""GGUF files, read as model folders.

`folder_of` makes a folder of what a file's metadata say: config.json and the
tokenizer, beside a link to the file. `GgufTensors` reads its tensors by their
Hugging Face names, as safetensors reads those of its files. Quantised blocks
are made f32 by the package gguf.
"""

import atexit
from collections.abc import Callable
import functools
from importlib import metadata
import importlib.util
import math
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

import numpy as np

from evojax_llm.models import gguf_config
from evojax_llm.models import gguf_header
from evojax_llm.models import gguf_tokenizer
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import new_folder
from evojax_llm.models.folders import write_json
from evojax_llm.models.model_files import write_tensors

# The link in a folder of `folder_of`.
LINK = 'model.gguf'
_SPLIT = re.compile(r'(.+)-(\d{5})-of-(\d{5})\.gguf')
_EMBEDDING = 'token_embd.weight'
# What Gemma's terms ask to be passed on with a model.
GEMMA_NOTICE = (
  'Gemma is provided under and subject to the Gemma Terms of Use found at '
  'ai.google.dev/gemma/terms\n'
)
# Types that are not quantised, as safetensors spells them.
_FLOATS = {'F32': 'F32', 'F16': 'F16', 'BF16': 'BF16'}


def folder_of(path: pathlib.Path) -> pathlib.Path:
  """Returns a folder that reads as the model of a GGUF file.

  It is made once a process, in a temporary place that goes with it.

  Raises:
    ModelError: the package gguf is missing; the file is none of GGUF, of
      another family, or of quantisations that are not known.
  """
  status = os.stat(path)
  return _folder(path.absolute(), status.st_mtime_ns, status.st_size)


@functools.cache
def _folder(path: pathlib.Path, *_: int) -> pathlib.Path:
  with GgufTensors(path) as tensors:
    folder = pathlib.Path(tempfile.mkdtemp(prefix='evojax-llm-gguf-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
      write_small_files(folder, tensors)
      os.symlink(path, folder / LINK)
    except BaseException:
      shutil.rmtree(folder)
      raise
  return folder


def write_small_files(folder: pathlib.Path, tensors: 'GgufTensors') -> None:
  """Writes config.json, tokenizer, card and terms of a file into a folder."""
  # Without it, some versions take a large vocabulary for a faulty Mistral's.
  version = {'transformers_version': metadata.version('transformers')}
  write_json(folder / 'config.json', tensors.config | version)
  gguf_tokenizer.write(folder, tensors.path, tensors.metadata)
  ends = {
    int(i)
    for name in ('eos', 'eot', 'eom')
    for i in [tensors.metadata.get(f'tokenizer.ggml.{name}_token_id')]
    if i is not None
  }
  if ends:
    write_json(
      folder / 'generation_config.json', {'eos_token_id': sorted(ends)}
    )
  _write_card(folder, tensors)


def convert(
  path: str | os.PathLike,
  folder: str | os.PathLike,
  dtype: Any = np.float32,
  max_shard_bytes: int = 5 * 10**9,
  progress: Callable[[float], None] = lambda share: None,
) -> pathlib.Path:
  """Writes the model of a GGUF file as a Hugging Face folder.

  Args:
    path: the file, or one part of a split one.
    folder: a new or empty folder; appears whole or not at all.
    dtype: of all tensors; f32 holds what is quantised to the bit.
    max_shard_bytes: more than that is written in shards with an index.
    progress: called with the share that is done.

  Returns:
    The folder's path.

  Raises:
    ModelError: see `folder_of`; the folder is not empty.
  """
  path, dtype = pathlib.Path(os.path.expanduser(path)), np.dtype(dtype)
  if not path.is_file():
    why = 'is a folder' if path.is_dir() else 'no such file'
    raise ModelError(f'{path}: {why}; expected a GGUF file.')
  with GgufTensors(path.absolute()) as tensors, new_folder(folder) as new:
    sizes = {
      name: math.prod(tensors.get_slice(name).get_shape()) * dtype.itemsize
      for name in tensors.keys()
    }

    def read():
      done = 0
      for name in tensors.keys():
        yield name, tensors.get_tensor(name).astype(dtype, copy=False)
        done += sizes[name]
        progress(done / sum(sizes.values()))

    tensors.config |= {'dtype': dtype.name, 'torch_dtype': dtype.name}
    write_small_files(new, tensors)
    write_tensors(new, read(), max_shard_bytes)
  return pathlib.Path(folder)


def _write_card(folder: pathlib.Path, tensors: 'GgufTensors') -> None:
  """Writes where a model comes from, and the terms that go with it."""
  known = tensors.metadata.get
  license = str(known('general.license', 'unknown'))
  kinds = sorted({kind.name for *_, kind in tensors._stored.values()})
  name = known('general.name', tensors.path.stem)
  (folder / 'README.md').write_text(
    f'---\nlicense: {license}\n---\n\n# {name}\n\nConverted from the GGUF '
    f'file {tensors.path.name} ({", ".join(kinds)}).\n',
    encoding='utf-8',
  )
  if license == 'gemma' or known('general.architecture', '')[:5] == 'gemma':
    (folder / 'NOTICE').write_text(GEMMA_NOTICE, encoding='utf-8')


class GgufTensors:
  """The tensors of a GGUF file, or of all parts of a split one.

  Has what is used of a file that safetensors has opened: `keys`, `get_slice`
  and `get_tensor`. A context manager.

  Attributes:
    path: of the file, the first one of several.
    metadata: of its header.
    config: config.json of its model.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the headers.

    Raises:
      ModelError: see `folder_of`.
    """
    if not importlib.util.find_spec('gguf'):
      raise ModelError(
        f'{path}: is read with the package gguf: install it (pip install '
        "'evojax-llm[gguf]')."
      )
    parts = _parts(path)
    headers = {part: gguf_header.read_header(part) for part in parts}
    self.path, self.metadata = parts[0], headers[parts[0]].metadata
    known = gguf_config.architecture(self.path, self.metadata)
    stored = {
      name: (part, tensor)
      for part, header in headers.items()
      for name, tensor in header.tensors.items()
    }
    self._stored = {}
    self._known = known
    unknown = []
    for name, (part, tensor) in stored.items():
      if name == gguf_config.ROPE_FACTORS:
        continue
      ours = gguf_config.stored_name(name, known)
      if ours is None:
        unknown.append(name)
        continue
      self._stored[ours] = part, tensor, _type(part, name, tensor)
    if unknown:
      raise ModelError(
        f'{self.path}: tensors that no {known.model_type} has: '
        f'{listing(unknown)} ({len(unknown)} in all).'
      )
    embedding = stored.get(_EMBEDDING)
    if embedding is None:
      raise ModelError(f'{self.path}: has no tensor {_EMBEDDING}.')
    factors = stored.get(gguf_config.ROPE_FACTORS)
    if factors is not None:
      kind = _type(factors[0], gguf_config.ROPE_FACTORS, factors[1])
      factors = _read(*factors, kind)
    self.config = gguf_config.config_json(
      self.path,
      self.metadata,
      embedding[1].shape[0],
      tied='output.weight' not in stored,
      rope_factors=factors,
    )

  def keys(self) -> list[str]:
    """Returns the names of the tensors."""
    return list(self._stored)

  def get_slice(self, name: str) -> '_Slice':
    """Returns shape and type of a tensor."""
    _, tensor, kind = self._stored[name]
    return _Slice(tensor.shape, _FLOATS.get(kind.name, 'F32'))

  def get_tensor(self, name: str) -> np.ndarray:
    """Reads a tensor, as its model has it."""
    array = _read(*self._stored[name])
    return gguf_config.restored(name, array, self._known, self.config)

  def __enter__(self) -> 'GgufTensors':
    return self

  def __exit__(self, *unused: Any) -> None:
    pass


class _Slice:
  """Shape and type of a tensor, as a slice of safetensors tells them."""

  def __init__(self, shape: tuple[int, ...], dtype: str):
    self._shape, self._dtype = shape, dtype

  def get_shape(self) -> tuple[int, ...]:
    return self._shape

  def get_dtype(self) -> str:
    return self._dtype


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
  """All files of a model, of which one is given.

  Raises:
    ModelError: one is missing.
  """
  match = _SPLIT.fullmatch(path.name)
  if not match:
    return [path]
  stem, _, count = match.groups()
  parts = [
    path.with_name(f'{stem}-{i + 1:05}-of-{count}.gguf')
    for i in range(int(count))
  ]
  if missing := [part.name for part in parts if not part.is_file()]:
    raise ModelError(
      f'{path}: is one of {count} files, of which {listing(missing)} '
      f'{"is" if len(missing) == 1 else "are"} not beside it. Fetch them all.'
    )
  return parts


def _type(
  path: pathlib.Path, name: str, tensor: gguf_header.StoredTensor
) -> Any:
  """The type of a tensor, as the package gguf has it.

  Raises:
    ModelError: it is unknown, cannot be made f32, or the file ends before it.
  """
  import gguf

  try:
    kind = gguf.GGMLQuantizationType(tensor.kind)
    if kind.name not in _FLOATS:
      _try_block(kind)
  except (ValueError, NotImplementedError) as error:
    raise ModelError(
      f'{path}: tensor {name} is of type {tensor.kind} of ggml ({error}); '
      'expected floats or a quantisation that the package gguf reads. '
      'Quantise the model to another type.'
    ) from error
  if tensor.start + _bytes(kind, tensor) > path.stat().st_size:
    raise ModelError(
      f'{path}: ends within tensor {name}; the file is truncated, fetch it '
      'again.'
    )
  return kind


@functools.cache
def _try_block(kind: Any) -> None:
  """Raises NotImplementedError for a type that gguf does not make f32."""
  import gguf

  _, size = gguf.GGML_QUANT_SIZES[kind]
  # Scales of zeros may be divided by.
  with np.errstate(all='ignore'):
    gguf.dequantize(np.zeros(size, np.uint8), kind)


def _bytes(kind: Any, tensor: gguf_header.StoredTensor) -> int:
  import gguf

  return gguf_header.byte_count(tensor.shape, *gguf.GGML_QUANT_SIZES[kind])


def _read(
  path: pathlib.Path, tensor: gguf_header.StoredTensor, kind: Any
) -> np.ndarray:
  """Reads a tensor as f32 or, where it is stored so, as f16 or bf16."""
  import gguf

  data = np.memmap(path, np.uint8, 'r', tensor.start, _bytes(kind, tensor))
  if kind.name in ('F32', 'F16'):
    floats = np.float32 if kind.name == 'F32' else np.float16
    return np.array(data).view(floats).reshape(tensor.shape)
  if kind.name == 'BF16':
    import ml_dtypes

    return np.array(data).view(ml_dtypes.bfloat16).reshape(tensor.shape)
  rows = data.reshape(*tensor.shape[:-1], -1)
  return gguf.dequantize(rows, kind).reshape(tensor.shape)
