"""What may happen to a run, and that nothing is lost by it."""

import contextlib
import errno
import itertools
import os
import pathlib
import re
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from evojax_llm.fitness import item_log
from evojax_llm.models import folders
from evojax_llm.models import peft
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import plots
from evojax_llm.runs import progress
from evojax_llm.runs import record
from tests import tiny
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures('shared_reading')
# A run in a process of its own that ends, as a pulled plug would, while
# generation 2 is being saved.
_DYING = """
import contextlib, os, sys
from experiments import evolve
from evojax_llm.commands import command
from evojax_llm.runs import fine_tuning, progress

# As in the tests: the run beside which it stands has no such row.
fine_tuning.wanted = lambda config: False

phase, left = progress.Stopwatch.phase, 2

@contextlib.contextmanager
def dying(self, name):
  global left
  with phase(self, name):
    yield
  left -= name == 'checkpoint'
  if not left:
    os._exit(9)

progress.Stopwatch.phase = dying
command.run(evolve.main, sys.argv)
"""


class Killed(BaseException):
  pass


def _killed_after(monkeypatch, part, left):
  """Runs of this process end behind the n-th part of a name."""
  phase = progress.Stopwatch.phase

  @contextlib.contextmanager
  def dying(self, name):
    nonlocal left
    with phase(self, name):
      yield
    left -= name == part
    if not left:
      raise Killed

  monkeypatch.setattr(progress.Stopwatch, 'phase', dying)


def test_killed_in_every_phase_and_damaged_a_run_ends_the_same(
  finished, settings, tmp_path, monkeypatch, capsys, caplog
):
  folder = tmp_path / 'run'
  for part, count in (
    ('operators', 2),  # generation 1 was asked for, not scored
    ('score', 1),  # scored, not told
    ('operators', 2),  # told, neither written nor saved
  ):
    with monkeypatch.context() as patch, pytest.raises(Killed):
      _killed_after(patch, part, count)
      runs.evolve(settings, folder)
  killed = subprocess.run(
    [sys.executable, '-c', _DYING, *settings, f'--workdir={folder}'],
    cwd=runs.ROOT,
    # As many as here, so that it finds what is compiled.
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(jax.device_count())},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert killed.returncode == 9, killed.stderr
  assert not (folder / 'summary.json').exists()
  *_, before, newest = checkpoint.Checkpoints(
    folder / 'checkpoints'
  ).generations()
  files = (folder / 'checkpoints' / str(newest) / 'state').rglob('d/*')
  max(files, key=lambda f: f.stat().st_size).write_bytes(b'nothing')
  assert runs.evolve(settings, folder) is None
  assert f'generation {newest} is damaged' in caplog.text
  assert f'going on after generation {before}' in capsys.readouterr().err
  assert runs.result(folder) == runs.result(finished[0])


_FAULTS = itertools.cycle((errno.ENOSPC, errno.EIO))


def _full(path):
  """Takes half of what is written, as a disk does that fills up or fails."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a', encoding='utf-8') as file:
    file.write('{"generation": 1, "id"')
  code = next(_FAULTS)
  raise OSError(code, os.strerror(code), str(path))


def _full_checkpoint(self, generation, state):
  _full(self.folder / f'{generation}.orbax-checkpoint-tmp' / 'state')


def _full_items(folder):
  append = item_log.ItemLog.append

  def fail(self, number, *rest):
    if self.folder.name == folder:
      _full(self.folder / f'{number:05}.part')
    append(self, number, *rest)

  return fail


def test_with_a_full_disk_at_every_write_a_run_ends_the_same(
  finished, settings, tmp_path, monkeypatch, capsys
):
  folder = tmp_path / 'run'

  def write_text(path, text):
    _full(path.with_name(path.name + '.part'))

  for owner, name, fail in (
    (record, 'write_json', lambda path, value: write_text(path, '')),
    (item_log.ItemLog, 'append', _full_items('baseline_items')),
    (item_log.ItemLog, 'append', _full_items('items')),
    (record.JsonLines, 'append', lambda self, rows: _full(self.path)),
    (checkpoint.Checkpoints, 'save', _full_checkpoint),
    (peft, 'save_adapter', lambda folder, *_: _full(f'{folder}/adapter.json')),
    (item_log.ItemLog, 'append', _full_items('test_items')),
    (plots, 'curve', lambda path, *_: _full(f'{path}.part.png')),
    (record, 'write_text', write_text),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, fail)
      assert runs.evolve(settings, folder) == 1, name
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.match('error: (No space|Input/output error).* at ', message), name
    assert 'give the same command again' in message
    assert not (folder / 'summary.json').exists()
  assert runs.evolve(settings, folder) is None
  assert runs.result(folder) == runs.result(finished[0])


def test_a_full_disk_under_safetensors_is_an_error_of_the_system(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # A limit on the size of files is the full disk that needs no disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(OSError) as error, folders.new_folder(tmp_path / 'best'):
      part = next(tmp_path.iterdir()) / 'x.safetensors'
      safetensors_numpy.save_file({'x': np.zeros(10_000)}, part)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert errors.cannot_write(error.value)
  assert error.value.filename == str(tmp_path / 'best')
  assert not list(tmp_path.iterdir())


def test_a_population_of_another_size_is_refused_with_what_to_do(
  finished, settings, capsys
):
  before = runs.result(finished[0])
  for size in (4, 6):
    flag = f'--config.strategy.population={size}'
    assert runs.evolve(settings, finished[0], flag) == 1
    message = capsys.readouterr().err
    assert f'strategy.population: 5 there, {size} here' in message
    assert f'--config.warm_start={finished[0]}' in message
  assert runs.result(finished[0]) == before


@pytest.mark.parametrize('config', [runs.GENOME, runs.MODEL_SWARMS])
def test_one_expert_and_one_item(
  settings, tmp_path, tiny_adapter_folders, config
):
  task = runs.write_task(tmp_path / 'one.json', dev=1, test=1)
  code = runs.evolve(
    [f'--config={config}', *settings[1:]],
    tmp_path / 'run',
    f'--config.adapters={tiny_adapter_folders(1, modules=tiny.FEW_MODULES)[0]}',
    f'--config.tasks={task}',
    '--config.strategy.population=4',
    '--config.strategy.generations=2',
  )
  assert code is None
  summary = runs.summary(tmp_path / 'run')
  assert summary['failed'] == 0
  assert runs.row(summary)['test']['tasks']['one']['items'] == 1
  # A single item tells few members apart: all fitness is 0 or 1.
  members = runs.lines(tmp_path / 'run' / 'members.jsonl')
  assert {row['fitness'] for row in members} <= {0.0, 1.0}
