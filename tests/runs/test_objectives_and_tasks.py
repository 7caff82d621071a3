"""Objectives, limits, Python tasks and judges, through the programs."""

import json

import numpy as np
import pytest

from evojax_llm.fitness.item_log import ItemLog
from tests import tiny
from tests.experiments import runs
from tests.experiments.running import run_program

TASK = '''
from evojax_llm.tasks.python_task import PythonTask

class Short(PythonTask):
  """Short answers are better; this is no share."""
  format = {'max_new_tokens': 3}

  def dev(self):
    return [{'question': f'say {i}', 'answer': 'x'} for i in range(6)]

  def test(self):
    return [{'question': f'say {i}', 'answer': 'x'} for i in range(20, 24)]

  def score(self, item, text):
    return 10.0 - len(text.encode())
'''


@pytest.fixture(scope='module')
def inputs(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  folder = tmp_path_factory.mktemp('tasks')
  (folder / 'short.py').write_text(TASK)
  choice = runs.write_task(folder / 'choice.json', 12, 6)
  return {
    'model': str(tiny_gemma_folder('gemma2')),
    'adapters': ','.join(
      map(str, tiny_adapter_folders(3, modules=tiny.FEW_MODULES))
    ),
    'tasks': f'{choice},{folder / "short.py"}',
    'folder': folder,
  }


def evolve(inputs, folder, *more):
  settings = [f'--config.{k}={inputs[k]}' for k in ('model', 'adapters')]
  return runs.evolve(
    [
      f'--config={runs.GENOME}:genome',
      *settings,
      f'--config.tasks={inputs["tasks"]}',
      '--config.strategy.population=4',
      '--config.strategy.generations=1',
      '--config.initial=experts,pairs',
    ],
    folder,
    *more,
  )


def test_z_scores_over_tasks_of_other_units(inputs, tmp_path):
  folder = tmp_path / 'run'
  options = ['--config.objective=z_score', '--config.dev_limits=(8,4)']
  assert evolve(inputs, folder, *options) is None
  experts = np.array(json.loads((folder / 'experts.json').read_text()))
  assert experts.shape == (3, 2)
  spread = experts.std(axis=0)
  spread[spread == 0] = 1
  for row in runs.lines(folder / 'members.jsonl'):
    scores = np.array(list(row['tasks'].values()))
    z = ((scores - experts.mean(axis=0)) / spread).mean()
    assert row['fitness'] == pytest.approx(z, abs=1e-4)
  summary = runs.summary(folder)
  tasks = runs.row(summary)['dev']['tasks']
  assert [task['items'] for task in tasks.values()] == [8, 4]
  assert [task['metric'] for task in tasks.values()] == ['accuracy', 'score']
  assert not tasks['short']['percent'] and tasks['short']['low'] is None
  assert summary['objective'] == 'z_score'
  assert (
    'Objective z_score over accuracy in percent, score'
    in (folder / 'summary.md').read_text()
  )
  _, items, values = ItemLog(folder / 'items').matrix('short')
  assert len(items) == 4 and values.max() > 1
  # The same command shows the finished run and asks the experts nothing.
  assert evolve(inputs, folder, *options) is None


def test_pareto_keeps_the_front(inputs, tmp_path, capsys):
  folder = tmp_path / 'run'
  assert evolve(inputs, folder, '--config.objective=pareto') is None
  summary = runs.summary(folder)
  rows = {row['id']: row for row in runs.lines(folder / 'members.jsonl')}
  front = summary['front']
  assert front and all(
    rows[row['id']]['tasks'] == row['tasks'] for row in front
  )
  for row in front:
    ours = np.array(list(row['tasks'].values()))
    for other in rows.values():
      theirs = np.array(list(other['tasks'].values()))
      assert not ((theirs >= ours).all() and (theirs > ours).any())
  assert (
    'Members that no other one beats' in (folder / 'summary.md').read_text()
  )


def test_other_items_in_every_generation(inputs, tmp_path):
  folder = tmp_path / 'run'
  options = ['--config.resample=True', '--config.dev_limit=4']
  assert evolve(inputs, folder, *options) is None
  first, second = ItemLog(folder / 'items').read()
  assert first.tasks[0].ids != second.tasks[0].ids
  summary = runs.summary(folder)
  assert runs.row(summary)['dev']['tasks']['choice']['items'] == 4
  metrics = runs.lines(folder / 'metrics.jsonl')
  assert metrics[1]['evaluations'] > metrics[0]['scored'] + metrics[1]['scored']


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--config.resample=True', 'say how many with config.dev_limit'),
    ('--config.objective=mean', 'expected one of weighted_mean'),
    ('--config.dev_limits=(3,)', 'one for each'),
    ('--config.shots=-1', 'config.shots -1'),
    ('--config.shots=12', '12 shots of 12 dev items'),
  ],
)
def test_settings_that_cannot_be_are_refused(
  inputs, tmp_path, capsys, flag, words
):
  assert evolve(inputs, tmp_path / 'run', flag) == 1
  message = capsys.readouterr().err
  assert words in message and 'Traceback' not in message


