"""One reader of the files that users bring: texts and JSON, within limits.

A file from outside may be a FIFO, a link to nothing, of another encoding, cut
off, nested too deep, or hold what Python takes and nothing later can use: NaN,
numbers beyond a double, halves of surrogate pairs. All of it ends here in one
error that names the file and, where there is one, the key.
"""

import collections
import contextlib
import errno
import gzip
import json
import math
import os
import pathlib
import re
import stat
from typing import Any
import zlib

from evojax_llm import lookup

MAX_BYTES = 2**30
MAX_DEPTH = 100
# An integer of more digits has no double; 10**308 has.
MAX_DIGITS = 308
_LFS = b'version https://git-lfs'
_KINDS = {
  stat.S_IFDIR: 'a folder',
  stat.S_IFIFO: 'a FIFO',
  stat.S_IFSOCK: 'a socket',
  **dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), 'a device'),
}
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_HALF = 'has half of a surrogate pair (such as \\ud83d), which is no text.'
_TOO_DEEP = (
  f'not valid JSON: lists and objects are nested more than {MAX_DEPTH} deep.'
)


class FileError(ValueError):
  """A file cannot be used; says which, where in it, and what to do."""


Error = type[ValueError]  # what is raised


def check_regular(path: str | os.PathLike, error: Error = FileError) -> None:
  """Raises `error` for what is no regular file, or a link to none."""
  try:
    mode = os.stat(path).st_mode
  except OSError as e:
    why, hint = e.strerror.lower(), ''
    if e.errno == errno.ENOENT:
      why, hint = 'no such file', _meant(pathlib.Path(path))
    if e.errno == errno.ELOOP:
      why = f'a link to {os.readlink(path)} that leads back to itself; put the '
      why += 'file there'
    elif os.path.islink(path):
      why = f'a link to {os.readlink(path)}, which is not there; put the file '
      why += 'there, or fetch it again'
    raise error(f'{path}: {why}.{hint}') from None
  except ValueError as e:  # A null character, or half a surrogate pair.
    raise error(f'{os.fspath(path)!r}: no name of a file: {e}.') from None
  if not stat.S_ISREG(mode):
    kind = _KINDS.get(stat.S_IFMT(mode), 'something else')
    raise error(f'{path}: is {kind}; expected a regular file.')


def _meant(path: pathlib.Path) -> str:
  """Returns a hint at a file beside one that is not there, or ''."""
  with contextlib.suppress(OSError):
    return lookup.did_you_mean(path.name, os.listdir(path.parent))
  return ''


def check_lfs(
  path: pathlib.Path, head: bytes, error: Error = FileError
) -> None:
  """Raises `error` where the first bytes are those of a Git LFS pointer."""
  if head.startswith(_LFS):
    raise error(f'{path}: a Git LFS pointer; run `git lfs pull` there.')


def read_text(
  path: str | os.PathLike,
  error: Error = FileError,
  max_bytes: int = MAX_BYTES,
) -> str:
  """Reads a UTF-8 text, unpacked if its name ends in .gz; a BOM is left out.

  Raises:
    error: no regular file, one that cannot be read, of another encoding, or of
      more than `max_bytes` (unpacked).
  """
  path = pathlib.Path(path)
  check_regular(path, error)
  packed = path.suffix.lower() == '.gz'
  try:
    with gzip.open(path) if packed else path.open('rb') as f:
      data = f.read(max_bytes + 1)
  except (OSError, EOFError, zlib.error) as e:
    what = 'is no whole gzip file' if packed else 'cannot be read'
    raise error(
      f'{path}: {what}: {getattr(e, "strerror", None) or e}.'
    ) from None
  if len(data) > max_bytes:
    raise error(f'{path}: has more than {max_bytes} bytes, the most we read.')
  check_lfs(path, data[: len(_LFS)], error)
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    # The decoder counts from behind a BOM.
    at = e.start + 3 * data.startswith(b'\xef\xbb\xbf')
    line = data.count(b'\n', 0, at) + 1
    raise error(
      f'{path}: not UTF-8: byte 0x{data[at]:02x} at offset {at}, line {line}. '
      'Save it as UTF-8.'
    ) from None


