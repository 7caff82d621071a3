"""Several hosts that work on one run: processes that all do the same.

Each runs the same command on the same inputs and comes to the same numbers:
what devices return is gathered (`sharding.to_host`), and the first host decides
what differs from one to the other, such as a clock (`agreed`). The first one
writes the run folder. The others write a copy that is deleted at the end, but
for checkpoints, of which each host writes what it holds (`shared`).

Every host says that it lives. One that ends, or falls silent, ends the others:
they would wait for it for ever.
"""

from collections.abc import Iterator
import contextlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time
from typing import Any

import jax

# Seconds between signs of life, and of silence after which a host is lost.
_BEAT, _SILENCE = 1.0, 30.0
# Of waiting for another host, which ends before if that one is lost.
_EVER = 7 * 24 * 3600 * 1000
_NAME = 'evojax_llm'


class HostError(ValueError):
  """Hosts that cannot work together."""


class _Joined:
  """What this host knows of the others."""

  def __init__(self, advice: str):
    # What jax itself, and libraries such as orbax, talk to each other through.
    from jax._src import distributed

    self.client = distributed.global_state.client
    self._address = distributed.global_state.coordinator_address
    self.index, self.count = jax.process_index(), jax.process_count()
    self.numbers = itertools.count()
    self.folders: tuple[pathlib.Path, pathlib.Path] | None = None
    self.stop, self._advice = threading.Event(), advice
    self._stderr = sys.stderr
    self.watch = threading.Thread(target=self._watch, daemon=True)
    self.watch.start()
    # Closed by the system when a process dies, and so known at once.
    self._links: list[socket.socket] = []
    with contextlib.suppress(OSError):  # Signs of life tell, but later.
      self._link()

  def say(self, what: str) -> None:
    """Tells the others: a sign of life, or why this host ends."""
    self.client.key_value_set(
      f'{_NAME}/life/{self.index}', what, allow_overwrite=True
    )

  def _link(self) -> None:
    """Connects the first host with each of the others."""
    key = f'{_NAME}/port'
    if self.index:
      port = int(self.client.blocking_key_value_get(key, _EVER))
      host = self._address.rpartition(':')[0].strip('[]')
      link = socket.create_connection((host, port), timeout=10)
      link.settimeout(None)
      link.sendall(self.index.to_bytes(4))
      self._hold(link, 0)
      return
    server = socket.create_server(('', 0), backlog=self.count)
    self.client.key_value_set(key, str(server.getsockname()[1]))

    def accept():
      for _ in range(1, self.count):
        link, _ = server.accept()
        self._hold(link, int.from_bytes(link.recv(4)))

    threading.Thread(target=accept, daemon=True).start()

  def _hold(self, link: socket.socket, host: int) -> None:
    self._links.append(link)

    def wait():
      with contextlib.suppress(OSError):
        if link.recv(1):  # It leaves as agreed.
          return
      self._end(f'host {host} is gone')

    threading.Thread(target=wait, daemon=True).start()

  def leave(self) -> None:
    """Waits for the others, and leaves; the first one last."""
    self.client.wait_at_barrier(f'{_NAME}/end', _EVER)
    self.stop.set()
    for link in self._links:
      with contextlib.suppress(OSError):
        link.sendall(b'.')
    self.watch.join()
    every, end = list(range(self.count)), time.monotonic() + 10 * _BEAT
    while not self.index and time.monotonic() < end:
      if len(self.client.get_live_nodes(every)) == 1:
        break
      time.sleep(0.1)
    jax.distributed.shutdown()

  def _watch(self) -> None:
    seen = dict.fromkeys(map(str, range(self.count)), ('', time.monotonic()))
    answered = time.monotonic()
    for beat in itertools.count():
      try:
        self.say(f'beat {beat}')
        said = self.client.key_value_dir_get(f'{_NAME}/life/')
        answered = time.monotonic()
      except jax.errors.JaxRuntimeError:
        # The first host, which all talk through.
        if time.monotonic() - answered > 5 * _BEAT:
          self._end('host 0 is gone')
      else:
        for key, what in said:
          host = key.rpartition('/')[2]
          if what.startswith('ended'):
            self._end(f'host {host} {what}')
          if what != seen[host][0]:
            seen[host] = what, time.monotonic()
        for host, (_, when) in seen.items():
          if time.monotonic() - when > _SILENCE:
            self._end(f'host {host} has not answered for {_SILENCE:.0f} s')
      if self.stop.wait(_BEAT):
        return

  def _end(self, why: str) -> None:
    if self.stop.is_set():
      return
    self.stop.set()
    print(f'error: {why}. {self._advice}', file=self._stderr, flush=True)
    if not self.index:  # The others hear it while the first host lives.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self.say(f'ended: {why}')
      time.sleep(2 * _BEAT)
    if self.folders:
      shutil.rmtree(self.folders[0], ignore_errors=True)
    os._exit(1)


_joined: _Joined | None = None


