"""Runs from a configuration to a finished folder, on a tiny random model."""

import dataclasses
import json

import numpy as np
import pytest

from evojax_llm import runs as library
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import preparation
from evojax_llm.runs import runner
from tests import tiny
from tests.experiments import runs


def test_a_run_leaves_its_records(finished):
  folder, _ = finished
  names = {p.name for p in folder.iterdir()}
  assert names == {
    'best',
    'baseline_items',
    'baselines.json',
    'checkpoints',
    'config.json',
    'curve.png',
    'items',
    'lock',
    'members.jsonl',
    'metrics.jsonl',
    'summary.json',
    'summary.md',
    'test_items',
  }
  metrics = runs.lines(folder / 'metrics.jsonl')
  assert [row['generation'] for row in metrics] == [0, 1, 2, 3, 4]
  assert all(row['tokens'] > 0 and row['seconds'] for row in metrics)
  members = runs.lines(folder / 'members.jsonl')
  ids = [row['id'] for row in members]
  assert len(ids) == len(set(ids)) == metrics[-1]['evaluations']
  assert [m['operator'] for m in members[:5]] == [
    'expert',
    'expert',
    'expert',
    'zero',
    'scaled_average',
  ]
  assert len({m['fitness'] for m in members}) > 2, 'the problem tells nobody'
  config = json.loads((folder / 'config.json').read_text())['config']
  assert config['strategy']['population'] == 5


def test_the_summary_has_all_rows_and_the_lineage_of_the_best(finished):
  folder, _ = finished
  summary = runs.summary(folder)
  assert [row['name'] for row in summary['rows']] == [
    'base',
    'best expert',
    'average',
    'soup',
    'scaled average',
    'scaled best expert',
    'ensemble of experts',
    'evolved',
    'ensemble of evolved',
  ]
  for row in summary['rows']:
    assert set(row['dev']['tasks']) == set(row['test']['tasks']) == {'a', 'b'}
    assert row['dev']['tasks']['a']['items'] == 30
    assert row['test']['tasks']['a']['items'] == 12
    mean = row['test']['fitness']
    assert 0 <= mean['low'] <= mean['score'] <= mean['high'] <= 1
  members = {row['id']: row for row in runs.lines(folder / 'members.jsonl')}
  best = summary['best']['id']
  assert members[best]['fitness'] == max(m['fitness'] for m in members.values())
  evolved = runs.row(summary)
  assert evolved['dev']['fitness']['score'] == pytest.approx(
    members[best]['fitness'], abs=1e-5
  )
  assert evolved['evaluations'] == len(members)
  assert summary['lineage'][-1]['id'] == best
  assert '![fitness by generation]' in (folder / 'summary.md').read_text()


def test_what_members_did_on_items_makes_their_scores(finished):
  folder, _ = finished
  members = runs.lines(folder / 'members.jsonl')
  log = ItemLog(folder / 'items')
  for task in ('a', 'b'):
    ids, items, values = log.matrix(task)
    assert ids.tolist() == [row['id'] for row in members]
    assert len(items) == 30
    scores = [row['tasks'][task] for row in members]
    np.testing.assert_allclose(values.mean(axis=1), scores, atol=1e-6)


def test_test_is_read_once_and_at_the_end(finished):
  _, calls = finished
  assert [split for split, _ in calls] == ['dev'] * (len(calls) - 1) + ['test']
  # Five baselines and the best member.
  assert calls[-1][1] is None


def test_nobody_is_scored_twice(finished):
  folder, calls = finished
  scored = [row['scored'] for row in runs.lines(folder / 'metrics.jsonl')]
  # Two calls for the baselines, then one a generation.
  assert [count for _, count in calls[2:-1]] == scored


def test_the_best_member_is_the_exported_adapter(finished, settings):
  folder, _ = finished
  base = settings[1].split('=')[1]
  exported = peft.load_adapters([folder / 'best'], hub.load_config(base)[0])
  _, state = checkpoint.Checkpoints(folder / 'checkpoints').read()
  a = state['strategy']['memory']['best']['layers']['mlp']['up_proj']['a']
  np.testing.assert_array_equal(
    exported.factors['layers']['mlp']['up_proj']['a'][0], a
  )
  best = runs.summary(folder)['best']
  assert set(best['recipe']['experts']) == {'expert0', 'expert1', 'expert2'}
  # A pair of factors a matrix is too much for a line.
  assert not any('recipe' in r for r in runs.lines(folder / 'members.jsonl'))


def test_members_that_cannot_be_scored_do_not_end_a_run(
  settings, tmp_path, tiny_gemma_folder
):
  base = tiny_gemma_folder('gemma2')
  adapters = [
    tiny.write_adapter(
      tmp_path / name, base, seed=i, alpha=alpha, modules=tiny.FEW_MODULES
    )
    for i, (name, alpha) in enumerate((('good', 32), ('bad', 3e38)))
  ]
  code = runs.evolve(
    settings,
    tmp_path / 'run',
    f'--config.adapters={",".join(map(str, adapters))}',
    '--config.strategy.generations=2',
  )
  assert code is None
  summary = runs.summary(tmp_path / 'run')
  assert summary['failed'] > 0
  assert summary['rows'][1]['detail'] == 'good'
  assert runs.row(summary)['dev']['fitness']['score'] is not None
  failed = [
    row
    for row in runs.lines(tmp_path / 'run' / 'members.jsonl')
    if row['fitness'] is None
  ]
  assert failed and all(row['reason'] for row in failed)


