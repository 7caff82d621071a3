"""Values as data, between the process of an answer and that of its tests.

A message is JSON behind its length. Numbers, text, bytes, the containers of
Python and its types' names are data. They are sent as what they hold, whatever
their class says of itself: a subclass arrives as the type that it extends. What
is no data is for the caller.
"""

import builtins
from collections.abc import Callable
import json
import os
from typing import Any

_MOST_BYTES = 16 << 20
_CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
# JSON has them as they are; larger ones would be slow to read, or refused.
_LARGE = 1 << 62


def send(stream: int, message: Any) -> None:
  """Writes a message to a file descriptor.

  Raises:
    ValueError: it is too long.
  """
  text = json.dumps(message).encode()
  if len(text) > _MOST_BYTES:
    raise ValueError(f'a value of more than {_MOST_BYTES >> 20} MB')
  rest = memoryview(len(text).to_bytes(8, 'big') + text)
  while rest:
    rest = rest[os.write(stream, rest) :]


def receive(stream: int) -> Any:
  """Reads a message from a file descriptor.

  Raises:
    EOFError: there is none.
    ValueError: it is too long, or no JSON.
  """
  size = int.from_bytes(_read(stream, 8), 'big')
  if size > _MOST_BYTES:
    raise ValueError(f'a value of more than {_MOST_BYTES >> 20} MB')
  return json.loads(_read(stream, size))


def _read(stream, size):
  read = bytearray()
  while len(read) < size:
    part = os.read(stream, min(size - len(read), 1 << 20))
    if not part:
      raise EOFError
    read += part
  return read


def encode(value: Any, other: Callable[[Any], list]) -> Any:
  """Returns a value as JSON has it; `other` is asked for what is no data."""
  if value is None or type(value) in (bool, float, str):
    return value
  if isinstance(value, int) or hasattr(type(value), '__index__'):
    number = int.__int__(value) if isinstance(value, int) else int(value)
    return number if -_LARGE < number < _LARGE else ['int', hex(number)]
  if isinstance(value, float):
    return float.__float__(value)
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, bytes | bytearray):
    return ['bytes', bytes(value).decode('latin-1')]
  if isinstance(value, complex):
    return ['complex', value.real, value.imag]
  if isinstance(value, range):
    parts = (value.start, value.stop, value.step)
    return ['range', *(encode(part, other) for part in parts)]
  if isinstance(value, dict):
    items = dict.items(value)
    return ['dict', [[encode(part, other) for part in pair] for pair in items]]
  if isinstance(value, type) and value is vars(builtins).get(value.__name__):
    return ['type', value.__name__]
  for name, kind in _CONTAINERS.items():
    if isinstance(value, kind):
      return [name, [encode(part, other) for part in kind.__iter__(value)]]
  return other(value)


def decode(value: Any, other: Callable[..., Any]) -> Any:
  """Returns what `encode` was given; `other` takes the parts of what it made.

  Raises:
    ValueError, TypeError, RecursionError and others: it is no such value.
  """
  if not isinstance(value, list):
    return value
  kind, *parts = value
  if kind in _CONTAINERS:
    return _CONTAINERS[kind](decode(part, other) for part in parts[0])
  if kind == 'dict':
    return {decode(key, other): decode(part, other) for key, part in parts[0]}
  if kind == 'int':
    return int(parts[0], 16)
  if kind == 'bytes':
    return parts[0].encode('latin-1')
  if kind == 'complex':
    return complex(*parts)
  if kind == 'range':
    return range(*(decode(part, other) for part in parts))
  if kind == 'type' and isinstance(vars(builtins)[parts[0]], type):
    return vars(builtins)[parts[0]]
  return other(kind, *parts)