@contextlib.contextmanager
def joined(
  coordinator: str | None,
  processes: int | None,
  process: int | None,
  advice: str = '',
) -> Iterator[None]:
  """Has this process work with those of other hosts while the block runs.

  All but the first are silent, unless something goes wrong. Where the block
  raises, the other hosts are told, and end.

  Args:
    coordinator: 'host:port' of the first, 'auto' where a cluster tells (Slurm,
      Kubernetes, Open MPI, TPU pods), or None to work alone.
    processes: how many there are; None to ask the cluster.
    process: number of this one; likewise.
    advice: what to do when a host is lost.

  Raises:
    HostError: the others are not there.
  """
  global _joined
  if coordinator is None:
    yield
    return
  # Otherwise the runtime aborts the process when a host is lost, before it
  # could say anything.
  jax.config.update('jax_enable_recoverability', True)
  try:
    jax.distributed.initialize(
      None if coordinator == 'auto' else coordinator, processes, process
    )
  except (RuntimeError, ValueError) as error:
    said = ' '.join(str(error).split())[:300]
    raise HostError(
      f'Got coordinator {coordinator}, processes {processes} and process '
      f'{process}, with which no hosts are found: {said} Give the same address '
      'of the first host on each of them, and processes from 0.'
    ) from error
  _joined = _Joined(advice)
  try:
    with contextlib.ExitStack() as stack:
      if _joined.index:
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        nowhere = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
      yield
    _joined.leave()
  except BaseException as error:
    if isinstance(error, jax.errors.JaxRuntimeError):
      time.sleep(_SILENCE)  # By then it is known which host was lost.
    _joined.stop.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      said = ' '.join(str(error).split())[:300] or type(error).__name__
      _joined.say(f'ended: {said}')
    time.sleep(3 * _BEAT)  # The first host is heard while it lives.
    raise
  finally:
    if _joined.folders:
      shutil.rmtree(_joined.folders[0], ignore_errors=True)


def several() -> bool:
  """Returns whether there are other hosts."""
  return _joined is not None and _joined.count > 1


def agreed(value: Any) -> Any:
  """Returns the first host's value, of JSON types; all must call it."""
  if not several():
    return value
  key = f'{_NAME}/agreed/{next(_joined.numbers)}'
  if not _joined.index:
    _joined.client.key_value_set(key, json.dumps(value))
    return value
  return json.loads(_joined.client.blocking_key_value_get(key, _EVER))


def gathered(value: Any) -> list[Any]:
  """Returns the values of all hosts, of JSON types; all must call it."""
  if not several():
    return [value]
  key = f'{_NAME}/gathered/{next(_joined.numbers)}'
  _joined.client.key_value_set(f'{key}/{_joined.index}', json.dumps(value))
  return [
    json.loads(_joined.client.blocking_key_value_get(f'{key}/{i}', _EVER))
    for i in range(_joined.count)
  ]


def own_workdir(path: str | os.PathLike) -> pathlib.Path:
  """Returns the folder in which this host writes a run.

  The first one's is `path`, of which the others begin with a copy.

  Raises:
    HostError: the folder is not the same on all hosts.
  """
  if not several():
    return pathlib.Path(path)
  path = pathlib.Path(agreed(os.path.abspath(path)))
  mark = path / f'.hosts_{agreed(os.urandom(8).hex())}'
  if not _joined.index:
    path.mkdir(parents=True, exist_ok=True)
    mark.touch()
  gathered(None)
  there = gathered(_appears(mark))
  if not _joined.index:
    mark.unlink()
  if not all(there):
    raise HostError(
      f'{path} is not the same folder on all hosts: host {there.index(False)} '
      'does not see what host 0 writes. Name a --workdir on a file system that '
      'all of them share.'
    )
  if _joined.index:
    own = pathlib.Path(tempfile.mkdtemp(prefix='evojax_llm_host_'))
    _joined.folders = own, path

    def copy(source, target):
      link = str(source).endswith('.safetensors')
      (os.symlink if link else shutil.copy)(source, target)

    left_out = shutil.ignore_patterns('checkpoints', 'lock', mark.name)
    shutil.copytree(
      path, own, copy_function=copy, ignore=left_out, dirs_exist_ok=True
    )
  gathered(None)
  return _joined.folders[0] if _joined.index else path


def _appears(path: pathlib.Path) -> bool:
  """Whether a file is seen soon: other hosts' views may be seconds old."""
  end = time.monotonic() + 10
  while not path.exists() and time.monotonic() < end:
    time.sleep(0.2)
  return path.exists()


def shared(path: pathlib.Path) -> pathlib.Path:
  """Returns where the first host has a path of its run."""
  if _joined is None or _joined.folders is None:
    return path
  own, first = _joined.folders
  return first / path.relative_to(own)


def is_first() -> bool:
  """Returns whether this host writes what is kept."""
  return _joined is None or not _joined.index


def copies() -> jax.sharding.Sharding:
  """Returns the sharding of arrays of which each host holds a copy."""
  own = {device.process_index: device for device in reversed(jax.devices())}
  devices = [own[i] for i in sorted(own)]
  mesh = jax.sharding.Mesh(devices, ('hosts',))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
