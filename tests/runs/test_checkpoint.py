"""Checkpoints that are there, damaged, of another run, or locked."""

import asyncio
import gc
import itertools
import pathlib
import shutil
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.runs import checkpoint


@flax.struct.dataclass
class State:
  population: dict
  generation: jax.Array


def make_state(generation=0):
  key = jax.random.fold_in(jax.random.key(0), generation)
  return State(
    population={
      'a': jax.random.normal(key, (3, 40, 50)),
      'half': jax.random.normal(key, (3, 7)).astype(jnp.bfloat16),
      'failed': jnp.full((3,), jnp.nan),
      'alive': jnp.array([True, False, True]),
    },
    generation=jnp.int32(generation),
  )


def save(folder, generations):
  checkpoints = checkpoint.Checkpoints(folder)
  for g in range(generations):
    checkpoints.save(g, make_state(g))
  checkpoints.close()


def restore(folder, like=None):
  abstract = jax.eval_shape(lambda: make_state()) if like is None else like
  return checkpoint.Checkpoints(folder).restore(abstract)


def assert_state(state, generation):
  expected = make_state(generation)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert restore(tmp_path / 'none') is None


def test_every_save_is_made_and_the_two_newest_are_kept(tmp_path):
  save(tmp_path / 'c', 5)
  assert checkpoint.Checkpoints(tmp_path / 'c').generations() == [3, 4]
  generation, state = restore(tmp_path / 'c')
  assert generation == 4
  assert_state(state, 4)


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save('c', 1)
  assert restore('c')[0] == 0


def _data_file(folder):
  files = (f for f in (folder / 'state').rglob('*') if f.parent.name == 'd')
  return max(files, key=lambda file: file.stat().st_size)


def _truncate_data(folder):
  file = _data_file(folder)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_data(folder):
  file = _data_file(folder)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 0x55
  file.write_bytes(bytes(data))


def _truncate_metadata(folder):
  file = folder / 'state' / '_METADATA'
  file.write_bytes(file.read_bytes()[:100])


def _lose_manifest(folder):
  (folder / 'state' / 'manifest.ocdbt').unlink()


def _lose_checksums(folder):
  (folder / '_CHECKPOINT_METADATA').unlink()