def read_json(
  path: str | os.PathLike, error: Error = FileError, advice: str = ''
) -> Any:
  """Reads a JSON file.

  Raises:
    error: as `read_text` and `parse_json`.
  """
  return parse_json(read_text(path, error), path, error, advice)


def read_object(
  path: str | os.PathLike, error: Error = FileError, advice: str = ''
) -> dict[str, Any]:
  """Reads a JSON file that holds an object.

  Raises:
    error: as `read_json`, or it holds something else.
  """
  value = read_json(path, error, advice)
  if not isinstance(value, dict):
    raise error(
      f'{path}: holds a JSON {type(value).__name__}; expected an object.'
    )
  return value


def parse_json(
  text: str,
  where: str | os.PathLike,
  error: Error = FileError,
  advice: str = '',
  unique_keys: bool = False,
) -> Any:
  """Returns the value of a JSON text.

  It is at most `MAX_DEPTH` deep, has numbers that a double holds and no halves
  of surrogate pairs; with `unique_keys` no object has a key twice. `advice`
  ends the message about broken JSON.

  Raises:
    error: the text is something else; names `where` it is and the key.
  """
  beyond: list[str] = []

  def integer(literal: str) -> float:
    if len(literal.lstrip('-')) <= MAX_DIGITS:
      return int(literal)
    beyond.append(literal)
    return math.nan

  def number(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
      beyond.append(literal)
    return value

  def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) < len(items):
      counts = collections.Counter(key for key, _ in items)
      twice = counts.most_common(1)[0][0]
      raise error(f'{where}: not valid JSON: the key {twice!r} stands twice.')
    return value

  try:
    value = json.loads(
      text,
      parse_int=integer,
      parse_float=number,
      parse_constant=number,
      object_pairs_hook=pairs if unique_keys else None,
    )
  except json.JSONDecodeError as e:
    near = text[max(0, e.pos - 20) : e.pos + 10]
    # Of a single line `where` says which.
    at = f'line {e.lineno}, ' if '\n' in text.strip() else ''
    raise error(
      f'{where}: not valid JSON at {at}column {e.colno}: {e.msg}, '
      f'near {near!r}. {advice}'.rstrip()
    ) from None
  except RecursionError:
    raise error(f'{where}: {_TOO_DEEP}') from None
  # The walk is for the few texts that may need it.
  deep = text.count('[') + text.count('{') > MAX_DEPTH
  if beyond or deep or _SURROGATE.search(text):
    if fault := _fault(value, MAX_DEPTH):
      key, what = fault
      if what == _TOO_DEEP:
        raise error(f'{where}: {what}')
      what = what or (
        f'{_short(beyond[0])} is no number that can be used; expected a finite '
        'one, or text in quotes.'
      )
      raise error(f'{where}: {key.lstrip(".") or "the value"}: {what}')
    if beyond:  # Of a key that stands twice.
      raise error(
        f'{where}: {_short(beyond[0])} is no number that can be used.'
      )
  return value


def _short(literal: str) -> str:
  if len(literal) <= 30:
    return literal
  return f'{literal[:12]}... ({len(literal)} characters)'


def _fault(value: Any, depth: int) -> tuple[str, str] | None:
  """(key, what is wrong, '' of a number) of the first value we cannot hold."""
  if isinstance(value, str):
    return None if is_text(value) else ('', _HALF)
  if isinstance(value, float):
    return None if math.isfinite(value) else ('', '')
  if not isinstance(value, list | dict):
    return None
  if depth == 0:
    return '', _TOO_DEEP
  of_dict = isinstance(value, dict)
  for key, part in value.items() if of_dict else enumerate(value):
    if of_dict and not is_text(key):
      return f'.{key!a}', _HALF
    if fault := _fault(part, depth - 1):
      name = f'.{key}' if of_dict else f'[{key}]'
      return name + fault[0], fault[1]
  return None


def is_text(value: Any) -> bool:
  """Whether a value is text without halves of surrogate pairs."""
  if not isinstance(value, str):
    return False
  try:
    # Encoding is the fastest test; most texts are known to be ASCII.
    value.isascii() or value.encode()
  except UnicodeEncodeError:
    return False
  return True
