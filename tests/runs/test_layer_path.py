"""A run over paths through the layers of two models, from end to end."""

import json
import re
import types

import numpy as np
import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import export
from evojax_llm.runs import rows
from evojax_llm.runs import run_config
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.tasks import task_files
from tests.experiments import runs

DEV, PICK = 24, 12


@pytest.fixture(scope='module')
def settings(tmp_path_factory, tiny_gemma_folder):
  task = runs.write_task(tmp_path_factory.mktemp('tasks') / 'a.json', DEV)
  other = tiny_gemma_folder(seed=1)
  return [
    '--config=data_flow',
    f'--config.model={tiny_gemma_folder()}',
    f'--config.experts={other}',
    f'--config.layer_path.sources=base,{other.name}',
    '--config.layer_path.penalty=0.001',
    f'--config.tasks={task}',
    '--config.strategy.population=6',
    '--config.strategy.generations=1',
    '--config.strategy.options.sigma=0.3',
    f'--config.pick_items={PICK}',
    '--config.ensemble.size=2',
  ]


@pytest.fixture(scope='module')
def run(settings, tmp_path_factory):
  folder = tmp_path_factory.mktemp('path') / 'run'
  assert runs.evolve(settings, folder) is None
  return folder


def test_the_search_sees_neither_the_items_held_back_nor_long_paths(run):
  summary = runs.summary(run)
  # One model first, then six members; all that live were asked again.
  scored = 1 + 6
  assert scored < summary['evaluations'] <= scored + 7
  lengths = []
  for row in runs.lines(run / 'members.jsonl'):
    lengths.append(row['recipe']['length'])
    beyond = max(0, row['recipe']['length'] - 2)
    right = row['tasks']['a'] * (DEV - PICK)
    assert right == pytest.approx(round(right), abs=1e-4)
    expected = row['tasks']['a'] - 0.001 * beyond
    assert row['fitness'] == pytest.approx(expected, abs=1e-6)
  assert max(lengths) > 2
  names = [row['name'] for row in summary['rows']]
  assert names[:2] == ['base', 'best expert'] and names[-2] == 'evolved'


def test_what_is_exported_scores_as_in_the_table(run, tmp_path):
  summary = runs.summary(run)
  task = json.loads((run / 'config.json').read_text())['config']['tasks']
  (task,) = task_files.load_tasks([task])
  expected = runs.row(summary)['test']['tasks']['a']['score']
  found = []
  with pytest.raises(UserError, match='a vote of paths'):
    export.export(run, tmp_path / 'vote', 'vote')
  options = export.Options(merged=True)
  assert export.export(run, tmp_path / 'plain', options=options) == 'model'
  for folder in (run / 'best', tmp_path / 'plain'):
    members = base_and_adapters.load(folder)
    evaluator = Evaluator(members.tokenizer, [task])
    scores = evaluator.evaluate(members.space, members.population, split='test')
    found.append(scores.tasks[0].loglikelihoods[0])
    assert scores.task_scores[0, 0] == pytest.approx(expected, abs=1e-5)
  assert export.export(run, tmp_path / 'path') == 'path'
  for name in ('model.safetensors', 'path.safetensors'):
    again = (tmp_path / 'path' / name).read_bytes()
    assert again == (run / 'best' / name).read_bytes()
  plain, path = (np.array([[*v.values()] for v in rows]) for rows in found)
  np.testing.assert_allclose(plain, path, atol=2e-2)
  with pytest.raises(UserError, match='of which there are no adapters'):
    base_and_adapters.load(run / 'best', ['expert'])
  members, _ = base_and_adapters.of_row(rows.Run.open(run), 'evolved')
  assert members.names == ('base', 'evolved')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      '--config.layer_path.sources=base,expert9',
      r"config.layer_path: Got sources 'base,expert9'",
    ),
    (f'--config.pick_items={DEV}', 'leaves the search nothing of the 24 dev'),
  ],
)
def test_what_cannot_be_is_refused(settings, change, message, tmp_path, capsys):
  assert runs.evolve([*settings, change], tmp_path / 'run') == 1
  assert re.search(message, capsys.readouterr().err)


def test_nothing_is_picked_from_a_front():
  search = run_config.StrategyConfig(name='nsga2', population=4)
  config = run_config.RunConfig(strategy=search, pick_items=3)
  setup = types.SimpleNamespace(space=None)
  with pytest.raises(UserError, match='ends in a front.*leave config.pick_it'):
    setup_lib.make_strategy(config, setup)
