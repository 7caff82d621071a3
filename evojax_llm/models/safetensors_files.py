"""A safetensors file, read a few rows at a time and by many threads at once."""

from collections.abc import Sequence
import json
import math
import os
import pathlib
import struct
from typing import Any
from typing import Self

import ml_dtypes
import numpy as np
import safetensors

_TYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}


# Where XLA begins a buffer.
_ALIGNMENT = 64


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """Returns memory that a CPU device takes as it is, in place of a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


class SafetensorsFile:
  """The tensors of a file; a context manager.

  safetensors checks the header and gives its own reader, which holds Python's
  lock while the disk works. Floats are read here, with positions of their own.
  """

  def __init__(self, path: pathlib.Path):
    """Opens a file; raises SafetensorError if it is not a whole one."""
    self._checked = safetensors.safe_open(path, framework='numpy')
    self._file = path.open('rb')
    (size,) = struct.unpack('<Q', self._file.read(8))
    self._header: dict[str, Any] = json.loads(self._file.read(size))
    self._start = 8 + size

  def keys(self) -> list[str]:
    """Returns the names of the tensors."""
    return list(self._checked.keys())

  def get_slice(self, name: str) -> Any:
    """Returns what knows shape and type of a tensor."""
    return self._checked.get_slice(name)

  def get_tensor(self, name: str) -> np.ndarray:
    """Reads a tensor."""
    if not self.has_rows(name):
      return self._checked.get_tensor(name)
    return self.read_rows(name, 0, self._header[name]['shape'][0])

  def has_rows(self, name: str) -> bool:
    """Whether `read_rows` reads a tensor."""
    about = self._header[name]
    floats = about['dtype'] in _TYPES and math.prod(about['shape'])
    return bool(floats and about['shape'] and hasattr(os, 'preadv'))

  def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Reads the rows from `start` to before `stop` of a tensor's first axis."""
    about = self._header[name]
    kind, shape = _TYPES[about['dtype']], about['shape'][1:]
    row = math.prod(shape) * kind.itemsize
    read = np.empty((stop - start) * row, np.uint8)
    begin = self._start + about['data_offsets'][0] + start * row
    done = 0
    while done < read.nbytes:
      count = os.preadv(self._file.fileno(), [read[done:]], begin + done)
      if not count:
        raise OSError(f'{self._file.name}: ends within {name}')
      done += count
    return read.view(kind).reshape(stop - start, *shape)

  def __enter__(self) -> Self:
    self._checked.__enter__()
    return self

  def __exit__(self, *raised: object) -> None:
    self._file.close()
    self._checked.__exit__(*raised)


def is_finite(array: np.ndarray) -> bool:
  """Whether no number of floats is NaN or infinity."""
  parts = np.array_split(array, max(1, array.size >> 22))
  if array.dtype.itemsize == 2:  # Many times as fast as on the numbers.
    infinity = np.array(np.inf, array.dtype).view(np.uint16)
    return all(
      (part.view(np.uint16) & 0x7FFF).max(initial=0) < infinity
      for part in parts
    )
  return all(np.isfinite(part).all() for part in parts)
