"""A small run of the evolve program, and its settings, made once."""

import pytest

from evojax_llm.fitness.evaluator import Evaluator
from tests.experiments import runs


@pytest.fixture(scope='session')
def settings(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  """Flags of a small run, without --workdir."""
  folder = tmp_path_factory.mktemp('tasks')
  tasks = [
    runs.write_task(folder / f'{n}.json', seed=i) for i, n in enumerate('ab')
  ]
  adapters = tiny_adapter_folders(3, 'gemma2', alpha=32)
  return [
    f'--config={runs.GENOME}',
    f'--config.model={tiny_gemma_folder("gemma2")}',
    f'--config.adapters={",".join(map(str, adapters))}',
    f'--config.tasks={",".join(map(str, tasks))}',
    '--config.strategy.population=5',
    '--config.strategy.generations=4',
  ]


@pytest.fixture(scope='session')
def finished(settings, tmp_path_factory):
  """(folder of a finished run, the calls of its evaluator)."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  calls = []
  evaluate = Evaluator.evaluate

  def spy(self, space, population, members=None, split='dev', progress=None):
    calls.append((split, None if members is None else len(members)))
    return evaluate(self, space, population, members, split, progress)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Evaluator, 'evaluate', spy)
    assert runs.evolve(settings, folder) is None
  return folder, calls
