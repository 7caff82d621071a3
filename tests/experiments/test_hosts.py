"""Several processes that work on one run, as on several hosts."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import types

import pytest

from evojax_llm.commands import command
from evojax_llm.population import hosts
from evojax_llm.runs.errors import UserError
from tests.experiments import running
from tests.experiments import runs

# The second process dies at the end of generation 1.
_DIES = """
import os, signal, sys
from evojax_llm.commands import command, evolve
from evojax_llm.runs import evolution, fine_tuning
fine_tuning.wanted = lambda config: False
generation = evolution._Loop._generation

def dies(self, state, *rest):
  if int(state.generation) == 1 and '--process=1' in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
  return generation(self, state, *rest)

evolution._Loop._generation = dies
command.launch(evolve.main)
"""
# What a run does with other hosts, without a model.
_SHARED = """
import pathlib, sys
import jax, numpy as np
from evojax_llm.population import hosts, sharding
from evojax_llm.runs.checkpoint import Checkpoints
address, _, number, folder = (x.rpartition('=')[2] for x in sys.argv[1:])
with hosts.joined(address, 2, int(number)):
  me = hosts.agreed(int(number)), hosts.gathered(int(number))
  assert me == (0, [0, 1]), me
  own = hosts.own_workdir(folder)
  assert (own == pathlib.Path(folder)) == hosts.is_first()
  where = sharding.population_sharding(sharding.population_mesh())
  cut = sharding.place(np.arange(8.0, dtype='f4'), where)
  assert len(cut.addressable_shards) == 2
  np.testing.assert_array_equal(sharding.to_host(cut), np.arange(8.0))
  state = {'all': jax.numpy.arange(3)}
  checkpoints = Checkpoints(hosts.shared(own / 'checkpoints'))
  checkpoints.save(0, state)
  checkpoints.close()
  number, again = checkpoints.restore(state)
  assert number == 0 and again['all'].is_fully_addressable
  np.testing.assert_array_equal(again['all'], state['all'])
  print(f'host {jax.process_index()} is there', file=sys.stderr)
"""


def _two(program, *arguments):
  """Exit codes and standard errors of two processes of two devices each."""
  with socket.create_server(('localhost', 0)) as free:
    address = f'localhost:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', program, f'--coordinator={address}'),
        *('--processes=2', f'--process={number}', *map(str, arguments)),
      ],
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
      cwd=runs.ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  said = [host.communicate(timeout=120)[1] for host in processes]
  return [host.returncode for host in processes], said


def test_a_host_dies_and_the_run_ends_as_on_one_host(
  finished, settings, tmp_path, capsys
):
  first = tmp_path / 'run'
  given = f'--config={runs.GENOME}', *settings, f'--workdir={first}'
  codes, said = _two(_DIES, *given)
  assert codes == [1, -9], said
  assert 'error: host 1 is gone' in said[0] and 'Traceback' not in said[0]
  # The others are silent.
  assert not [x for x in said[1].splitlines() if not x.startswith('[Gloo]')]
  assert runs.evolve(settings, first) is None
  assert 'going on after generation 0' in capsys.readouterr().err
  assert runs.result(first) == runs.result(finished[0])


def test_hosts_share_arrays_decisions_and_checkpoints(tmp_path):
  codes, said = _two(_SHARED, tmp_path / 'run')
  assert codes == [0, 0], said
  assert 'host 0 is there' in said[0] and 'host 1' not in said[1]


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('--processes=2', 'without --coordinator=HOST:PORT'),
    ('--coordinator=host0', 'Got --coordinator=host0; expected HOST:PORT'),
    (
      '--coordinator=host0:1 --processes=2 --process=2',
      'Got --process=2 of --processes=2; expected 0 to 1',
    ),
    ('--config.seeds=2', 'expected 1. Leave out --config.seeds, or'),
    (
      '--config.execution.population=cut',
      'Leave out --config.execution.population, or --coordinator to search',
    ),
  ],
)
def test_what_hosts_cannot_do_is_refused(monkeypatch, capsys, given, message):
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'gathered', lambda value: [value, value])
  assert running.run_program('evolve', *given.split()) == 1
  said = capsys.readouterr().err
  assert said.startswith('error: ') and message in said


def test_hosts_that_differ_are_refused(monkeypatch, tmp_path):
  file, name = tmp_path / 'task.json', 'main'
  file.write_text('{}')
  monkeypatch.setattr(hosts, 'several', lambda: True)
  for key, message in (
    ('settings', 'Host 1 has other settings than this one. Give the same'),
    ('code', 'Host 1 has other code than this one. Install the same'),
    (str(file), f'other contents of {file} than this one. Copy the same'),
    (None, ''),
  ):
    monkeypatch.setattr(
      hosts,
      'gathered',
      lambda own, key=key: [own, {**own, key: 'other'} if key else own],
    )
    if key is None:
      command.check_same({'seed': 1}, [file, name])
      continue
    with pytest.raises(UserError) as error:
      command.check_same({'seed': 1}, [file, name])
    assert message in str(error.value)
  with pytest.raises(UserError, match='Score it on one host, without --coord'):
    command.check_hosts([types.SimpleNamespace(name='a', kind='judge')])


def test_score_compares_all_that_it_is_given(
  settings, monkeypatch, tmp_path, capsys
):
  model, adapters, tasks = (flag.partition('=')[2] for flag in settings[1:4])
  adapter, task = adapters.split(',')[0], tmp_path / 'task.json'
  shutil.copyfile(tasks.split(',')[0], task)
  others, own = [], []

  def gathered(value):
    own.append(value)
    return [*others, value]

  def compared(_):
    raise UserError('compared')

  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'gathered', gathered)
  monkeypatch.setattr(command, 'joined', contextlib.nullcontext)
  monkeypatch.setattr(command, 'check_hosts', compared)

  def said(*more):
    files = f'--model={model}', f'--adapters={adapter}', f'--tasks={task}'
    assert running.run_program('score', *files, '--limit=2', *more) == 1
    return capsys.readouterr().err.splitlines()[-1]

  assert said('--process=0') == 'error: compared'
  assert own[0].keys() == {'settings', 'code', model, adapter, str(task)}
  others.append(own[0])
  # Hosts differ in their numbers.
  assert said('--process=1') == 'error: compared'
  for more in ('--limit=3', '--split=test', '--dtype=bfloat16', '--shots=1'):
    assert 'Host 0 has other settings than this one' in said(more)
  task.write_text(task.read_text() + '\n')
  assert f'Host 0 has other contents of {task} than this one' in said()