def _lose_all(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGES = (
  _truncate_data,
  _flip_data,
  _truncate_metadata,
  _lose_manifest,
  _lose_checksums,
  _lose_all,
)


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
  """(folder by damage, what the process that restored them all wrote).

  Orbax leaves threads with closed event loops behind when it meets damage, so
  that the restoring is done in a process of its own.
  """
  folders = {}
  for damage in DAMAGES:
    folder = tmp_path_factory.mktemp('run') / 'c'
    save(folder, 3)
    damage(folder / '2')
    folders[damage] = folder
  code = (
    'import sys\n'
    'from tests.runs import test_checkpoint as t\n'
    'for folder in sys.argv[1:]:\n'
    '  generation, state = t.restore(folder)\n'
    '  t.assert_state(state, generation)\n'
    '  print(generation)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, folders.values())],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return folders, done


def test_a_damaged_newest_gives_way_to_the_one_before(damaged):
  _, done = damaged
  assert done.stdout.split() == ['1'] * len(DAMAGES)
  assert done.stderr.count('generation 2 is damaged') == len(DAMAGES)


def test_the_damaged_one_is_kept_aside_and_can_be_saved_again(damaged):
  for folder in damaged[0].values():
    assert (folder.parent / 'damaged_checkpoint_2').is_dir()
    checkpoints = checkpoint.Checkpoints(folder)
    assert checkpoints.generations() == [1]
    checkpoints.save(2, make_state(2))
    checkpoints.close()
    assert restore(folder)[0] == 2


def test_reads_that_were_under_way_are_not_reported(tmp_path, monkeypatch):
  serialization = pytest.importorskip(
    'orbax.checkpoint._src.serialization.serialization'
  )
  tensorstore = pytest.importorskip('tensorstore')
  save(tmp_path / 'c', 2)
  read, reads = serialization._read_shard, itertools.count()
  late, of_native_code = tensorstore.Promise.new()

  async def read_shard(*args, **kwargs):
    number = next(reads)
    if number == 2:
      raise OSError('damaged')
    if number == 1:
      await of_native_code
    if number == 0:
      await asyncio.sleep(60)
    return await read(*args, **kwargs)

  monkeypatch.setattr(serialization, '_read_shard', read_shard)
  reported = []
  monkeypatch.setattr(sys, 'unraisablehook', reported.append)
  generation, _ = restore(tmp_path / 'c')
  assert generation == 0
  late.set_result(None)
  gc.collect()
  assert not reported

  class Other:
    def __del__(self):
      raise ValueError('still reported')

  Other()
  assert len(reported) == 1


def test_nothing_readable_is_an_error(tmp_path):
  folder = tmp_path / 'run' / 'c'
  save(folder, 2)
  for generation in ('0', '1'):
    _lose_all(folder / generation)
  with pytest.raises(checkpoint.CheckpointError, match='None of the'):
    restore(folder)


def test_a_state_of_another_shape_is_refused_by_name(tmp_path):
  save(tmp_path / 'c', 1)
  other = make_state()
  other.population['a'] = jnp.zeros((3, 40, 51))
  del other.population['half']
  other.population['new'] = jnp.zeros(2)
  with pytest.raises(checkpoint.CheckpointError) as error:
    restore(tmp_path / 'c', other)
  message = str(error.value)
  assert 'population/a: float32[3, 40, 50] stored' in message
  assert 'population/half: in the checkpoint, not in this run' in message
  assert 'population/new: not in the checkpoint' in message
  assert checkpoint.Checkpoints(tmp_path / 'c').generations() == [0]


def test_reading_needs_no_knowledge_of_the_state(tmp_path):
  save(tmp_path / 'c', 2)
  generation, state = checkpoint.Checkpoints(tmp_path / 'c').read()
  assert generation == 1
  expected = make_state(1).population['a']
  np.testing.assert_array_equal(state['population']['a'], expected)
  with pytest.raises(checkpoint.CheckpointError, match='no readable'):
    checkpoint.Checkpoints(tmp_path / 'none').read()


def test_leaves_of_size_zero_are_refused_by_name(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='nothing'):
    checkpoint.Checkpoints(tmp_path / 'c').save(0, {'nothing': jnp.zeros(0)})


def test_buffers_may_be_given_up_after_save(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  state = make_state(1)
  step = jax.jit(
    lambda s: jax.tree.map(lambda x: x * jnp.zeros_like(x), s), donate_argnums=0
  )
  checkpoints.save(1, state)
  step(state)
  checkpoints.close()
  assert_state(restore(tmp_path / 'c')[1], 1)


def test_what_a_killed_save_left_is_cleaned_up(tmp_path):
  folder = tmp_path / 'c'
  save(folder, 2)
  (folder / '1').rename(folder / '2.orbax-checkpoint-tmp')
  assert restore(folder)[0] == 0
  checkpoints = checkpoint.Checkpoints(folder)
  checkpoints.save(1, make_state(1))
  checkpoints.close()
  assert not list(folder.glob('*tmp*'))


def test_a_disk_that_cannot_be_written_is_an_error_that_loses_nothing(tmp_path):
  folder = tmp_path / 'c'
  save(folder, 1)
  # A limit on the size of files is the full disk that needs no disk.
  code = (
    'import resource, signal, sys\n'
    'from evojax_llm.runs import checkpoint\n'
    'from tests.runs import test_checkpoint as t\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n'
    'checkpoints = checkpoint.Checkpoints(sys.argv[1])\n'
    'try:\n'
    '  checkpoints.save(1, t.make_state(1))\n'
    '  checkpoints.close()\n'
    'except OSError as error:\n'
    '  print(error)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(folder)],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == f"[Errno 27] File too large: '{folder}'\n"
  assert 'Traceback' not in done.stderr
  generation, state = restore(folder)
  assert generation == 0
  assert_state(state, 0)


def test_a_second_process_is_kept_out(tmp_path):
  lock = checkpoint.WorkdirLock(tmp_path)
  code = (
    'import sys\n'
    'from evojax_llm.runs import checkpoint\n'
    'try:\n'
    '  checkpoint.WorkdirLock(sys.argv[1])\n'
    'except checkpoint.CheckpointError as error:\n'
    '  print(error)\n'
  )

  refused = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert 'Another process (pid' in refused
  lock.release()
  checkpoint.WorkdirLock(tmp_path).release()
