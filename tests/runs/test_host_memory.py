"""Populations in the memory of the host: the last of several CPU devices."""

import types

import jax
import numpy as np
import pytest

from evojax_llm import systems
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.population import hosts
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import evolution
from evojax_llm.runs import host_memory
from evojax_llm.runs import preparation
from tests import tiny
from tests.experiments import runs


def places(tree):
  return {d for leaf in jax.tree.leaves(tree) for d in leaf.sharding.device_set}


def test_members_in_host_memory_are_those_on_the_devices(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path, capsys
):
  config = systems.load('m2n2')
  config.model = str(tiny_gemma_folder('gemma2'))
  config.adapters = ','.join(
    map(str, tiny_adapter_folders(3, modules=tiny.FEW_MODULES))
  )
  config.tasks = str(runs.write_task(tmp_path / 'a.json', dev=6, test=2))
  config.space, config.execution.population = 'weights', 'host'
  config.strategy.population, config.strategy.options.archive = 3, 4
  prepared = preparation.prepare(config)
  plan = prepared.evaluator.plan
  assert plan.on_host and 'in the memory of the host' in capsys.readouterr().err
  assert plan.population > 7 * plan.base and plan.fixed < 4 * plan.base
  host = jax.devices()[-1]
  assert prepared.host == host
  evaluator, space = prepared.evaluator, prepared.setup.space
  states = []
  for device in (host, jax.devices()[0]):
    population = prepared.initial().population
    assert places(population) == {host}
    search = evolution.evolve(
      prepared.strategy,
      space,
      lambda *members: evaluator.evaluate(space, *members),
      population=jax.device_put(population, device),
      params=prepared.params,
      generations=3,
    )
    *_, (state, _) = search
    assert places(state.strategy.population) == {device}
    states.append(state)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(3, states[0])
  checkpoints.close()
  _, restored = checkpoints.restore(prepared.abstract)
  assert places(restored) == {host}
  for other in (states[1], restored):
    jax.tree.map(np.testing.assert_array_equal, states[0], other)


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


@pytest.mark.parametrize(
  ('choice', 'platform', 'devices', 'several', 'expected'),
  [
    ('auto', 'gpu', 4, False, True),
    ('auto', 'gpu', 1, False, False),
    ('auto', 'cpu', 4, False, False),
    ('auto', 'gpu', 4, True, False),
    ('cut', 'cpu', 4, False, True),
    ('device', 'gpu', 4, False, False),
  ],
)
def test_where_genomes_are_cut(
  monkeypatch, choice, platform, devices, several, expected
):
  monkeypatch.setattr(hosts, 'several', lambda: several)
  space = types.SimpleNamespace(held=None, streams=False)
  assert host_memory.is_cut(choice, platform, devices, space) == expected
