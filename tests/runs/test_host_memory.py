"""Populations in the memory of the host: the last of several CPU devices."""

import types

import jax
import pytest

from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import host_memory
from tests.experiments import runs


class Killed(BaseException):
  pass


def test_members_in_host_memory_are_those_on_the_devices(
  settings, tmp_path, capsys, monkeypatch
):
  flags = ['--config=m2n2', *settings[1:4], '--config.space=weights']
  flags += [f'--config.strategy.{n}=3' for n in ('population', 'generations')]
  flags += ['--config.strategy.options.archive=5', '--config.ensemble.size=2']
  flags += ['--config.checkpoint_every=2']
  host = '--config.execution.population=host'
  save, states = checkpoint.Checkpoints.save, []

  def fail(self, generation, state):
    states.append((generation, state))
    if len(states) == 2:
      raise Killed
    return save(self, generation, state)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', fail)
    with pytest.raises(Killed):
      runs.evolve(flags, tmp_path / 'host', host)
    said = capsys.readouterr()
    assert 'in the memory of the host' in said.out + said.err
    # From the checkpoint of generation 0, before the one that was killed.
    assert runs.evolve(flags, tmp_path / 'host', host) is None
  assert [generation for generation, _ in states] == [0, 2, 2, 3]
  for _, state in states[1:]:
    # Earlier ones are given up.
    where = {
      device
      for leaf in jax.tree.leaves(state.strategy.population)
      for device in leaf.sharding.device_set
      if not leaf.is_deleted()
    }
    assert where <= {jax.devices()[-1]}
  assert runs.evolve(flags, tmp_path / 'device') is None
  one, two = tmp_path / 'device', tmp_path / 'host'
  members = [(run / 'members.jsonl').read_text() for run in (one, two)]
  assert members[0] == members[1]
  assert runs.state(one) == runs.state(two)


def devices(*platforms):
  return [types.SimpleNamespace(platform=name) for name in platforms]


def test_where_a_population_may_be(monkeypatch):
  found, cpu = devices('cuda', 'cuda'), devices('cpu')
  monkeypatch.setattr(jax, 'devices', lambda: found)
  monkeypatch.setattr(jax, 'local_devices', lambda backend: cpu)
  assert host_memory.candidates('auto') == [None, cpu[0]]
  assert host_memory.candidates('device') == [None]
  assert host_memory.candidates('host') == cpu
  assert host_memory.engine_devices('host') is None

  def missing(backend):
    raise RuntimeError('no such backend')

  monkeypatch.setattr(jax, 'local_devices', missing)
  assert host_memory.candidates('auto') == [None]
  with pytest.raises(errors.UserError, match='JAX_PLATFORMS=cuda,cpu'):
    host_memory.candidates('host')
  found[:] = devices('cpu')
  assert host_memory.candidates('host') == [None]


def test_a_population_too_large_for_the_host_is_refused():
  device = jax.devices()[-1]
  host_memory.check(1 << 10, device)
  with pytest.raises(MemoryPlanError, match='as much again while a checkpoint'):
    host_memory.check(1 << 50, device)
