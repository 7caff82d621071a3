"""Runs of several searches, on a tiny random model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from evojax_llm import runs as library
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import load_base
from evojax_llm.genomes.space import make_space
from evojax_llm.models import expression
from evojax_llm.population import stack
from evojax_llm.runs import export
from evojax_llm.runs import fields
from evojax_llm.runs import inputs
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import rows
from evojax_llm.runs import staged_run
from evojax_llm.runs import stages as stages_lib
from evojax_llm.runs import sweep_changes
from evojax_llm.runs import sweeps
from evojax_llm.runs.errors import UserError
from tests.experiments import runs

GATES = {
  'space': 'gates',
  'strategy.name': 'random_search',
  'strategy.options': {'concentration': 0.5},
}
AGAIN = {**GATES, 'begin': 'members', 'name': 'again', 'seed': 1}
ES = {
  'begin': 'expert',
  'initial': ('experts',),
  'strategy': {'name': 'low_rank_es', 'population': 1},
  'strategy.options': {'members': 2},
}
FOLDERS = [f'stages/{n}' for n in ('1_random_search', '2_again')]
FOLDERS.append('stages/3_low_rank_es')


@pytest.fixture(scope='module')
def config(settings):
  given = dict(s.removeprefix('--config.').split('=', 1) for s in settings[1:4])
  strategy = {'population': 3, 'generations': 1}
  return library.RunConfig.from_config(
    given | {'strategy': strategy, 'dev_limit': 10, 'test_limit': 6}
  )


def of(config, *stages):
  return dataclasses.replace(config, stages=stages)


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """The folder of a run of three stages."""
  folder = tmp_path_factory.mktemp('stages') / 'run'
  return library.run(of(config, GATES, AGAIN, ES), folder).path


def test_a_run_of_stages_leaves_a_run_folder_each_and_one_table(whole, config):
  summary = runs.summary(whole)
  found = [runs.summary(whole / folder) for folder in FOLDERS]
  assert [one['folder'] for one in summary['stages']] == FOLDERS
  assert [row['name'] for row in summary['rows']] == [
    *(row['name'] for row in found[0]['rows'][:7]),
    *('stage 1', 'stage 2', 'stage 3', 'evolved', 'ensemble of evolved'),
  ]
  for name in ('evaluations', 'tokens', 'failed'):
    assert summary[name] == sum(one[name] for one in found)
  spent = np.cumsum([one['evaluations'] for one in found])
  counts = [runs.row(summary, f'stage {n}')['evaluations'] for n in (1, 2, 3)]
  assert counts == spent.tolist()
  evolved = [runs.row(one)['dev']['fitness']['score'] for one in found]
  best, row = int(np.argmax(evolved)), runs.row(summary)
  assert row['dev']['fitness']['score'] == max(evolved)
  assert row['evaluations'] == spent[-1] == summary['evaluations']
  assert summary['best']['stage'] == FOLDERS[best]
  for file in (whole / 'best').iterdir():
    kept = whole / FOLDERS[best] / 'best' / file.name
    assert file.read_bytes() == kept.read_bytes()
  metrics = runs.lines(whole / 'metrics.jsonl')
  assert [line['generation'] for line in metrics] == list(range(6))
  assert [line['stage'] for line in metrics] == [1, 1, 2, 2, 3, 3]
  fitness = [line['best_fitness'] for line in metrics]
  assert fitness == sorted(fitness) and metrics[-1]['evaluations'] == spent[-1]
  text = (whole / 'summary.md').read_text()
  assert FOLDERS[2] in text and (whole / 'curve.png').stat().st_size
  # A part of a configuration may be a mapping, and other options are dropped.
  kept = json.loads((whole / FOLDERS[2] / 'config.json').read_text())['config']
  assert kept['strategy']['options'] == {'members': 2}
  assert kept['strategy']['generations'] == config.strategy.generations
  # The baseline that learns is one of the first stage.
  assert kept['fine_tuning']['steps'] == 0 < config.fine_tuning.steps


def test_a_stage_begins_with_what_the_one_before_has_left(whole, config):
  first, second = (runs.lines(whole / f / 'members.jsonl') for f in FOLDERS[:2])
  best = runs.summary(whole / FOLDERS[0])['best']
  assert second[0]['operator'] == 'warm_start'
  assert second[0]['recipe'] == best['recipe']
  assert len(first) == len(second)
  kept = [record.read_config(whole / folder) for folder in FOLDERS]
  assert kept[2]['files']['adapters'] == [
    str(whole / FOLDERS[1] / 'best'),
    *kept[0]['files']['adapters'],
  ]
  third = runs.lines(whole / FOLDERS[2] / 'members.jsonl')[0]
  assert third['experts'] == ['best']
  of_second = runs.row(runs.summary(whole / FOLDERS[1]))['dev']['fitness']
  assert third['fitness'] == pytest.approx(of_second['score'], abs=1e-6)
  for name in ('baselines.json', 'baseline_items/0.npz'):
    if (whole / FOLDERS[0] / name).exists():
      texts = [(whole / f / name).read_bytes() for f in FOLDERS[:2]]
      assert texts[0] == texts[1], 'baselines of the same inputs are shared'


def test_its_rows_are_those_of_its_stages(whole, tmp_path, capsys):
  best = runs.summary(whole)['best']['stage']
  for row, folder, there in (
    ('evolved', best, 'evolved'),
    ('vote', best, 'vote'),
    ('stage 3', FOLDERS[2], 'evolved'),
    ('soup', FOLDERS[0], 'soup'),
  ):
    run, name = rows.find(whole, row)
    assert (run.path, name) == (whole / folder, there)
  assert export.export(whole, tmp_path / 'out') == 'adapter'
  assert f'{best}: the stage of this row' in capsys.readouterr().err
  a, b = (
    f / 'adapter_model.safetensors' for f in (whole / 'best', tmp_path / 'out')
  )
  assert a.read_bytes() == b.read_bytes()


def test_a_kill_in_a_stage_goes_on_there(whole, config, tmp_path, monkeypatch):
  folder, staged = tmp_path / 'run', of(config, GATES, AGAIN, ES)
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / FOLDERS[2])
  (folder / 'summary.json').unlink()
  evaluate, left = Evaluator.evaluate, [4]

  def dies(self, *arguments, **options):
    left[0] -= 1
    if not left[0]:  # behind the two of the baselines and generation 0
      raise KeyboardInterrupt
    return evaluate(self, *arguments, **options)

  with monkeypatch.context() as patch:
    patch.setattr(Evaluator, 'evaluate', dies)
    with pytest.raises(KeyboardInterrupt):
      library.run(staged, folder)
  assert len(runs.lines(folder / FOLDERS[2] / 'metrics.jsonl')) == 1
  assert not (folder / 'summary.json').exists()
  with pytest.raises(UserError, match='not finished all of its stages'):
    rows.find(folder, 'evolved')
  with pytest.raises(UserError, match=r'stages.1.seed: None there, 5 here'):
    library.run(of(config, {**GATES, 'seed': 5}, AGAIN, ES), folder)
  moved = folder.rename(tmp_path / 'moved')
  assert library.run(staged, moved).path == moved
  assert runs.result(moved / FOLDERS[2]) == runs.result(whole / FOLDERS[2])
  one, two = (runs.summary(f) for f in (moved, whole))
  assert one['rows'] == two['rows'] and one['best'] == two['best']


def test_the_report_is_made_again_and_a_finished_run_says_so(
  whole, config, tmp_path, capsys
):
  folder, staged = tmp_path / 'run', of(config, GATES, AGAIN, ES)
  shutil.copytree(whole, folder)
  shutil.rmtree(folder / 'best')
  # What it began from is in another place, with the same content.
  whole.rename(whole.with_name('away'))
  try:
    assert library.run(staged, folder).summary == runs.summary(
      whole.with_name('away')
    )
    assert list((folder / 'best').iterdir())
    assert rows.find(folder, 'stage 3')[0].row().members
    capsys.readouterr()
    library.run(staged, folder)
    assert f'{folder} is finished' in capsys.readouterr().err
  finally:
    whole.with_name('away').rename(whole)


def test_the_best_may_be_the_model_of_the_next(whole, config):
  search = stages_lib.split(of(config, GATES))[0]
  files = inputs.locate(search.config)
  former = staged_run._Former(search, files, whole / FOLDERS[0])
  second = stages_lib.split(of(config, GATES, {'begin': 'model'}))[1]
  found = staged_run._files(second, former)
  assert found.model == whole / FOLDERS[0] / 'model'
  assert found.adapters == files.adapters
  assert found.name == f'{files.name}_1_random_search'
  base = make_space('adapters', files.model, [former.best])
  member = base.express(stack.take(base.experts(), 0))
  jax.tree.map(
    lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6),
    load_base(found.model).params,
    expression.fold(base.model().params, member),
  )


def test_a_sweep_takes_changes_of_stages_and_shares_baselines(whole, config):
  staged = of(config, GATES, ES).to_config()
  fields.set_text(staged, 'stages.1.strategy.options.high', '2.5')
  fields.set_text(staged, 'stages.2.strategy.generations', '0')
  with pytest.raises(UserError, match='stages.3.seed; there are 2 stages'):
    fields.set_text(staged, 'stages.3.seed', '1')
  changes = sweep_changes.parse('stages.2.strategy.options.sigma=1,2.0', staged)
  trials = sweep_changes.trials(staged, changes)
  assert [t.name for t in trials] == ['sigma=1', 'sigma=2.0']
  first, second = stages_lib.split(trials[1].config)
  assert first.config.strategy.options == {'concentration': 0.5, 'high': 2.5}
  assert second.config.strategy.options == {'members': 2, 'sigma': 2.0}
  assert second.config.strategy.generations == 0
  assert not sweep_changes.conflicts(*trials)
  plain = [
    dataclasses.replace(t, changes={'seed': i}) for i, t in enumerate(trials)
  ]
  assert sweep_changes.conflicts(*plain) == [
    'stages.2.strategy.options.sigma: 1 there, 2.0 here'
  ]
  done = sweep_changes.Trial(whole.name, of(config, GATES, AGAIN), {})
  known = {done.name: done, trials[0].name: trials[0]}
  shared = sweeps._scored(whole.parent, trials[0], known)
  assert shared == whole / FOLDERS[0]
  assert sweeps._scored(whole.parent, done, known) is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ((GATES, {'space': 'gates'}), "stage 2: got begin=''; .*'members': its"),
    (({'begin': 'model'},), "stage 1: got begin='model'; expected none"),
    (({'sed': 1},), "stage 1: Got unknown config.sed. Did you mean 'seed'"),
    (({'strategy.nam': 1},), 'stage 1: Got unknown config.strategy.nam'),
    (({'seed.x': 1},), 'stage 1: got unknown config.seed.x'),
    ((GATES, {'dev_limit': 3}), 'stage 2: got config.dev_limit.*the same in'),
    (({'format': {'kind': 'x'}},), 'config.format.kind, which is the same'),
    (('gates',), "stage 1: got 'gates'; expected changes by name"),
    (({'strategy.population': 0},), 'stage 1: .*population 0; expected 1'),
    (({'begin': 'best'},), "config.begin 'best'; expected one of"),
  ],
)
def test_what_no_stage_can_be_is_refused_at_once(changes, message):
  with pytest.raises(UserError, match=message):
    library.RunConfig(stages=changes)


@pytest.mark.parametrize(
  ('changes', 'given', 'message'),
  [
    ((GATES, {'begin': 'members'}), {}, 'stage 2 .*and space must not change'),
    (
      (GATES, {**AGAIN, 'adapters': 'pocket'}),
      {},
      'stage 2 .again.*config.adapters must not change',
    ),
    (
      (GATES, {'begin': 'model', 'model': 'pocket', 'adapters': ''}),
      {},
      'leave',
    ),
    (({'space': 'weights'}, {'begin': 'expert'}), {}, 'is a whole model: set'),
    (
      (GATES, {'begin': 'expert', 'strategy.options': {'sigmaa': 1}}),
      {},
      "stage 2 .genome_plus.: .*unknown option 'sigmaa'",
    ),
    ((GATES, ES), {'objective': 'z_score'}, 'stage 2 .*normalised by the exp'),
  ],
)
def test_all_stages_are_checked_before_the_first(
  config, tmp_path, changes, given, message
):
  staged = dataclasses.replace(of(config, *changes), **given)
  with pytest.raises(UserError, match=message):
    library.run(staged, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_stage_is_no_run_of_its_own(whole, config):
  kept = json.loads((whole / FOLDERS[2] / 'config.json').read_text())['config']
  with pytest.raises(
    UserError, match="config.begin='expert', which only a sta"
  ):
    inputs.locate(library.RunConfig.from_config(kept))
  with pytest.raises(UserError, match='expected one search'):
    preparation.prepare(of(config, GATES))
  with pytest.raises(UserError, match='stages names several'):
    dataclasses.replace(of(config, GATES), warm_start='x')


def test_code_that_a_stage_names_is_data_too():
  config = library.RunConfig(stages=({'strategy.name': 'evil.py:Search'},))
  read = json.loads(json.dumps(config.to_dict()))
  assert library.RunConfig.from_config(read) == config
  with pytest.raises(UserError, match='config.stages.1.strategy.name names co'):
    fields.check_code(read, 'config.json')
  for junk in (5, [5], [{}, None]):
    fields.check_code({'stages': junk}, 'config.json')
    with pytest.raises(UserError, match='stage'):
      library.RunConfig.from_config({'stages': junk})


def test_evaluations_are_divided_in_proportion():
  config = library.RunConfig(
    stages=(
      {'strategy': {'evaluations': 100}},
      {'begin': 'members', 'strategy.evaluations': 1},
      {'begin': 'members', 'strategy.evaluations': 50},
    )
  )
  for total, shares in ((151, [100, 1, 50]), (30, [20, 1, 9]), (3, [1, 1, 1])):
    found = stages_lib.divide(config, total, 7)
    assert [one['strategy.evaluations'] for one in found] == shares
    again = dataclasses.replace(config, stages=found)
    assert [
      search.config.strategy.generations for search in stages_lib.split(again)
    ] == [7, 7, 7]
  with pytest.raises(UserError, match='2 evaluations for 3 stages'):
    stages_lib.divide(config, 2, 7)
  with pytest.raises(UserError, match='stage 1: got no config.strategy.eval'):
    stages_lib.divide(library.RunConfig(stages=({},)), 2, 7)
