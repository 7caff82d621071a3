"""The inputs of a run, as its folder has recorded them.

config.json holds, beside the settings, the absolute paths of what was read and
fingerprints of it. What reads them again gets what the run had, or an error
that names what is not as it was.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from evojax_llm.runs import errors
from evojax_llm.runs import fields
from evojax_llm.runs import inputs
from evojax_llm.runs import record
from evojax_llm.runs.run_config import RunConfig

# What is read of a model or an adapter; notes and caches beside it are not.
_READ = ('.safetensors', '.json', '.model', '.jinja')
_SEVERAL = ('adapters', 'experts', 'tasks', 'heldout')
_WHOLE = 1 << 28
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16


def fingerprint(
  path: str | os.PathLike, suffixes: Sequence[str] = _READ
) -> str:
  """Returns a digest of a file, or of a model's or an adapter's folder.

  Of files above 256 MiB it holds name, size and 256 parts of 64 KiB each.
  """
  path = pathlib.Path(path)
  digest = hashlib.sha256()
  for file in [path] if path.is_file() else sorted(path.rglob('*')):
    if not file.is_file() or (file != path and file.suffix not in suffixes):
      continue
    size = file.stat().st_size
    digest.update(f'{file.name}\0{size}\0'.encode())
    with open(file, 'rb') as opened:
      if size <= _WHOLE:
        digest.update(opened.read())
        continue
      for i in range(_SAMPLES):
        opened.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
        digest.update(opened.read(_SAMPLE_BYTES))
  return digest.hexdigest()[:16]


def of_folders(files: inputs.Files) -> dict[str, Any]:
  """Returns fingerprints of the base, the adapters and the experts."""
  return {
    'model': fingerprint(files.model),
    'adapters': [fingerprint(folder) for folder in files.adapters],
    'experts': [fingerprint(folder) for folder in files.experts],
  }


def paths(files: inputs.Files) -> dict[str, Any]:
  """Returns the absolute paths of inputs, for config.json."""
  return {
    'name': files.name,
    'model': str(files.model.absolute()),
    # Tasks may be names of no files.
    **{
      kind: [
        path if isinstance(path, str) else str(path.absolute())
        for path in getattr(files, kind)
      ]
      for kind in _SEVERAL
    },
  }


def find(
  run: pathlib.Path, allow_changed: bool = False, allow_code: bool = False
) -> tuple[RunConfig, inputs.Files]:
  """Finds the inputs of a run again, from wherever it is called.

  They are looked for where the run found them, then where its configuration
  names them from here. Those of a run of an earlier version, which has no
  paths, are not compared. For what is allowed see `rows.find`.

  Raises:
    UserError: one of them is gone, or has changed.
    CheckpointError: config.json is missing or damaged.
  """
  kept = record.read_config(run)
  config = RunConfig.from_config(kept['config'])
  if not allow_code:
    fields.check_code(config.to_dict(), run / 'config.json')
  if not kept.get('files'):
    return config, inputs.locate(config)
  here = None
  with contextlib.suppress(ValueError):
    # Of tasks that are gone something else has to complain.
    plain = dataclasses.replace(config, tasks='main', heldout_tasks='')
    here = inputs.locate(plain)
  changed: list[str] = []
  with record.damaged(run / 'config.json', ''):
    files, digests = _files(kept['files']), kept['inputs']
    taken = {}
    for kind in ('adapters', 'experts'):
      others = getattr(here, kind, ())
      what, there = f'one of config.{kind}', getattr(files, kind)
      read = run, what, there, others, digests[kind]
      taken[kind] = _as_it_was(*read, changed)
    others, digest = [here.model] if here else [], [digests['model']]
    model = _as_it_was(run, 'model', [files.model], others, digest, changed)
    files = dataclasses.replace(files, model=model[0], **taken)
  if changed:
    text = '\n  '.join(changed)
    if not allow_changed:
      raise errors.UserError(
        f'The inputs of the run in {run} are not what they were:\n  {text}\n'
        'Put back what the run had, or take them as they are with '
        '--allow_changed.'
      )
    errors.say(f'warning: the inputs are not those of the run:\n  {text}')
  return config, files


def _files(kept: dict[str, Any]) -> inputs.Files:
  several = {
    kind: tuple(
      pathlib.Path(name) if os.path.isabs(name) else name for name in kept[kind]
    )
    for kind in _SEVERAL
  }
  return inputs.Files(kept['name'], pathlib.Path(kept['model']), **several)


def _as_it_was(
  run: pathlib.Path,
  what: str,
  there: Sequence[pathlib.Path],
  here: Sequence[pathlib.Path],
  digests: Sequence[str],
  changed: list[str],
) -> tuple[pathlib.Path, ...]:
  """The folders with these digests, there or here; notes the others."""
  taken = []
  others = here if len(here) == len(there) else there
  for place, other, digest in zip(there, others, digests, strict=True):
    # Of a stage it may be of the one before, and both may have been moved.
    beside = run.parent.joinpath(*place.parts[-2:])
    known = dict.fromkeys((place, other, beside))
    found = [path for path in known if path.exists()]
    if not found:
      raise errors.UserError(
        f'{place} ({what} of the run) is not there any more. Put it back.'
      )
    same = [path for path in found if fingerprint(path) == digest]
    if not same:
      changed.append(f'{found[0]} ({what}) has changed since the run began')
    taken.append((same or found)[0])
  return tuple(taken)