def test_a_generation_that_proposes_nobody_costs_nothing(settings, tmp_path):
  code = runs.evolve(
    [f'--config={runs.GENOME}:genome_as_published', *settings[1:]],
    tmp_path / 'run',
    '--config.strategy.generations=1',
    '--config.strategy.options.mutation_rate=0.0',
  )
  assert code is None
  metrics = runs.lines(tmp_path / 'run' / 'metrics.jsonl')
  assert [row['scored'] for row in metrics] == [5, 0]
  assert metrics[1]['best_fitness'] == metrics[0]['best_fitness']


def test_coefficients_are_searched_and_exported(settings, tmp_path):
  config = f'{runs.ROOT}/experiments/coefficients/config.py:random_search'
  code = runs.evolve(
    [f'--config={config}', *settings[1:]],
    tmp_path / 'run',
    '--config.strategy.generations=1',
  )
  assert code is None
  summary = runs.summary(tmp_path / 'run')
  assert summary['evaluations'] == 10
  assert runs.row(summary)['test'] is not None
  # What won is said wherever one looks.
  best = summary['best']
  (row,) = (
    row
    for row in runs.lines(tmp_path / 'run' / 'members.jsonl')
    if row['id'] == best['id']
  )
  assert set(row['recipe']['weights']) == {'expert0', 'expert1', 'expert2'}
  kept = json.loads((tmp_path / 'run' / 'best' / 'recipe.json').read_text())
  assert kept['strategy'] == summary['search']['strategy'] == 'random_search'
  assert row['recipe'] == best['recipe'] == kept['recipe']
  said = (tmp_path / 'run' / 'best' / 'mergekit.yaml').read_text()
  assert 'merge_method: task_arithmetic' in said
  assert 'mergekit.yaml' in kept['mergekit']
  text = (tmp_path / 'run' / 'summary.md').read_text()
  assert f'{row["recipe"]["weights"]["expert1"]:.4g} |' in text


@pytest.fixture(scope='module')
def config(finished):
  """The configuration of the finished run."""
  kept = json.loads((finished[0] / 'config.json').read_text())['config']
  return library.RunConfig.from_config(kept)


def test_a_run_from_python_is_that_of_the_program(finished, config, tmp_path):
  result = library.run(config, tmp_path / 'run')
  assert runs.result(result.path) == runs.result(finished[0])
  assert result.best == result.path / 'best'
  assert '| evolved' in result.table()
  with pytest.raises(errors.UserError, match='a single run'):
    library.run(dataclasses.replace(config, seeds=2), tmp_path / 'two')


def test_runs_share_what_their_settings_share(config, tmp_path, monkeypatch):
  config = dataclasses.replace(
    config,
    dev_limit=20,
    strategy=dataclasses.replace(config.strategy, generations=1),
  )
  cache = {}
  first = preparation.prepare(config, cache=cache)
  strategy = dataclasses.replace(
    config.strategy, options={**config.strategy.options, 'sigma': 0.5}
  )
  other = dataclasses.replace(config, strategy=strategy, seed=3)
  second = preparation.prepare(other, cache=cache)
  assert second.setup is first.setup and second.strategy is first.strategy
  assert second.evaluator is first.evaluator
  assert float(second.params.sigma) == 0.5 != float(first.params.sigma)
  drawn = preparation.prepare(
    dataclasses.replace(config, dev_draw=1), cache=cache
  )
  assert drawn.evaluator.plan is first.evaluator.plan
  assert drawn.evaluator.items('dev') != first.evaluator.items('dev')
  longer = dataclasses.replace(config, objective='minimum')
  assert preparation.prepare(longer, cache=cache).evaluator is not (
    first.evaluator
  )

  one = runner.run_prepared(first, tmp_path / 'one')
  calls = []
  evaluate = Evaluator.evaluate

  def spy(self, space, population, members=None, split='dev', progress=None):
    calls.append(split)
    return evaluate(self, space, population, members, split, progress)

  monkeypatch.setattr(Evaluator, 'evaluate', spy)
  programs = first.evaluator.ledger.programs
  two = runner.run_prepared(second, tmp_path / 'two', share=one)
  assert calls == ['dev', 'dev', 'test'], 'baselines are scored once'
  assert first.evaluator.ledger.programs == programs
  # The same as a run that shares nothing.
  apart = runner.run_prepared(preparation.prepare(other), tmp_path / 'apart')
  assert runs.result(two) == runs.result(apart)
  with pytest.raises(errors.UserError, match='no baselines to share'):
    runner.run_prepared(first, tmp_path / 'three', share=tmp_path)
