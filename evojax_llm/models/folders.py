"""Model and adapter folders on disk: JSON, safetensors, new folders.

No pickle is opened and nothing is downloaded.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any
from typing import Self
import uuid

import ml_dtypes
import numpy as np
import safetensors

from evojax_llm import files
from evojax_llm import lookup
from evojax_llm.models.errors import ModelError
from evojax_llm.models.safetensors_files import SafetensorsFile
from evojax_llm.models.safetensors_files import is_finite

# What stored types are used as; others are of quantised or damaged files.
FLOAT_TYPES = {
  'F64': np.dtype(np.float32),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
# Numbers of a part that is read at once: they stay in a processor's cache.
_PART = 1 << 21
_HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')


def import_transformers():
  """Imports transformers without its advice to install PyTorch."""
  name = 'TRANSFORMERS_NO_ADVISORY_WARNINGS'
  before = os.environ.get(name)
  os.environ[name] = '1'
  try:
    import transformers

    return transformers
  finally:
    if before is None:
      del os.environ[name]
    else:
      os.environ[name] = before


def existing_folder(folder: str | os.PathLike, what: str) -> pathlib.Path:
  """Returns the path of a local folder.

  Args:
    folder: a path, `~` is expanded; 'pocket' for the embedded model and
      'pocket:NAME' for an expert of it; a GGUF file, for which a folder is made
      of it; or the name of a repository of the Hugging Face hub, such as
      google/gemma-2-2b-it, whose snapshot is taken from the hub's local cache.
      Nothing is downloaded.
    what: what it should hold, for messages.

  Raises:
    ModelError: there is no such folder.
  """
  embedded, colon, expert = str(folder).partition(':')
  if embedded == 'pocket':
    # Other models are read without the package's own.
    from evojax_llm import pocket

    try:
      return pocket.expert_folder(expert) if colon else pocket.base_folder()
    except ValueError as error:
      raise ModelError(f'{folder}: {error}') from error
  path = pathlib.Path(os.path.expanduser(folder))
  # Of os, since those of pathlib raise on names that are too long.
  if os.path.isdir(path):
    adapter = os.path.lexists(path / 'adapter_config.json')
    if what.startswith('a model') and adapter > os.path.lexists(
      path / 'config.json'
    ):
      raise ModelError(f'{path}: is an adapter folder; expected {what}.')
    return path
  if path.suffix == '.gguf' and os.path.isfile(path):
    # Other models are read without what reads these.
    from evojax_llm.models import gguf_files

    return gguf_files.folder_of(path)
  if os.path.exists(path):
    raise ModelError(f'{path}: is a file; expected {what}.')
  if os.path.islink(path):
    files.check_regular(path, ModelError)
  name = str(folder)
  if not _HUB_NAME.fullmatch(name) or '..' in name:
    raise _absent(path, what)
  cache = _hub_cache()
  repository = cache / f'models--{name.replace("/", "--")}'
  snapshots = sorted(repository.glob('snapshots/*/'))
  main = repository / 'refs' / 'main'
  if main.is_file():
    commit = files.read_text(main, ModelError).strip()
    snapshots = [s for s in snapshots if s.name == commit] or snapshots
  if len(snapshots) == 1:
    return snapshots[0]
  if snapshots:
    raise ModelError(
      f'{name}: {repository} has {len(snapshots)} snapshots and no refs/main '
      f'that names one of them; give the path of one, such as {snapshots[0]}.'
    )
  if path.parent.is_dir():
    raise _absent(path, what)
  raise ModelError(
    f"{name}: does not exist, neither as a folder nor in the hub's cache "
    f'{cache}; expected {what}. Nothing is downloaded: fetch it with\n  hf '
    f'download {name} --local-dir={name.split("/")[1]}\nand give that folder.'
  )


def _absent(path: pathlib.Path, what: str) -> ModelError:
  """The error of a folder that is not there, with those that are beside it."""
  beside: list[str] = []
  with contextlib.suppress(OSError):
    beside = sorted(f.name for f in path.parent.iterdir() if f.is_dir())
  beside = [name for name in beside if not name.startswith('.')]
  hint = lookup.did_you_mean(path.name, beside)
  if beside and path.parent != pathlib.Path():
    hint += f' {path.parent}/ has {listing(beside)}.'
  return ModelError(f'{path}: does not exist; expected {what}.{hint}')


def _hub_cache() -> pathlib.Path:
  """The folder in which huggingface_hub keeps repositories."""
  given = os.environ.get
  home = given('HF_HOME') or os.path.join(
    given('XDG_CACHE_HOME') or '~/.cache', 'huggingface'
  )
  cache = given('HF_HUB_CACHE') or given('HUGGINGFACE_HUB_CACHE')
  return pathlib.Path(os.path.expanduser(cache or os.path.join(home, 'hub')))


def model_name(folder: str | os.PathLike) -> str:
  """Returns the name of a model folder, 'owner/name' of a Hub's snapshot."""
  path = pathlib.Path(os.path.expanduser(folder)).resolve()
  if path.parent.name == 'snapshots':
    owner_and_name = path.parent.parent.name.removeprefix('models--')
    return owner_and_name.replace('--', '/', 1)
  return path.name


