"""Searches that go on with other devices than they began with."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from evojax_llm import systems
from evojax_llm.runs import checkpoint
from evojax_llm.runs import evolution
from evojax_llm.runs import host_memory
from evojax_llm.runs import preparation
from tests import tiny
from tests.experiments import runs
from tests.fitness import setting


def test_a_search_goes_on_with_other_devices(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path
):
  folders = tiny_adapter_folders(3, modules=tiny.FEW_MODULES)
  runs.write_task(tmp_path / 'a.json', dev=8, test=2)
  # More devices than the tests of this process have.
  found = subprocess.run(
    [
      *(sys.executable, '-m', __name__, tmp_path),
      *(tiny_gemma_folder('gemma2'), ','.join(map(str, folders))),
    ],
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '8'},
    cwd=runs.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert not found.returncode, found.stderr


def main(folder: str, model: str, adapters: str) -> None:
  """Compares searches on 1, 2 and 8 devices."""
  root, config = pathlib.Path(folder), systems.load('genome')
  config.model, config.adapters = model, adapters
  config.tasks = str(root / 'a.json')
  config.execution.population = 'cut'
  # No multiple of the devices.
  config.strategy.population = 5
  made = {}

  def prepared_for(devices):
    if devices not in made:
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_memory, 'candidates', lambda _: [None])
        patch.setattr(
          host_memory, 'engine_devices', lambda _: jax.devices()[:devices]
        )
        made[devices] = preparation.prepare(config)
    return made[devices]

  def search(name, devices, generations):
    """What each generation did, from where the folder's last one ended."""
    prepared, found = prepared_for(devices), []
    assert (prepared.mesh is not None) == (devices > 1)
    checkpoints = checkpoint.Checkpoints(root / name)
    restored = checkpoints.restore(prepared.abstract)

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
      found.append((generation, np.array(state.strategy.ids)))
    checkpoints.close()
    if devices > 1:
      # Members are dealt out: no device gathers what it does not score.
      express = [
        program.as_text()
        for name, program in prepared.evaluator.runtime.programs
        if name == 'express'
      ]
      assert express and all(' all-to-all(' in text for text in express)
      assert not any(re.search(r'f32\S* all-gather\(', x) for x in express)
    return found

  straight = search('straight', 1, 3)
  assert any(generation.ids for generation, _ in straight[1:])

  parts = [
    generation
    for devices, generations in ((2, 1), (8, 2), (1, 3))
    for generation in search('parts', devices, generations)
  ]
  assert len(straight) == 4
  for (one, survivors), (other, alive) in zip(parts, straight, strict=True):
    assert one.number == other.number
    assert (one.ids, one.parents) == (other.ids, other.parents)
    np.testing.assert_array_equal(survivors, alive)
    np.testing.assert_array_equal(one.fitness, other.fitness)
    assert one.best_id == other.best_id
    assert one.mean_fitness == other.mean_fitness
  # On 2 and 4 devices tests of the engine compare texts.
  task, population = setting.tiny_tasks()[1], setting.population_of(5)
  alone, spread = (
    setting.make([task], devices=jax.devices()[:n])
    .evaluate(setting.tiny_space(), population)
    .tasks[0]
    .predictions
    for n in (1, 8)
  )
  assert spread == alone and len({text for row in alone for text in row}) > 5


if __name__ == '__main__':
  main(*sys.argv[1:])
