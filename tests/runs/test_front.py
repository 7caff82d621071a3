"""The front of a run: what it holds, and which of its members is chosen."""

import json
import shutil

import numpy as np
import pytest

from evojax_llm import systems
from evojax_llm.fitness import further
from evojax_llm.operators import pareto
from evojax_llm.runs import fields
from evojax_llm.runs import front
from evojax_llm.runs import preparation
from evojax_llm.runs import rows
from tests.experiments import runs
from tests.experiments.running import run_program

pytestmark = pytest.mark.usefixtures('shared_reading')
SCORES = np.float32(
  [[0.0, 1.0, 0.2], [0.7, 0.7, 0.2], [1.0, 0.2, 0.2], [0.4, 0.8, 0.2]]
)


@pytest.mark.parametrize(
  'rule, chosen',
  [
    ('knee', 1),
    ('chebyshev', 1),
    ('mean', 3),
    ('best_of:a', 2),
    ('best_of:b', 0),
    # All are equal on it: by fitness.
    ('best_of:c', 3),
  ],
)
def test_rules_choose_one_of_the_front(rule, chosen):
  fitness = np.float32([0.1, 0.2, 0.3, 0.4])
  ids = [4, 3, 2, 1]
  found = front.choose(rule, SCORES, ('a', 'b', 'c'), fitness, ids)
  assert found == chosen
  # Of equal ones the eldest, in any order.
  twice = np.concatenate([SCORES, SCORES])
  found = front.choose(
    rule, twice, ('a', 'b', 'c'), np.tile(fitness, 2), [14, 13, 12, 11, *ids]
  )
  assert found == chosen + 4


def test_one_member_is_chosen_by_every_rule():
  for rule in (*front.RULES, 'best_of:a'):
    assert front.choose(rule, SCORES[:1], 'abc', np.zeros(1), [7]) == 0


@pytest.fixture(scope='module')
def made(tmp_path_factory, settings):
  """Flags and folder of a run over a task of options and one of answers."""
  folder = tmp_path_factory.mktemp('front')
  rows = [{'question': f'say {i}', 'answer': 'x'} for i in range(16)]
  splits = {'dev': rows[:10], 'test': rows[10:]}
  form = {'kind': 'rouge_l', 'max_new_tokens': 3}
  told = folder / 'told.json'
  told.write_text(json.dumps({**splits, 'format': form}))
  choice = runs.write_task(folder / 'choice.json', 12, 6)
  flags = [
    '--config=nsga2+low=-2.0',
    *settings[1:3],
    f'--config.tasks={choice},{told}',
    '--config.strategy.population=5',
    '--config.strategy.generations=2',
    '--config.pareto.objectives=length,distance',
    '--config.pareto.exports=2',
    '--config.ensemble.size=0',
  ]
  assert runs.evolve(flags, folder / 'run') is None
  return flags, folder / 'run'


def test_a_run_ends_with_its_front(made):
  _, folder = made
  content = json.loads((folder / 'front.json').read_text())
  members = {row['id']: row for row in runs.lines(folder / 'members.jsonl')}
  names = ['choice', 'told', 'length', 'distance']
  maximised = np.array([True, True, False, False])
  assert list(content['maximised'].values()) == maximised.tolist()
  every = {
    id_: np.array([*row['tasks'].values(), *row['objectives'].values()])
    for id_, row in members.items()
  }
  lengths = [row['objectives']['length'] for row in members.values()]
  assert 0.0 < min(lengths) and max(lengths) <= 3.0
  # The base is one of the first population.
  zero = [r for r in members.values() if r['operator'] == 'zero']
  assert [r['objectives']['distance'] for r in zero] == [0.0]

  shown = [row['id'] for row in content['members']]
  points = []
  for row in content['members']:
    own = members[row['id']]
    assert (row['tasks'], row['objectives']) == (
      own['tasks'],
      own['objectives'],
    )
    sign = np.where(maximised, 1.0, -1.0)
    ours = sign * every[row['id']]
    points.append(ours)
    for other in every.values():
      beaten = np.all(sign * other >= ours) and np.any(sign * other > ours)
      assert not beaten
  assert len({tuple(p) for p in points}) == len(points)
  point = content['reference']
  assert list(point) == names
  assert (point['choice'], point['told']) == (0.0, 0.0)
  first = [every[id_] for id_ in range(5)]
  assert point['length'] == max(values[2] for values in first)
  volume = pareto.hypervolume(
    np.array(points), np.array(list(point.values())) * sign
  )
  assert content['hypervolume'] == pytest.approx(volume)
  rows = runs.lines(folder / 'metrics.jsonl')
  assert rows[-1]['monitors']['hypervolume'] == pytest.approx(volume)
  assert set(rows[0]['best_objectives']) == {'length', 'distance'}

  summary = runs.summary(folder)
  assert summary['best']['id'] == content['chosen'] in shown
  assert [row['id'] for row in summary['front']] == shown
  page = (folder / 'summary.md').read_text()
  assert 'The rule `knee` chose member' in page and '(front.png)' in page


