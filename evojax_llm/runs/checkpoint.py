"""Checkpoints of a run: one pytree, saved without stopping the loop.

The only file that knows orbax. The two newest are kept. A checkpoint is
complete or absent. What is read back is checked: shapes and dtypes before
anything is loaded, a checksum of every leaf after. A damaged newest checkpoint
gives way to the one before it, with a warning.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import socket
import sys
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from evojax_llm.population import hosts
from evojax_llm.population import sharding
from evojax_llm.runs.errors import CheckpointError
from evojax_llm.runs.errors import InUseError

_KEEP = 2


class Checkpoints:
  """The checkpoints `<folder>/<generation>` of one run."""

  def __init__(self, folder: str | os.PathLike):
    # Orbax refuses relative paths.
    self.folder = pathlib.Path(folder).absolute()
    self._checkpointer = None

  def generations(self) -> list[int]:
    """Generations with a committed checkpoint, oldest first."""
    if not self.folder.is_dir():
      return []
    names = (p.name for p in self.folder.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if name.isdigit())

  def restore(self, abstract: Any) -> tuple[int, Any] | None:
    """Reads the newest checkpoint that is not damaged; moves those away that
    are.

    Args:
      abstract: the state's pytree with `jax.ShapeDtypeStruct` leaves, whose
        sharding may say where they go, or arrays.

    Returns:
      (generation, state), or None without any checkpoint.

    Raises:
      CheckpointError: the state has other leaves, shapes or dtypes, or none of
        the checkpoints can be read.
    """
    generations = hosts.agreed(self.generations())
    for generation in reversed(generations):
      path, state, reason = self.folder / str(generation), None, ''
      try:
        state = _load(path, abstract)
      except CheckpointError:
        raise
      # Orbax and tensorstore report damage through many types, `Exception`
      # itself among them; whatever it was, the next older one is tried.
      except Exception as error:  # pylint: disable=broad-exception-caught
        reason = (str(error).splitlines() or [type(error).__name__])[0]
      reason = next(filter(None, hosts.gathered(reason)), '')
      if not reason:
        return generation, state
      aside = self.folder.parent / f'damaged_checkpoint_{generation}'
      if hosts.is_first():
        if aside.exists():
          shutil.rmtree(aside)
        os.replace(path, aside)
      logging.warning(
        f'The checkpoint of generation {generation} is damaged '
        f'({reason[:160]}). It was moved to {aside}; the one before it is used.'
      )
    if generations:
      raise CheckpointError(
        f'None of the checkpoints in {self.folder} can be read (generations '
        f'{generations}; they were moved to {self.folder.parent}). Start '
        'again in a new workdir.'
      )
    return None

  def drop(self, generation: int) -> None:
    """Deletes a checkpoint."""
    if hosts.is_first():
      shutil.rmtree(self.folder / str(generation))
    hosts.gathered(None)  # None goes on before it is gone.

  def read(self) -> tuple[int, dict[str, Any]]:
    """Reads the newest checkpoint as nested dicts, while the run may go on.

    Raises:
      CheckpointError: there is none, or none can be read.
    """
    generations = self.generations()
    for generation in reversed(generations):
      path = self.folder / str(generation)
      try:
        return generation, _load(path, ocp.metadata(path).metadata)
      except Exception as error:  # pylint: disable=broad-exception-caught
        logging.warning('Checkpoint %s cannot be read: %r', path, error)
    raise CheckpointError(
      f'There is no readable checkpoint in {self.folder} (of generations '
      f'{generations}). Is this the folder of a run that has begun?'
    )

  def save(self, generation: int, state: Any) -> None:
    """Saves `state` in the background, after what is still being saved.

    The arrays may be donated or deleted as soon as this returns.

    Raises:
      CheckpointError: the state has a leaf of size zero, which orbax cannot
        store.
      OSError: this checkpoint or the previous one could not be written.
    """
    if empty := [n for n, leaf in _named_leaves(state) if 0 in leaf.shape]:
      raise CheckpointError(
        f'Leaves of size zero cannot be stored: {empty}. Leave them out of '
        'the state or give them one element.'
      )
    with _errors_of_the_disk(self.folder):
      self._writer().save_async(
        generation,
        _known_to_all(state),
        force=True,
        overwrite=True,
        custom_metadata={'checksums': _checksums(state)},
      )

  def close(self) -> None:
    """Waits until everything is written; raises as `save`."""
    if self._checkpointer is not None:
      checkpointer, self._checkpointer = self._checkpointer, None
      with _errors_of_the_disk(self.folder):
        checkpointer.close()

  def _writer(self):
    if self._checkpointer is None:
      self.folder.mkdir(parents=True, exist_ok=True)
      # What its threads raise is raised again by `save` and `close`.
      logging.get_absl_logger().addFilter(_is_news)
      every = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
      self._checkpointer = ocp.training.Checkpointer(
        self.folder,
        save_decision_policy=every,
        preservation_policy=ocp.training.preservation_policies.LatestN(_KEEP),
        # What a killed process left half written.
        cleanup_tmp_directories=True,
      )
    return self._checkpointer


def _is_news(record: Any) -> bool:
  """Whether a log record is no error that orbax raises again later."""
  return not ('orbax' in record.pathname and record.exc_info)


@contextlib.contextmanager
def _errors_of_the_disk(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # pylint: disable=broad-exception-caught
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found is None:
      raise
    number = int(found[1])
    raise OSError(number, os.strerror(number), str(folder)) from error


def _do_not_report_abandoned_reads() -> None:
  """Takes what orbax left half read out of what Python reports.

  When one read fails, orbax closes its event loop over all the others. Python
  ends them whenever their memory is collected, and tensorstore tells the closed
  loop when a file has been read: each with an error that can only be printed,
  on the user's screen, minutes later. Other errors are reported as before.
  """
  report = sys.unraisablehook
  if getattr(report, 'skips_abandoned_reads', False):
    return

  def filtered(args):
    code = getattr(args.object, 'cr_code', None)
    abandoned = code is not None and 'orbax' in code.co_filename
    # Native code names no object.
    told_late = args.object is None and 'loop is closed' in str(args.exc_value)
    if not abandoned and not told_late:
      report(args)

  filtered.skips_abandoned_reads = True
  sys.unraisablehook = filtered


def _load(path: pathlib.Path, abstract: Any) -> Any:
  _do_not_report_abandoned_reads()  # A read may end before another has failed.
  stored = ocp.metadata(path)
  if not jax.tree.leaves(stored.metadata):
    raise OSError('its metadata cannot be read')
  _check_same_leaves(path, stored.metadata, abstract)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if hosts.several():
    here = hosts.copies()

  def placed(leaf):
    told = isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding
    where = told or here
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  state = ocp.load(path, jax.tree.map(placed, abstract))
  if hosts.several():
    state = jax.tree.map(
      lambda leaf: leaf.addressable_data(0) if leaf.sharding == here else leaf,
      state,
    )
  if (stored.custom_metadata or {}).get('checksums') != _checksums(state):
    raise OSError('the values do not have the checksums they were saved with')
  return state


def _known_to_all(state: Any) -> Any:
  """What each of several hosts holds, as copies of the same arrays."""
  if not hosts.several():
    return state
  return jax.tree.map(
    lambda leaf: (
      sharding.place(leaf, hosts.copies())
      if leaf.is_fully_addressable
      else leaf
    ),
    state,
  )


def _check_same_leaves(path: pathlib.Path, stored: Any, abstract: Any) -> None:
  """Refuses other leaves, shapes or dtypes, which orbax reports badly."""
  have, want = (
    {
      name: f'{jnp.dtype(leaf.dtype)}{list(leaf.shape)}'
      for name, leaf in _named_leaves(tree)
    }
    for tree in (stored, abstract)
  )
  wrong = [
    f'{name}: not in the checkpoint'
    if name not in have
    else f'{name}: in the checkpoint, not in this run'
    if name not in want
    else f'{name}: {have[name]} stored, {want[name]} expected'
    for name in sorted(have.keys() | want.keys())
    if have.get(name) != want.get(name)
  ]
  if wrong:
    shown = '\n  '.join(wrong[:8] + (['...'] if len(wrong) > 8 else []))
    raise CheckpointError(
      f'The checkpoint {path} is of another run:\n  {shown}\n'
      'Use the command that started that run, or another workdir.'
    )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """('strategy/population/...', leaf): the same for a dict and a dataclass."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  ]


