"""A run over paths through the layers of two models, from end to end."""

import json
import re

import numpy as np
import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import checkpoint
from evojax_llm.runs import export
from evojax_llm.runs import rows
from evojax_llm.tasks import task_files
from tests.experiments import runs

DEV, PICK = 24, 12


class Killed(BaseException):
  pass


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
    '--config.strategy.generations=2',
    '--config.strategy.options.sigma=0.3',
    f'--config.pick_items={PICK}',
    '--config.ensemble.size=0',
  ]


@pytest.fixture(scope='module')
def run(settings, tmp_path_factory):
  """A run that was killed after generation 1, and went on."""
  folder, saved = tmp_path_factory.mktemp('path') / 'run', []
  save = checkpoint.Checkpoints.save

  def fail(*args, **kwargs):
    saved.append(args)
    if len(saved) == 2:
      raise Killed
    return save(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', fail)
    with pytest.raises(Killed):
      runs.evolve(settings, folder)
  assert runs.evolve(settings, folder) is None
  return folder


def test_the_search_sees_neither_the_items_held_back_nor_long_paths(run):
  summary = runs.summary(run)
  # One model first, then six members twice; all that live were asked again.
  scored = 1 + 2 * 6
  assert scored < summary['evaluations'] <= scored + 7
  assert runs.row(summary)['dev']['tasks']['a']['n'] == DEV - PICK
  lengths = []
  for row in runs.lines(run / 'members.jsonl'):
    lengths.append(row['recipe']['length'])
    beyond = max(0, row['recipe']['length'] - 2)
    expected = row['tasks']['a'] - 0.001 * beyond
    assert row['fitness'] == pytest.approx(expected, abs=1e-6)
  assert max(lengths) > 2
  names = [row['name'] for row in summary['rows']]
  assert names[:2] == ['base', 'best expert'] and names[-1] == 'evolved'


def test_what_is_exported_scores_as_in_the_table(run, tmp_path):
  summary = runs.summary(run)
  task = json.loads((run / 'config.json').read_text())['config']['tasks']
  (task,) = task_files.load_tasks([task])
  expected = runs.row(summary)['test']['tasks']['a']['score']
  found = []
  assert export.export(run, tmp_path / 'path') == 'path'
  options = export.Options(merged=True)
  assert export.export(run, tmp_path / 'plain', options=options) == 'model'
  for folder in (run / 'best', tmp_path / 'path', tmp_path / 'plain'):
    members = base_and_adapters.load(folder)
    evaluator = Evaluator(members.tokenizer, [task])
    scores = evaluator.evaluate(members.space, members.population, split='test')
    found.append(scores.tasks[0].loglikelihoods[0])
    assert scores.task_scores[0, 0] == pytest.approx(expected)
  assert found[0] == found[1]
  plain, path = (np.array([[*v.values()] for v in rows]) for rows in found[1:])
  np.testing.assert_allclose(plain, path, atol=2e-2)
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
    ('--config.strategy.name=nsga2', 'ends in a front.*leave config.pick_item'),
  ],
)
def test_what_cannot_be_is_refused(settings, change, message, tmp_path, capsys):
  assert runs.evolve([*settings, change], tmp_path / 'run') == 1
  assert re.search(message, capsys.readouterr().err)