def test_members_of_the_front_are_exported_and_the_chosen_is_best(
  made, tmp_path
):
  _, folder = made
  content = json.loads((folder / 'front.json').read_text())
  kept = [row for row in content['members'] if row['folder']]
  assert 1 <= len(kept) <= 2
  assert {p.name for p in (folder / 'front').iterdir()} == {
    str(row['id']) for row in kept
  }
  name = 'adapter_model.safetensors'
  chosen = (folder / 'front' / str(content['chosen']) / name).read_bytes()
  assert chosen == (folder / 'best' / name).read_bytes()
  # A row is made again from the checkpoint, where fitness says who is best.
  row = rows.Run.open(folder).row()
  (weights,) = np.asarray(row.genomes['gates'])
  recipe = runs.summary(folder)['best']['recipe']
  np.testing.assert_allclose(weights, list(recipe['weights'].values()), 1e-6)
  out = f'--out={tmp_path / "out"}'
  assert run_program('export', f'--run={folder}', out) is None
  assert (tmp_path / 'out' / name).exists()


def test_a_run_goes_on_to_the_same_front(made, capsys):
  flags, folder = made
  before = runs.result(folder), (folder / 'front.json').read_text()
  (folder / 'front.json').unlink()
  shutil.rmtree(folder / 'checkpoints' / '2')
  assert runs.evolve(flags, folder) is None
  said = capsys.readouterr().err
  assert 'front.json of' in said and 'going on after generation 1' in said
  assert (runs.result(folder), (folder / 'front.json').read_text()) == before


def test_another_run_begins_with_the_chosen_member(made):
  flags, folder = made
  flags = [flag.removeprefix('--config.') for flag in flags[1:]]
  config = systems.load('nsga2')
  for name, _, value in (flag.partition('=') for flag in flags):
    fields.set_text(config, name, value)
  config.warm_start, config.strategy.options.low = str(folder), -2.0
  prepared = preparation.prepare(config)
  assert prepared.warm.members.ids[0] == runs.summary(folder)['best']['id']


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config.pareto.objectives=size'], "objective 'size'; expected one of"),
    (['--config.pareto.objectives=length,length'], 'each name once'),
    (['--config.pareto.objectives=length'], 'no answer is generated'),
    (['--config.pareto.choice=kne'], "Did you mean 'knee'?"),
    (['--config.pareto.choice=best_of:z'], "Did you mean 'best_of:b'?"),
    (['--config.racing.rule=paired'], 'config.racing stops members by their'),
    (['--config.estimate.rule=mean'], 'leave config.estimate off'),
    (
      ['--config=genome', '--config.pareto.objectives=distance'],
      'genome, which seeks no front',
    ),
  ],
)
def test_what_cannot_be_is_refused(settings, tmp_path, capsys, flags, words):
  first = [] if flags[0].startswith('--config=') else ['--config=nsga2']
  given = [*first, *flags, *settings[1:]]
  given.sort(key=lambda flag: not flag.startswith('--config='))
  assert runs.evolve(given, tmp_path / 'run') == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ') and words in error
  assert not (tmp_path / 'run').exists()


def test_a_task_of_the_name_of_an_objective_is_refused():
  class Task:
    name = 'distance'

  with pytest.raises(ValueError, match='a task of this name'):
    further.check(('distance',), [Task()], None)
