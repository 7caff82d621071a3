"""Compiled programs on disk: what a command has compiled, the next one reads.

They are below $XDG_CACHE_HOME, or ~/.cache, in evojax_llm/jax. jax's own
variables come first: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys

_SETTINGS = {
  # Of small programs there are many: half of what a run compiles.
  'jax_persistent_cache_min_compile_time_secs': 0.1,
  # What was read the longest ago goes first.
  'jax_compilation_cache_max_size': 4 << 30,
}


def keep() -> None:
  """Has jax keep compiled programs in the user's cache folder.

  Nothing changes where the environment names a folder, or none can be written.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  folder = _folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return
  if not folder.is_absolute() or not os.access(folder, os.W_OK):
    return
  settings = _SETTINGS | {'jax_compilation_cache_dir': str(folder)}
  given = {k: v for k, v in settings.items() if k.upper() not in os.environ}
  if 'jax' not in sys.modules:  # It reads them, where it is needed at all.
    os.environ.update({k.upper(): str(v) for k, v in given.items()})
    return
  import jax

  for name, value in given.items():
    jax.config.update(name, value)


def _folder() -> pathlib.Path:
  """A folder for processors like this one: home may be shared by several."""
  known = platform.machine() + platform.processor()
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    features = (x for x in lines if x.startswith(('flags', 'Features')))
    known += next(features, '')
  digest = hashlib.sha256(known.encode()).hexdigest()[:12]
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(cache) / 'evojax_llm' / 'jax' / digest
