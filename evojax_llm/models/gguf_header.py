"""The header of a GGUF file: its metadata, and where its tensors are.

The package gguf reads both as well; it makes an object of every token, which
takes it ten seconds and more for a vocabulary of Gemma. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3).
"""

import dataclasses
import math
import mmap
import os
import pathlib
import struct
from typing import Any
from typing import NoReturn

import numpy as np

from evojax_llm import files
from evojax_llm.models.errors import ModelError

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Of the other types of a value, by their number in the file.
_NUMBERS = {
  0: np.dtype('<u1'),
  1: np.dtype('<i1'),
  2: np.dtype('<u2'),
  3: np.dtype('<i2'),
  4: np.dtype('<u4'),
  5: np.dtype('<i4'),
  6: np.dtype('<f4'),
  _BOOL: np.dtype('<u1'),
  10: np.dtype('<u8'),
  11: np.dtype('<i8'),
  12: np.dtype('<f8'),
}
# A damaged count must not make a list of so many.
_MOST_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Where one tensor is.

  Attributes:
    shape: as numpy has it, rows first.
    kind: number of its type in ggml.
    start: of its first byte in the file.
  """

  shape: tuple[int, ...]
  kind: int
  start: int


@dataclasses.dataclass(frozen=True)
class Header:
  """What a GGUF file says of itself.

  Attributes:
    metadata: values by key; arrays are lists of strings, or of numbers in
      numpy.
    tensors: by the names that ggml has for them.
  """

  metadata: dict[str, Any]
  tensors: dict[str, StoredTensor]


def read_header(path: pathlib.Path) -> Header:
  """Reads the header of a GGUF file.

  Raises:
    ModelError: it is no GGUF file, of another version, or ends too early.
  """
  files.check_regular(path, ModelError)
  try:
    with open(path, 'rb') as file:
      files.check_lfs(path, file.read(64), ModelError)
      if os.fstat(file.fileno()).st_size < len(_MAGIC):
        _refuse(path)
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _Reader(path, mapped).header()
  except (struct.error, ValueError, IndexError, OverflowError) as error:
    if isinstance(error, ModelError):
      raise
    raise ModelError(
      f'{path}: the header is damaged or ends too early ({error}); fetch the '
      'file again.'
    ) from error


def _refuse(path: pathlib.Path) -> NoReturn:
  raise ModelError(
    f'{path}: does not begin with {_MAGIC.decode()}; expected a GGUF file. '
    'Fetch it again.'
  )


class _Reader:
  """Reads one value after the other."""

  def __init__(self, path: pathlib.Path, data: mmap.mmap):
    self.path, self.data, self.at = path, data, 0

  def header(self) -> Header:
    if self.data[:4] != _MAGIC:
      _refuse(self.path)
    self.at = 4
    version = self._number('<u4')
    if version not in _VERSIONS:
      raise ModelError(
        f'{self.path}: is GGUF of version {version}; expected '
        f'{" or ".join(map(str, _VERSIONS))}, little-endian. Convert it again '
        'with a newer llama.cpp.'
      )
    count, pairs = self._number('<u8'), self._number('<u8')
    metadata = {}
    for _ in range(pairs):
      key = self._string()
      metadata[key] = self._value(self._number('<u4'))
    tensors = {}
    for _ in range(count):
      name, dimensions = self._string(), self._number('<u4')
      if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f'tensor {name} with {dimensions} axes')
      shape = tuple(self._number('<u8') for _ in range(dimensions))[::-1]
      kind, offset = self._number('<u4'), self._number('<u8')
      tensors[name] = StoredTensor(shape, kind, offset)
    alignment = int(metadata.get('general.alignment', 32))
    start = -(-self.at // alignment) * alignment
    return Header(
      metadata,
      {
        name: dataclasses.replace(tensor, start=start + tensor.start)
        for name, tensor in tensors.items()
      },
    )

  def _number(self, kind: str) -> int:
    return self._numbers(np.dtype(kind), 1)[0].item()

  def _numbers(self, kind: np.dtype, count: int) -> np.ndarray:
    end = self.at + count * kind.itemsize
    if end > len(self.data):
      raise ValueError(f'{end} bytes wanted, {len(self.data)} there')
    # Bytes are copied: nothing may hold on to the map.
    found = np.frombuffer(self.data[self.at : end], kind)
    self.at = end
    return found

  def _string(self) -> str:
    return self._strings(1)[0]

  def _strings(self, count: int) -> list[str]:
    data, at, found = self.data, self.at, []
    for _ in range(count):
      (length,) = struct.unpack_from('<Q', data, at)
      at += 8
      if at + length > len(data):
        raise ValueError(f'{at + length} bytes wanted, {len(data)} there')
      found.append(data[at : at + length].decode('utf-8', 'replace'))
      at += length
    self.at = at
    return found

  def _value(self, kind: int) -> Any:
    if kind == _STRING:
      return self._string()
    if kind == _ARRAY:
      kind, count = self._number('<u4'), self._number('<u8')
      if kind == _STRING:
        return self._strings(count)
      return self._numbers(self._kind(kind), count)
    value = self._numbers(self._kind(kind), 1)[0].item()
    return bool(value) if kind == _BOOL else value

  def _kind(self, kind: int) -> np.dtype:
    if kind not in _NUMBERS:
      raise ValueError(f'a value of type {kind}')
    return _NUMBERS[kind]


def byte_count(shape: tuple[int, ...], block: int, size: int) -> int:
  """Returns the bytes of a tensor stored in blocks of `size` bytes."""
  return math.prod(shape) // block * size
