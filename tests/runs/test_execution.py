"""Runs with a race, an eight-bit base and gates, from end to end."""

import json

import jax
import numpy as np
import pytest

from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.models import hub
from evojax_llm.population import stack
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import checkpoint
from evojax_llm.runs import export
from evojax_llm.runs import rows
from tests import tiny
from tests.experiments import running
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures('shared_reading')


@pytest.fixture(scope='module')
def settings(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  folder = tmp_path_factory.mktemp('tasks')
  adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  return [
    f'--config={runs.GENOME}',
    f'--config.model={tiny_gemma_folder("gemma2")}',
    f'--config.adapters={",".join(map(str, adapters))}',
    f'--config.tasks={runs.write_task(folder / "a.json")}',
    '--config.strategy.population=5',
    '--config.strategy.generations=2',
  ]


class Killed(BaseException):
  pass


def test_a_raced_run_on_an_eight_bit_base(
  settings, tmp_path, capsys, monkeypatch
):
  options = [
    '--config.racing.rule=halving',
    '--config.racing.rounds=2',
    '--config.execution.base_dtype=int8',
  ]
  assert runs.evolve(settings, tmp_path / 'one', *options) is None
  assert 'the same on' in capsys.readouterr().err
  summary = runs.summary(tmp_path / 'one')
  saved = summary['ledger']['items_saved']
  assert saved > 0
  text = (tmp_path / 'one' / 'summary.md').read_text()
  assert f'{saved:,} items not asked' in text
  assert set(summary['base_dtype']['a']) == {'whole', 'eight', 'agree'}

  # Addressed draws: the same race and the same result, also where the process
  # ends before the next checkpoint, two generations later.
  seldom = '--config.checkpoint_every=2'
  save, calls = checkpoint.Checkpoints.save, []

  def fail(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
      raise Killed
    return save(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', fail)
    with pytest.raises(Killed):
      runs.evolve(settings, tmp_path / 'two', *options, seldom)
  assert runs.evolve(settings, tmp_path / 'two', *options, seldom) is None
  whole = runs.result(tmp_path / 'one')
  assert runs.result(tmp_path / 'two') == whole

  # Scores are of the items that were asked, and some were not.
  ids, _, values = ItemLog(tmp_path / 'one' / 'items').matrix('a')
  rows = [json.loads(line) for line in whole['members'].splitlines()]
  assert ids.tolist() == [row['id'] for row in rows]
  assert np.isnan(values).any() and not np.isnan(values).all(axis=1).any()
  np.testing.assert_allclose(
    np.nanmean(values, axis=1), [row['tasks']['a'] for row in rows], atol=1e-6
  )


def test_members_that_are_gates_are_reported_as_adapters(settings, tmp_path):
  options = ['--config.space=gates', '--config.strategy.generations=1']
  assert runs.evolve(settings, tmp_path / 'run', *options) is None
  summary = runs.summary(tmp_path / 'run')
  assert runs.row(summary)['test'] is not None
  seconds = summary['ledger']['seconds']
  assert {'compile', 'prefill', 'host', 'idle'} <= set(seconds)

  # One of three experts of rank 4 has no weight: 8 columns hold the change.
  run = rows.Run.open(tmp_path / 'run')
  row = run.row()
  gates = {'gates': np.float32([[0.5, 0.0, 2.0]])}
  folder = row.space.export(stack.take(gates, 0), tmp_path / 'out')
  assert json.loads((folder / 'adapter_config.json').read_text())['r'] == 8
  assert set(row.recipes()['evolved']['weights']) == set(row.space.names)
  # Plain mixes are made factor by factor, as for the table.
  average = run.row('average')
  assert set(average.genomes) == {'layers'}
  export.export(run.path, tmp_path / 'average', 'average')
  assert (tmp_path / 'average' / 'adapter_model.safetensors').is_file()


def test_whole_models_are_evolved_and_are_experts_in_turn(
  settings, tmp_path, capsys
):
  """Adapters folded into the base; then models, of which one is the result."""
  weights = ['--config.space=weights', '--config.strategy.generations=1']
  first = tmp_path / 'first'
  host = '--config.execution.population=host'
  assert runs.evolve(settings, first, *weights, host) is None
  assert 'in the memory of the host' in capsys.readouterr().err
  summary = runs.summary(first)
  assert summary['rows'][-1]['test'] is not None
  base = next(s for s in settings if s.startswith('--config.model='))
  folder = base.split('=', 1)[1]
  experts = f'--config.experts={first / "best"},{folder}'
  others = [s for s in settings if not s.startswith('--config.adapters=')]
  second = tmp_path / 'second'
  more = [experts, '--config.initial=experts,extrapolants']
  assert runs.evolve(others, second, *weights, *more) is None
  table = runs.summary(second)['rows']
  found = {row['name']: row for row in table}
  # The first run's best is there as it was, and is read to the last bit.
  best = max(
    found['best expert']['dev']['fitness']['score'],
    found['base']['dev']['fitness']['score'],
  )
  assert best >= round(summary['best']['fitness'], 6)
  out = tmp_path / 'out'
  assert (
    running.run_program('export', f'--run={second}', f'--out={out}') is None
  )
  assert 'model written to' in capsys.readouterr().out
  assert hub.load_checkpoint(out)[0] == hub.load_config(folder)[0]
  half = export.Options(dtype='bfloat16')
  export.export(second, tmp_path / 'average', 'average', options=half)
  assert 'bfloat16 keeps 100.0% of the change' in capsys.readouterr().err
  _, average = hub.load_checkpoint(tmp_path / 'average')
  _, one = hub.load_checkpoint(first / 'best')
  _, two = hub.load_checkpoint(folder)
  jax.tree.map(
    lambda x, y, z: np.testing.assert_allclose(x, (y + z) / 2, rtol=2**-8),
    *(average, one, two),
  )
  export.export(second, tmp_path / 'vote', 'vote')
  whole, _ = base_and_adapters.of_row(rows.Run.open(second), 'vote')
  back, _ = base_and_adapters.of_row(str(tmp_path / 'vote'), '')
  assert back.names == whole.names and len(back.names) > 1
  jax.tree.map(np.testing.assert_array_equal, back.population, whole.population)
  assert runs.evolve(others, second, experts) == 1
  assert 'set config.space=weights' in capsys.readouterr().err


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--config.racing.rule=sprint', "racing.rule 'sprint'"),
    ('--config.racing.rule=paired', 'rounds 0'),
    ('--config.execution.base_dtype=int4', "base_dtype 'int4'"),
  ],
)
def test_mistakes_are_one_message(settings, tmp_path, capsys, flag, message):
  code = runs.evolve(
    settings, tmp_path / 'run', flag, '--config.racing.rounds=0'
  )
  assert code == 1
  assert message in capsys.readouterr().err
