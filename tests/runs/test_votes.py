"""Ensembles in a run: who is in them, and what the report says of them."""

import json

import numpy as np
import pytest

from evojax_llm.fitness import ensembles
from evojax_llm.fitness.item_log import ItemLog
from tests.experiments import runs

EXPERTS, EVOLVED = 'ensemble of experts', 'ensemble of evolved'


def vote(values, said):
  """Share of items that a plurality of members has right; ties to the first."""
  right = 0
  for i in range(values.shape[1]):
    counts = {}
    for answer in said[:, i]:
      counts[answer] = counts.get(answer, 0) + 1
    winner = max(counts, key=counts.get)
    right += values[list(said[:, i]).index(winner), i]
  return right / values.shape[1]


def test_the_members_are_the_best_by_dev_and_their_number_is_chosen_on_dev(
  finished,
):
  folder, _ = finished
  summary = runs.summary(folder)
  made = summary['ensembles'][EVOLVED]
  by_id = {
    row['id']: row
    for row in map(
      json.loads, (folder / 'members.jsonl').read_text().splitlines()
    )
  }
  fitness = [by_id[i]['fitness'] for i in made['members']]
  assert made['members'][0] == summary['best']['id']
  assert fitness == sorted(fitness, reverse=True)
  sizes = np.round(made['dev_fitness_by_size'], 6)
  assert len(made['members']) == int(np.argmax(sizes)) + 1
  row = runs.row(summary, EVOLVED)
  assert row['dev']['fitness']['score'] == pytest.approx(max(sizes), abs=1e-5)
  size = len(made['members'])
  alone = 'no vote: 1 is best alone'
  assert row['detail'] == (f'vote of {size}' if size > 1 else alone)
  # The log has the answers: nobody is scored again for it.
  assert row['evaluations'] == summary['evaluations']


@pytest.mark.parametrize('name', [EXPERTS, EVOLVED])
def test_its_scores_are_those_of_a_vote(finished, name):
  folder, _ = finished
  summary = runs.summary(folder)
  made = summary['ensembles'][name]
  (tested,) = ItemLog(folder / 'test_items').read()
  if name == EVOLVED:
    wanted = [f'member {i}' for i in made['members']]
    results = ensembles.gather(
      ItemLog(folder / 'items').read(), made['members']
    )
  else:
    names = ['expert0', 'expert1', 'expert2']
    best = runs.row(summary, 'best expert')['detail']
    wanted = [
      'best expert' if names[i] == best else f'expert {names[i]}'
      for i in made['members']
    ]
    first = ItemLog(folder / 'baseline_items').read()
    results = ensembles.gather(first, [1 + i for i in made['members']])
  places = [summary['tested'].index(w) for w in wanted]
  row = runs.row(summary, name)
  for dev, test in zip(results, tested.tasks, strict=True):
    scores = row['dev']['tasks'], row['test']['tasks']
    for tasks, values, said in zip(
      scores,
      (dev.values, test.values[places]),
      (dev.predictions, test.predictions[places]),
      strict=True,
    ):
      assert tasks[dev.task]['score'] == pytest.approx(
        vote(values, said), abs=1e-5
      )
  bound = np.mean([t.values[places].max(axis=0).mean() for t in tested.tasks])
  assert made['oracle']['test'] == pytest.approx(bound, abs=1e-6)


def test_the_oracle_is_called_what_it_is(finished):
  text = (finished[0] / 'summary.md').read_text()
  assert text.count('An oracle that knows which of them is right') == 2
  assert text.count('a bound, and no result') == 2


def test_without_an_ensemble_there_is_no_row(settings, tmp_path):
  code = runs.evolve(
    settings,
    tmp_path / 'run',
    '--config.ensemble.size=0',
    '--config.strategy.generations=0',
    '--config.test_experts=True',
  )
  assert code is None
  summary = runs.summary(tmp_path / 'run')
  assert not summary['ensembles']
  assert [row['name'] for row in summary['rows']][-1] == 'evolved'
  # All experts are read; the best of them is there already.
  assert sum(name.startswith('expert') for name in summary['tested']) == 2


def test_a_rule_that_is_not_there_is_refused(settings, tmp_path, capsys):
  flag = '--config.ensemble.rule=mean'
  assert runs.evolve(settings, tmp_path / 'run', flag) == 1
  assert "rule 'mean'" in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_seeds_vote_and_items_held_back_pick_from_them_and_their_means(
  settings, tmp_path
):
  runs.evolve(
    ['--config=experiments/randopt/config.py:corp', *settings[1:]],
    tmp_path / 'run',
    '--config.strategy.population=4',
    '--config.strategy.generations=3',
    '--config.strategy.options.members=12',
    '--config.strategy.options.keep=5',
    '--config.strategy.options.means=2',
    '--config.ensemble.size=4',
    '--config.pick_items=6',
  )
  summary = runs.summary(tmp_path / 'run')
  rows = runs.lines(tmp_path / 'run' / 'members.jsonl')
  made = [row['operator'] for row in rows if row['generation']]
  assert made == ['noise'] * 12 + ['gated mean'] * 2
  # Four vote, whatever dev says; each is one of those that were scored best.
  voters = summary['ensembles'][EVOLVED]['members']
  fitness = {row['id']: row['fitness'] for row in rows}
  assert len(voters) == 4
  assert sorted(fitness.values())[-1] == fitness[voters[0]]
  assert runs.row(summary, EVOLVED)['detail'] == 'vote of 4'
  # Scored, and asked again on the items held back.
  assert summary['evaluations'] > 4 + 14
