"""evosax's own algorithms through the evolve program."""

import pytest

from evojax_llm.runs import record
from tests import tiny
from tests.experiments import runs

CONFIG = 'evosax_algorithms'


@pytest.mark.parametrize('space', ('gates', 'adapters'))
def test_they_run_by_name(
  space, tiny_gemma_folder, tiny_adapter_folders, tmp_path
):
  adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  runs.evolve(
    [
      f'--config={CONFIG}:SimpleGA',
      f'--config.model={tiny_gemma_folder("gemma2")}',
      f'--config.adapters={",".join(map(str, adapters))}',
      f'--config.tasks={runs.write_task(tmp_path / "a.json", dev=8, test=4)}',
      f'--config.space={space}',
      '--config.initial=experts,extrapolants',
      '--config.strategy.population=4',
      '--config.strategy.generations=1',
    ],
    tmp_path / 'run',
  )
  summary = record.read_json(tmp_path / 'run' / 'summary.json')
  assert summary['evaluations'] == 8
