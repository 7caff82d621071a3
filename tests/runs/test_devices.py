"""Searches that go on with other devices than they began with."""

import re

import jax
import numpy as np

from evojax_llm import systems
from evojax_llm.runs import checkpoint
from evojax_llm.runs import evolution
from evojax_llm.runs import host_memory
from evojax_llm.runs import preparation
from tests import tiny
from tests.experiments import runs


def test_a_search_goes_on_with_other_devices(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path, monkeypatch
):
  config = systems.load('genome')
  config.model = str(tiny_gemma_folder('gemma2'))
  folders = tiny_adapter_folders(3, modules=tiny.FEW_MODULES)
  config.adapters = ','.join(map(str, folders))
  config.tasks = str(runs.write_task(tmp_path / 'a.json', dev=8, test=2))
  config.execution.population = 'cut'
  monkeypatch.setattr(host_memory, 'candidates', lambda _: [None])
  # No multiple of the devices.
  config.strategy.population = 5

  def search(folder, devices, generations):
    """What each generation did, from where the folder's last one ended."""
    monkeypatch.setattr(
      host_memory, 'engine_devices', lambda _: jax.devices()[:devices]
    )
    prepared = preparation.prepare(config)
    assert (prepared.mesh is not None) == (devices > 1)
    checkpoints = checkpoint.Checkpoints(folder)
    restored = checkpoints.restore(prepared.abstract)
    found = []
    for state, generation in evolution.evolve(
      prepared.strategy,
      prepared.setup.space,
      lambda *members: prepared.evaluator.evaluate(
        prepared.setup.space, *members
      ),
      population=None if restored else prepared.initial().population,
      state=restored and restored[1],
      params=prepared.params,
      generations=generations,
    ):
      leaf = jax.tree.leaves(state.strategy.population)[0]
      assert len(leaf.sharding.device_set) == devices
      part = leaf.sharding.shard_shape(leaf.shape)
      assert np.prod(part) == leaf.size / devices
      checkpoints.save(generation.number, state)
      found.append(generation)
    checkpoints.close()
    if devices > 1:
      # Members are dealt out: no device gathers what it does not score.
      texts = [
        program.as_text()
        for name, program in prepared.evaluator.runtime.programs
        if name == 'express'
      ]
      assert texts and all(' all-to-all(' in text for text in texts)
      assert not any(re.search(r'f32\S* all-gather\(', text) for text in texts)
    return found

  straight = search(tmp_path / 'straight', 1, 3)
  parts = [
    generation
    for devices, generations in ((4, 1), (2, 2), (1, 3))
    for generation in search(tmp_path / 'parts', devices, generations)
  ]
  assert [one.number for one in parts] == [0, 1, 2, 3]
  assert any(one.ids for one in parts[1:])
  for one, other in zip(parts, straight, strict=True):
    assert (one.ids, one.parents) == (other.ids, other.parents)
    np.testing.assert_array_equal(one.fitness, other.fitness)
    assert one.best_id == other.best_id
    assert one.mean_fitness == other.mean_fitness