def _checksums(state: Any) -> dict[str, int]:
  """A number for each leaf, by name, computed where the leaf lives."""
  sums = sharding.to_host(_checksum_all(dict(_named_leaves(state))))
  return {name: int(value) for name, value in sums.items()}


@jax.jit
def _checksum_all(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return jax.tree.map(_checksum, leaves)


def _checksum(leaf: jax.Array) -> jax.Array:
  """() u32: the elements' bits, each times an odd number of its position.

  A changed element always changes the sum, and swapped ones almost always do.
  Integer sums do not depend on sharding.
  """
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  bits = jnp.dtype(leaf.dtype).itemsize * 8
  unsigned = jnp.dtype(f'uint{bits}')
  words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
  position = jax.lax.iota(jnp.uint32, leaf.size).reshape(leaf.shape)
  odd = position * jnp.uint32(2654435762) + jnp.uint32(1)
  return jnp.sum(words * odd, dtype=jnp.uint32)


class WorkdirLock:
  """Keeps a second process out of a run folder, which is an `InUseError`."""

  def __init__(self, folder: str | os.PathLike):
    path = pathlib.Path(folder) / 'lock'
    self._file = open(path, 'a+', encoding='utf-8')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      self._file.seek(0)
      owner = self._file.read().strip() or 'unknown'
      self._file.close()
      raise InUseError(
        f'Another process ({owner}) is running in {folder}. Wait for it, stop '
        'it, or use another workdir.'
      ) from None
    self._file.truncate(0)
    self._file.write(f'pid {os.getpid()} on {socket.gethostname()}')
    self._file.flush()

  def release(self) -> None:
    """Lets other processes in."""
    self._file.close()
