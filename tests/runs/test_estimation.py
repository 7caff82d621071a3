"""Runs whose fitness is estimated from few dev items, from end to end."""

import contextlib
import json

import jax
import numpy as np
import pytest

from evojax_llm import systems
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import checkpoint
from evojax_llm.runs import estimation
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import rows
from evojax_llm.runs import runner
from evojax_llm.runs.errors import UserError
from tests import tiny
from tests.experiments import runs

DEV, ANCHORS = 30, 6


@pytest.fixture(scope='module')
def again(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  """again(folder) makes a run, or goes on with it, compiled once."""
  task = runs.write_task(tmp_path_factory.mktemp('tasks') / 'a.json', DEV, 0)
  adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  config, cache = systems.load('random_search'), {}
  config.model, config.tasks = str(tiny_gemma_folder('gemma2')), str(task)
  config.adapters = ','.join(map(str, adapters))
  config.strategy.population, config.strategy.generations = 5, 2
  config.estimate.update(rule='gmpirt', anchors=0.2, finalists=4)
  config.ensemble.size = 3

  def run(folder):
    runner.run_prepared(preparation.prepare(config, cache=cache), folder)
    return folder

  return run


class Killed(BaseException):
  pass


@pytest.fixture(scope='module')
def estimated(again, tmp_path_factory):
  """A run that was killed after generation 1, and went on."""
  folder, saved = tmp_path_factory.mktemp('estimated') / 'run', []
  save = checkpoint.Checkpoints.save

  def fail(*args, **kwargs):
    saved.append(args)
    if len(saved) == 2:
      raise Killed
    return save(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', fail)
    with pytest.raises(Killed):
      again(folder)
  return again(folder)


def test_members_are_asked_the_anchors_and_finalists_all(estimated):
  summary = runs.summary(estimated)
  found, rule = summary['estimate'], 'gmpirt'
  assert (found['rule'], found['anchors'], found['items']) == (rule, 6, DEV)
  scored = summary['evaluations']
  assert found['asked'] == scored * ANCHORS + 4 * DEV
  assert found['of'] == scored * DEV
  assert found['saving'] == pytest.approx(1 - found['asked'] / found['of'])
  assert found['error']['experts']['members'] == 3
  finalists = found['finalists']
  off = np.abs(np.subtract(finalists['estimated'], finalists['scored'])).mean()
  assert found['error']['finalists']['mean_absolute'] == pytest.approx(off)
  text = (estimated / 'summary.md').read_text()
  assert f'{100 * found["saving"]:.1f} % saved' in text
  # What they said is kept, of the anchors alone.
  learnt = json.loads((estimated / 'estimate.json').read_text())['tasks']['a']
  for generation in ItemLog(estimated / 'items').read():
    assert generation.tasks[0].ids == learnt['ids']
  assert len(learnt['ids']) == ANCHORS and len(learnt['items']) == DEV


def test_the_best_is_chosen_by_its_scores_on_all(estimated):
  summary = runs.summary(estimated)
  finalists, best = summary['estimate']['finalists'], summary['best']
  place = int(np.argmax(finalists['scored']))
  assert best['id'] == finalists['members'][place]
  assert best['fitness'] == finalists['scored'][place]
  evolved = runs.row(summary)
  score = evolved['dev']['fitness']['score']
  assert score == pytest.approx(best['fitness'], abs=1e-5)
  assert evolved['evaluations'] == summary['evaluations'] + 4
  born = {
    row['id']: row['generation']
    for row in runs.lines(estimated / 'members.jsonl')
  }
  assert best['generation'] == born[best['id']]
  # The same member is what `export` and `score` take.
  run = rows.Run.open(estimated)
  _, members = run._best(4)
  genome = stack.take(members.population, place)
  jax.tree.map(
    np.testing.assert_array_equal, genome, stack.take(run.row().genomes, 0)
  )
  # Voters are finalists with scores that are known.
  votes = summary['ensembles']['ensemble of evolved']
  scores = dict(zip(finalists['members'], finalists['scored'], strict=True))
  for member, fitness in zip(votes['members'], votes['fitness'], strict=True):
    assert scores[member] == pytest.approx(fitness)


def test_the_same_comes_of_an_unbroken_run(estimated, again, tmp_path):
  again(tmp_path / 'run')
  assert runs.result(tmp_path / 'run') == runs.result(estimated)
  kept = [p / 'estimate.json' for p in (estimated, tmp_path / 'run')]
  assert kept[0].read_bytes() == kept[1].read_bytes()


@pytest.mark.parametrize(
  'change, message',
  [
    ('whole', None),
    ('cut', r"lacks 1 of the 30 dev items, such as '0'"),
    ('gone', r'no such file'),
  ],
)
def test_what_items_ask_may_be_given(estimated, tmp_path, change, message):
  file = tmp_path / 'items.json'
  known = json.loads((estimated / 'estimate.json').read_text())
  items = known['tasks']['a']['items']
  if change == 'cut':
    del items['0']
  if change != 'gone':
    file.write_text(json.dumps(known))
  config = json.loads((estimated / 'config.json').read_text())['config']
  config['estimate']['parameters'] = str(file)
  if message:
    with pytest.raises(UserError, match=rf'{file}.*{message}'):
      preparation.prepare(config)
    return
  prepared = preparation.prepare(config)
  (given,) = prepared.estimate.given
  wanted = [entry['difficulty'] for entry in items.values()]
  np.testing.assert_array_equal(given.difficulties, wanted)
  assert isinstance(prepared.inputs['estimate'], str)
  # The experts have other abilities on other items.
  for entry in items.values():
    entry['difficulty'] += 1.0
  file.write_text(json.dumps(known))
  other = preparation.prepare(config)
  assert other.inputs['estimate'] != prepared.inputs['estimate']
  with contextlib.closing(folder_of(estimated, tmp_path, other)) as run:
    baselines = baselines_lib.score_baselines(run, other, None)
    made = estimation.prepare(run, other, baselines).estimator.tasks[0]
  first = known['tasks']['a']['abilities'].values()
  assert (made.experts[:, 0] > np.ravel(list(first)) + 0.1).all()
  np.testing.assert_array_equal(made.items.difficulties, np.add(wanted, 1.0))


def folder_of(other, path, prepared):
  """A run folder that has the baselines of another run."""
  run = record.RunFolder(path / 'run', prepared.config.to_dict())
  baselines_lib.share(other, run.path)
  return run


def test_an_expert_that_failed_is_no_part_of_it(estimated, tmp_path):
  config = json.loads((estimated / 'config.json').read_text())['config']
  prepared = preparation.prepare(config)
  with contextlib.closing(folder_of(estimated, tmp_path, prepared)) as run:
    kept = baselines_lib.score_baselines(run, prepared, None)
    scores = kept.expert_scores.copy()
    scores[1] = np.nan
    part = kept._replace(expert_scores=scores)
    made = estimation.prepare(run, prepared, part)
    assert made.experts['members'] == 2
    assert len(made.estimator.tasks[0].experts) == 2
    # It is kept, and made anew where it is damaged.
    (run.path / 'estimate.json').write_text('{"tasks": {}}')
    assert estimation.prepare(run, prepared, part).experts == made.experts
    (run.path / 'estimate.json').unlink()
    scores[0] = np.nan
    with pytest.raises(UserError, match='1 of the 3 experts could be scored'):
      estimation.prepare(run, prepared, part)