def expert_names(folders: Sequence[str | os.PathLike]) -> tuple[str, ...]:
  """Returns the shortest ends of the paths that tell the folders apart."""
  paths = []
  for folder in folders:
    # Snapshots in the hub's cache are called by a number.
    name = model_name(folder)
    path = os.path.expanduser(name if '/' in name else folder)
    paths.append(pathlib.Path(path).absolute())
  names: list[str] = []
  for depth in range(1, max((len(p.parts) for p in paths), default=0) + 1):
    names = ['/'.join(p.parts[-depth:]) for p in paths]
    if len(set(names)) == len(set(paths)):
      break
  # A folder that is given again gets its position.
  return tuple(
    n if names.index(n) == i else f'{n}#{i}' for i, n in enumerate(names)
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object in a file of a model or adapter folder."""
  return files.read_object(path, ModelError, 'Fetch the file again.')


def listing(names: Iterable[str]) -> str:
  """Lists five names at most and counts the others."""
  names = list(names)
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return ', '.join(names[:5]) + more


class TensorFiles:
  """Named tensors of safetensors files, read one at a time.

  Headers are read first, so that shapes and types can be checked before any
  data is read. A context manager.

  Attributes:
    path: the file or index that names the tensors, for messages.
    names: names of the stored tensors.
  """

  def __init__(self, path: pathlib.Path, of: dict[str, pathlib.Path] | None):
    """Opens the files.

    Args:
      path: the file or index, for messages.
      of: the file of each tensor; None if `path` holds them all.

    Raises:
      ModelError: a file is missing, truncated, or lacks a tensor.
    """
    self.path = path
    self._handles = {}
    with contextlib.ExitStack() as stack:
      for file in sorted(set(of.values())) if of else [path]:
        self._handles[file] = stack.enter_context(_open(file))
      held = {f: set(h.keys()) for f, h in self._handles.items()}
      absent = [n for n, f in (of or {}).items() if n not in held[f]]
      if absent:
        raise ModelError(
          f'{path}: names tensors that their file lacks: {listing(absent)} '
          f'({len(absent)} in all). Index and shards do not belong together; '
          'fetch the folder again.'
        )
      self._stack = stack.pop_all()
    self._files = of or dict.fromkeys(self._handles[path].keys(), path)
    self.names = tuple(self._files)

  @classmethod
  def of_model(cls, folder: pathlib.Path) -> Self:
    """Opens a model folder: one file, or shards with an index."""
    if os.path.lexists(folder / 'model.gguf'):
      return cls(folder / 'model.gguf', None)
    single = folder / 'model.safetensors'
    index = folder / 'model.safetensors.index.json'
    # Links that lead nowhere are there, and are named when they are opened.
    if not os.path.lexists(index):
      if os.path.lexists(single):
        return cls(single, None)
      _refuse_pickle(folder, 'pytorch_model*.bin', 'model.safetensors')
      raise ModelError(
        f'{folder}: has neither model.safetensors nor '
        'model.safetensors.index.json; expected the weights in one of them.'
      )
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise ModelError(
        f'{index}: has no weight_map; expected an object that gives the file '
        'of each tensor. Fetch the file again.'
      )
    of = {}
    for name, file in weight_map.items():
      if not isinstance(file, str) or pathlib.PurePath(file).name != file:
        raise ModelError(
          f'{index}: weight_map[{name!r}] is {file!r}; expected the name of a '
          'file in the same folder.'
        )
      of[name] = folder / file
    if os.path.lexists(single) and single not in of.values():
      raise ModelError(
        f'{folder}: has {single.name} and, as {index.name} says, the weights '
        f'in {listing(sorted(set(weight_map.values())))}; expected one of '
        'them. Remove what is left over from before.'
      )
    return cls(index, of)

  @classmethod
  def of_adapter(cls, folder: pathlib.Path) -> Self:
    """Opens a PEFT adapter folder."""
    file = folder / 'adapter_model.safetensors'
    if not os.path.lexists(file):
      for pattern in ('adapter_model*.bin', 'pytorch_model*.bin', '*.pt'):
        _refuse_pickle(folder, pattern, file.name)
      raise ModelError(
        f"{file}: no such file; expected the adapter's tensors there."
      )
    return cls(file, None)

  def file(self, name: str) -> pathlib.Path:
    """Returns the file that holds a tensor."""
    return self._files[name]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor, from the header."""
    return tuple(self._slice(name).get_shape())

  def dtype(self, name: str) -> np.dtype:
    """Returns the type that a tensor is used as; refuses non-floats."""
    stored = self._slice(name).get_dtype()
    if stored not in FLOAT_TYPES:
      raise ModelError(
        f'{self.file(name)}: tensor {name} is stored as {stored}; expected '
        f'one of {", ".join(FLOAT_TYPES)}. Quantised weights must be '
        'converted back first.'
      )
    return FLOAT_TYPES[stored]

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor."""
    return self._handles[self.file(name)].get_tensor(name)

  def parts(self, name: str) -> list[tuple[int, Callable[[], np.ndarray]]]:
    """Returns the first row and what reads it, of parts of a few MiB.

    They may be read by several threads at once. What is no safetensors file is
    one part.
    """
    handle = self._handles[self.file(name)]
    if not (isinstance(handle, SafetensorsFile) and handle.has_rows(name)):
      return [(0, functools.partial(handle.get_tensor, name))]
    rows, *rest = self.shape(name)
    each = max(1, _PART // max(1, math.prod(rest)))
    return [
      (i, functools.partial(handle.read_rows, name, i, min(rows, i + each)))
      for i in range(0, rows, each)
    ]

  def check_finite(self, name: str, array: np.ndarray) -> None:
    """Refuses NaN and infinity in what was read of a tensor."""
    if not is_finite(array):
      raise ModelError(
        f'{self.file(name)}: tensor {name} has NaN, infinity or numbers beyond '
        f'{array.dtype}; expected finite weights. The file is damaged or its '
        'training diverged.'
      )

  def _slice(self, name: str):
    return self._handles[self.file(name)].get_slice(name)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused) -> None:
    self._stack.close()


def _open(file: pathlib.Path):
  """Opens a safetensors file."""
  files.check_regular(file, ModelError)
  try:
    with file.open('rb') as f:
      files.check_lfs(file, f.read(64), ModelError)
    if file.suffix == '.gguf':
      from evojax_llm.models import gguf_files

      return gguf_files.GgufTensors(file.resolve())
    return SafetensorsFile(file)
  except (OSError, safetensors.SafetensorError) as error:
    raise ModelError(
      f'{file}: not a whole safetensors file ({error}); it is truncated or '
      'damaged, fetch it again.'
    ) from error


def _refuse_pickle(folder: pathlib.Path, pattern: str, wanted: str) -> None:
  for file in sorted(folder.glob(pattern)):
    raise ModelError(
      f'{file}: a pickle, which can run code and is never opened; expected '
      f'{wanted}. Save it again with safe_serialization=True.'
    )


@contextlib.contextmanager
def new_folder(
  folder: str | os.PathLike, replace: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a folder to write, which appears whole or not at all.

  It is a temporary sibling of `folder`, renamed when the block ends and
  removed when the block raises. With `replace` it takes the place of one that
  is not empty.

  Raises:
    ModelError: `folder` exists and is not empty, is a file, or is in a place
      where none can be made.
    OSError: it cannot be written, by safetensors either.
  """
  target = pathlib.Path(os.path.expanduser(folder))
  if target.exists() and not target.is_dir():
    raise ModelError(f'{target}: is a file; expected a new folder.')
  if target.is_dir() and any(target.iterdir()) and not replace:
    raise ModelError(
      f'{target}: exists and is not empty; nothing is overwritten, give '
      'another folder or remove this one.'
    )
  target = target.absolute()
  temporary = target.parent / f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp'
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
  except (
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
  ) as error:
    raise ModelError(
      f'{target}: the folder cannot be made: {error.strerror.lower()}. Name '
      'one in a place that can be written.'
    ) from error
  try:
    yield temporary
    if replace and target.is_dir():
      old = temporary.with_suffix('.old')
      os.rename(target, old)
      os.rename(temporary, target)
      shutil.rmtree(old)
    else:
      os.rename(temporary, target)
  except BaseException as error:
    shutil.rmtree(temporary, ignore_errors=True)
    number = re.search(r'os error (\d+)', str(error))
    if number and isinstance(error, safetensors.SafetensorError):
      number = int(number[1])
      raise OSError(number, os.strerror(number), str(target)) from error
    raise


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes an object as transformers does."""
  text = json.dumps(value, indent=2, sort_keys=True) + '\n'
  path.write_text(text, encoding='utf-8')
