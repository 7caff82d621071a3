"""Several seeds in a launch, held-out tasks, and runs that begin warm."""

import jax
import numpy as np
import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import checkpoint
from tests import tiny
from tests.experiments import running
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures('shared_reading')


@pytest.fixture(scope='module')
def several(settings, tmp_path_factory):
  """(folder of three seeds, splits that were scored for each)."""
  folder = tmp_path_factory.mktemp('several') / 'run'
  heldout = [
    runs.write_task(folder.parent / f'{n}.json', dev=4, test=8, seed=7 + i)
    for i, n in enumerate('yz')
  ]
  splits = []
  evaluate = Evaluator.evaluate

  def spy(self, space, population, members=None, split='dev', **kwargs):
    splits.append((tuple(task.name for task in self.tasks), split))
    return evaluate(self, space, population, members, split, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Evaluator, 'evaluate', spy)
    code = runs.evolve(
      settings,
      folder,
      '--config.seed=4',
      '--config.seeds=3',
      '--config.strategy.generations=2',
      f'--config.heldout_tasks={heldout[0]},{heldout[1]}',
    )
  assert code == 0
  return folder, splits


def test_seeds_have_folders_and_a_common_summary(several):
  folder, _ = several
  summary = runs.summary(folder)
  (setting,) = summary['settings']
  assert setting['trials'] == ['seed=4', 'seed=5', 'seed=6']
  single = [runs.summary(folder / name) for name in setting['trials']]
  for split in ('dev', 'test', 'heldout'):
    scores = [runs.row(one)[split]['fitness']['score'] for one in single]
    entry = setting[split]
    assert entry['scores'] == scores
    assert entry['mean'] == pytest.approx(np.mean(scores))
    assert entry['sd'] == pytest.approx(np.std(scores, ddof=1))
    assert (entry['lowest'], entry['highest']) == (min(scores), max(scores))
  baselines = {
    (folder / name / 'baselines.json').read_text() for name in setting['trials']
  }
  assert len(baselines) == 1
  members = {
    (folder / name / 'members.jsonl').read_text() for name in setting['trials']
  }
  assert len(members) == 3
  text = (folder / 'summary.md').read_text()
  assert '| evolved' in text
  # All that the runs have in common, not only what a sweep shows.
  assert all(f'| {row["name"]} ' in text for row in summary['baselines'])
  assert 'scaled best expert' in [row['name'] for row in summary['baselines']]


def test_baselines_are_scored_once_and_held_out_tasks_at_the_end(several):
  _, splits = several
  search, heldout = (('a', 'b'), 'dev'), (('y', 'z'), 'dev')
  test = (('a', 'b'), 'test')
  # Two calls for the baselines, one a generation, then both ends.
  each = [search] * 3 + [test, heldout]
  assert splits == [search] * 2 + each * 3


def test_the_best_of_several_seeds_is_exported_by_seed(
  several, tmp_path, capsys
):
  arguments = f'--run={several[0]}', f'--out={tmp_path / "best"}'
  assert running.run_program('export', *arguments) == 1
  assert 'name one of them, seed=4, seed=5, seed=6' in capsys.readouterr().err


def test_held_out_tasks_have_a_column_for_every_row(several):
  folder, _ = several
  summary = runs.summary(folder / 'seed=4')
  for row in summary['rows']:
    tasks = row['heldout']['tasks']
    assert {name: task['items'] for name, task in tasks.items()} == {
      'y': 8,
      'z': 8,
    }
    assert row['heldout']['fitness']['low'] is not None
  assert '| held out ' in (folder / 'seed=4' / 'summary.md').read_text()


def test_one_seed_of_several_is_the_run_of_that_seed(
  several, settings, tmp_path
):
  folder, _ = several
  heldout = ','.join(str(folder.parent / f'{n}.json') for n in 'yz')
  code = runs.evolve(
    settings,
    tmp_path / 'run',
    '--config.seed=6',
    '--config.strategy.generations=2',
    f'--config.heldout_tasks={heldout}',
  )
  assert code is None
  assert runs.result(tmp_path / 'run') == runs.result(folder / 'seed=6')


def test_an_interrupted_launch_goes_on_with_the_seed_that_was_left(
  several, settings, capsys
):
  folder, _ = several
  before = runs.result(folder / 'seed=5')
  (folder / 'seed=5' / 'summary.json').unlink()
  heldout = ','.join(str(folder.parent / f'{n}.json') for n in 'yz')
  code = runs.evolve(
    settings,
    folder,
    '--config.seed=4',
    '--config.seeds=3',
    '--config.strategy.generations=2',
    f'--config.heldout_tasks={heldout}',
  )
  assert code == 0
  told = capsys.readouterr().err
  assert 'trial seed=5' in told and 'seed=4' not in told
  assert 'seed=5, going on after generation 2' in told
  assert runs.result(folder / 'seed=5') == before


@pytest.mark.parametrize('size', [3, 7])
def test_a_warm_run_begins_with_the_best_of_another(
  finished, settings, tmp_path, size
):
  old, _ = finished
  code = runs.evolve(
    settings,
    tmp_path / 'run',
    f'--config.warm_start={old}',
    f'--config.strategy.population={size}',
    '--config.strategy.generations=0',
    '--config.ensemble.size=0',
  )
  assert code is None
  first = runs.lines(tmp_path / 'run' / 'members.jsonl')
  operators = [row['operator'] for row in first]
  warm = operators.count('warm_start')
  # The best, and the rest of the population that is not it.
  assert operators[:warm] == ['warm_start'] * warm and 3 <= warm <= size
  assert operators[warm:] == ['expert', 'expert', 'expert'][: size - warm]
  # The same tasks and items: the same fitness.
  assert first[0]['fitness'] == pytest.approx(
    runs.summary(old)['best']['fitness'], abs=1e-6
  )
  _, before = checkpoint.Checkpoints(old / 'checkpoints').read()
  _, after = checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints').read()
  jax.tree.map(
    lambda best, population: np.testing.assert_array_equal(best, population[0]),
    before['strategy']['memory']['best'],
    after['strategy']['population'],
  )


def test_what_does_not_match_is_refused_with_words(
  finished, several, settings, tmp_path, capsys, tiny_adapter_folders
):
  old, _ = finished
  other = tiny_adapter_folders(3, 'gemma2', alpha=16, modules=tiny.FEW_MODULES)
  untested = runs.write_task(tmp_path / 'untested.json', dev=4, test=0, seed=9)
  for flags, words in (
    (
      [f'--config.warm_start={tmp_path}'],
      'is not the folder of a finished run',
    ),
    ([f'--config.warm_start={old}', '--config.space=gates'], 'genomes'),
    (
      [
        f'--config.warm_start={old}',
        f'--config.adapters={",".join(map(str, other))}',
      ],
      'over other experts',
    ),
    ([f'--config.warm_start={several[0]}'], 'name the folder of one'),
    (
      ['--config.heldout_tasks=' + settings[3].split('=')[1].split(',')[0]],
      'which the search sees',
    ),
    (['--config.seeds=0'], 'config.seeds 0'),
    ([f'--config.heldout_tasks={untested}'], 'has no test items'),
    (
      ['--config.racing.rule=halving', '--config.objective=minimum'],
      'leave racing off',
    ),
    (
      ['--config.estimate.rule=pirt', '--config.estimate.anchors=2.5'],
      'config.estimate: Got anchors 2.5',
    ),
  ):
    assert runs.evolve(settings, tmp_path / 'run', *flags) == 1
    message = capsys.readouterr().err
    assert words in message and 'Traceback' not in message
    assert not (tmp_path / 'run').exists()
