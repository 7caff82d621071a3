"""The analyse program on a finished run."""

import json
import shutil

import numpy as np

from evojax_llm.fitness.item_log import ItemLog
from tests.experiments import running
from tests.experiments import runs


def test_a_run_is_analysed_from_its_records(finished, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(finished[0], run)
  assert not running.run_program('analyse', f'--run={run}')
  assert 'no expert solved' in capsys.readouterr().out
  found = json.loads((run / 'analysis.json').read_text())
  for name in ('trajectory.png', 'family.png'):
    assert (run / name).stat().st_size > 1000
  best = runs.summary(run)['best']['id']
  unsolved = emerged = 0
  for task in ('a', 'b'):
    _, _, before = ItemLog(run / 'baseline_items').matrix(task)
    ids, _, after = ItemLog(run / 'items').matrix(task)
    nobody = before[1:4].sum(axis=0) == 0
    unsolved += nobody.sum()
    emerged += after[ids.tolist().index(best)][nobody].sum()
  counts = found['emergence']['dev']
  assert (counts['unsolved'], counts['emerged']) == (unsolved, emerged)
  assert counts['items'] == 60
  came = found['origin']
  assert came['path'][-1] == best and came['path'][0] < 5
  assert 1 <= came['rank'] <= came['of'] == 5
  assert set(came['experts']) <= {'expert0', 'expert1', 'expert2'}
  assert 0 < np.sum(found['explained']) <= 1 + 1e-6


def test_experts_are_ranked_by_the_fitness_of_the_run(finished, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(finished[0], run)
  path = run / 'baselines.json'
  kept = json.loads(path.read_text())
  scores = [list(tasks) for tasks in kept['experts'].values()]
  np.testing.assert_allclose(
    list(kept['fitness'].values()), np.mean(scores, axis=1), atol=1e-6
  )
  # As of a metric of which less is better, or another objective.
  kept['fitness'] = {n: -f for n, f in kept['fitness'].items()}
  path.write_text(json.dumps(kept))
  assert not running.run_program('analyse', f'--run={run}')
  came = json.loads((run / 'analysis.json').read_text())['origin']
  order = sorted(kept['fitness'].values(), reverse=True)
  for name, rank in zip(came['experts'], came['expert_ranks'], strict=True):
    assert rank == 1 + order.index(kept['fitness'][name])


def test_answers_of_before_a_move_are_not_counted(finished, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(finished[0], run)
  config = json.loads((run / 'config.json').read_text())
  config['config']['strategy']['options']['rescore'] = False
  (run / 'config.json').write_text(json.dumps(config))
  assert not running.run_program('analyse', f'--run={run}')
  assert not json.loads((run / 'analysis.json').read_text())['emergence']


def test_members_of_nobody_have_no_origin(finished, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(finished[0], run)
  rows = _members(run)
  for row in rows:
    row['parents'] = []
  (run / 'members.jsonl').write_text(
    ''.join(json.dumps(r) + '\n' for r in rows)
  )
  summary = runs.summary(run)
  summary['best']['id'] = rows[-1]['id']
  (run / 'summary.json').write_text(json.dumps(summary))
  assert rows[-1]['generation'] > 0
  assert not running.run_program('analyse', f'--run={run}')
  assert 'tells of no parents' in capsys.readouterr().out
  assert (
    json.loads((run / 'analysis.json').read_text())['origin']['rank'] is None
  )


def _members(run):
  text = (run / 'members.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_test_is_analysed_where_all_experts_were_read(settings, tmp_path):
  run = tmp_path / 'run'
  code = runs.evolve(
    settings,
    run,
    '--config.strategy.generations=0',
    '--config.test_experts=True',
  )
  assert code is None
  assert not running.run_program('analyse', f'--run={run}')
  found = json.loads((run / 'analysis.json').read_text())['emergence']
  assert found['test']['items'] == 24


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
  assert running.run_program('analyse', f'--run={tmp_path}') == 1
  assert 'not the folder of a finished run' in capsys.readouterr().err