def test_stock_algorithms_do_not_resample(inputs, tmp_path, capsys):
  code = evolve(
    inputs,
    tmp_path / 'run',
    '--config.resample=True',
    '--config.dev_limit=4',
    '--config.space=gates',
    '--config.strategy.name=random_search',
    '--config.strategy.options={}',
  )
  assert code == 1 and 'leave config.resample off' in capsys.readouterr().err


def test_scores_of_many_kinds(inputs, tmp_path, capsys):
  path = tmp_path / 'texts.json'
  rows = [{'question': f'q {i}', 'answer': 'the inn'} for i in range(4)]
  path.write_text(json.dumps({'dev': rows, 'format': {'kind': 'perplexity'}}))
  out = tmp_path / 'scores.json'
  code = run_program(
    'score',
    f'--model={inputs["model"]}',
    f'--tasks={path},{inputs["folder"] / "short.py"}',
    f'--out={out}',
    '--per_item',
    '--shots=1',
    '--system=Be brief.',
  )
  assert code is None
  tasks = json.loads(out.read_text())['members'][0]['tasks']
  texts, short = tasks['texts'], tasks['short']
  assert (texts['metric'], texts['n'], texts['interval']) == (
    'perplexity',
    3,
    None,
  )
  assert set(texts['items'][0]) == {
    'id',
    'prediction',
    'value',
    'loglikelihoods',
  }
  values = [item['value'] for item in short['items']]
  assert short['score'] == pytest.approx(np.mean(values))
  assert short['interval'][0] <= short['score'] <= short['interval'][1]
  table = capsys.readouterr().out.splitlines()
  assert 'mean' not in table[0] and '%' not in table[1]


def test_code_must_be_allowed(inputs, tmp_path, capsys):
  path = tmp_path / 'code.json'
  rows = [{'question': f'q {i}', 'answer': 'assert f() == 1'} for i in range(3)]
  format_ = {'kind': 'code', 'max_new_tokens': 2}
  path.write_text(json.dumps({'dev': rows, 'format': format_}))
  arguments = [f'--model={inputs["model"]}', f'--tasks={path}']
  out = f'--out={tmp_path / "o.json"}'
  assert run_program('score', *arguments, out) == 1
  assert '--config.allow_code of a run' in capsys.readouterr().err
  assert run_program('score', *arguments, out, '--allow_code') is None


def test_a_judge_that_stays_away_ends_the_program(inputs, tmp_path, capsys):
  path = tmp_path / 'judged.json'
  rows = [{'prompt': f'q {i}', 'id': str(i)} for i in range(3)]
  format_ = {
    'kind': 'judge',
    'endpoint': 'http://localhost:9/v1',
    'model': 'm',
    'retries': 1,
    'wait': 0.01,
    'max_new_tokens': 2,
  }
  path.write_text(json.dumps({'dev': rows, 'format': format_}))
  code = run_program(
    'score',
    f'--model={inputs["model"]}',
    f'--tasks={path}',
    f'--out={tmp_path / "o.json"}',
  )
  message = capsys.readouterr().err
  assert code == 1 and 'no reply in 2 tries' in message
  assert 'Traceback' not in message and not (tmp_path / 'o.json').exists()
