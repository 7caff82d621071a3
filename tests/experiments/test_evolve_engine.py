"""Runs with a race, an eight-bit base and gates, from end to end."""

import json

import pytest

from tests.experiments import runs

# How ml_collections reads a configuration file.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)


@pytest.fixture(scope='module')
def settings(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  folder = tmp_path_factory.mktemp('tasks')
  adapters = tiny_adapter_folders(3, 'gemma2', alpha=32)
  return [
    f'--config={runs.GENOME}',
    f'--config.model={tiny_gemma_folder("gemma2")}',
    f'--config.adapters={",".join(map(str, adapters))}',
    f'--config.tasks={runs.write_task(folder / "a.json")}',
    '--config.strategy.population=5',
    '--config.strategy.generations=2',
  ]


def test_a_raced_run_on_an_eight_bit_base(settings, tmp_path, capsys):
  options = [
    '--config.racing.rule=halving',
    '--config.racing.rounds=2',
    '--config.execution.base_dtype=int8',
  ]
  for name in ('one', 'two'):
    assert runs.evolve(settings, tmp_path / name, *options) is None
  assert 'the same on' in capsys.readouterr().err
  summaries = [
    json.loads((tmp_path / name / 'summary.json').read_text())
    for name in ('one', 'two')
  ]
  saved = summaries[0]['ledger']['items_saved']
  assert saved > 0
  text = (tmp_path / 'one' / 'summary.md').read_text()
  assert f'{saved:,} items saved by racing' in text
  assert set(summaries[0]['base_dtype']['a']) == {'whole', 'eight', 'agree'}
  # Addressed draws: the same race, the same result.
  assert summaries[0]['best'] == summaries[1]['best']
  members = [
    (tmp_path / name / 'members.jsonl').read_text() for name in ('one', 'two')
  ]
  assert members[0] == members[1]


def test_members_that_are_gates_are_reported_as_adapters(settings, tmp_path):
  options = ['--config.space=coefficients', '--config.strategy.generations=1']
  assert runs.evolve(settings, tmp_path / 'run', *options) is None
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert runs.row(summary)['test'] is not None
  seconds = summary['ledger']['seconds']
  assert {'compile', 'prefill', 'host', 'idle'} <= set(seconds)


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--config.racing.rule=sprint', "racing.rule='sprint'"),
    ('--config.racing.rule=paired', 'rounds=0'),
    ('--config.execution.base_dtype=int4', "base_dtype='int4'"),
  ],
)
def test_mistakes_are_one_message(settings, tmp_path, capsys, flag, message):
  code = runs.evolve(
    settings, tmp_path / 'run', flag, '--config.racing.rounds=0'
  )
  assert code == 1
  assert message in capsys.readouterr().err
