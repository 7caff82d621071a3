"""The compare program on the pocket population, a few items of it."""

import json

import pytest

from evojax_llm import pocket
from tests.experiments import running

pytestmark = pytest.mark.skipif(
  not pocket.base_folder().is_dir(), reason='no pocket population'
)


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
  out = tmp_path_factory.mktemp('compare') / 'out'
  code = running.run_program(
    'compare',
    '--configs=experiments/coefficients/config.py:random_search',
    '--seeds=2',
    '--draws=2',
    '--evaluations=25',
    f'--tasks={pocket.stage("main")[0]}',
    '--dev_limit=6',
    '--test_limit=8',
    f'--out={out}',
  )
  assert not code
  return out


def test_every_run_is_there_with_its_evaluations(comparison):
  rows = json.loads((comparison / 'comparison.json').read_text())['rows']
  runs = [row for row in rows if row['seed'] is not None]
  assert len(runs) == 2 * 2
  assert all(row['evaluations'] >= 25 for row in runs)
  assert {row['draw'] for row in rows} == {0, 1}
  # Shares of eight items.
  assert all((8 * row['test']) % 1 < 1e-6 for row in rows)


def test_table_has_a_line_for_each_search_and_baseline(comparison):
  text = (comparison / 'comparison.md').read_text()
  for name in ('base', 'best expert', 'scaled average', 'random_search'):
    assert f'| {name} |' in text


def test_folder_with_files_is_refused(comparison, capsys):
  assert running.run_program('compare', f'--out={comparison}') == 1
  assert 'not empty' in capsys.readouterr().err


def test_draws_differ_and_share_programs():
  from evojax_llm.fitness import tasks as tasks_lib
  from evojax_llm.fitness.evaluation import Evaluator
  from evojax_llm.fitness.groups import Expressed
  from evojax_llm.gemma import hub
  from evojax_llm.gemma.tokenizer import Tokenizer
  from experiments import members

  base = pocket.base_folder()
  found = members.load(str(base))
  config, params = hub.load_checkpoint(base)
  evaluator = Evaluator(
    config,
    params,
    Tokenizer.from_folder(base),
    [tasks_lib.load_task(pocket.task_file(pocket.stage('main')[0]))],
    limits={'dev': 5, 'test': None},
  )
  first = evaluator.evaluate(Expressed(), found.population)
  other = evaluator.redraw(1)
  second = other.evaluate(Expressed(), found.population)
  assert first.tasks[0].ids != second.tasks[0].ids
  again = other.redraw(0).evaluate(Expressed(), found.population)
  assert again.tasks[0].ids == first.tasks[0].ids
  assert again.fitness == first.fitness
  assert evaluator.ledger is other.ledger
