"""Estimates of scores against the formulas, and on simulated members."""

import dataclasses

import numpy as np
import pytest

from evojax_llm.fitness import estimates
from evojax_llm.fitness import item_response
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.fitness.objectives import make_objective

ITEMS = item_response.Items(
  np.array([[1.0], [0.5], [2.0], [1.0]]), np.array([0.0, -1.0, 1.0, 0.5])
)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def make(rule, **options):
  """An estimator of four items, of which the first and the third are asked."""
  return estimates.TaskEstimator(
    estimates.Rules(rule, anchors=2, **options),
    ITEMS,
    np.array([0, 2]),
    np.array([0.25, 0.75]),
    np.array([[1.0], [-1.0]]),
  )


def test_rules_are_what_their_formulas_say():
  answers = np.array([[1.0, 0.0], [1.0, 1.0]])
  found = {rule: make(rule, delta=0.3)(answers) for rule in estimates.RULES}
  np.testing.assert_allclose(found['mean'], [0.5, 1.0])
  np.testing.assert_allclose(found['weighted'], [0.25, 1.0])
  asked = ITEMS.take(np.array([0, 2]))
  for rule, theta in (
    ('pirt', item_response.abilities(asked, answers)),
    ('mpirt', item_response.mixed(asked, answers, np.array([[1.0], [-1.0]]))),
  ):
    unseen = (sigmoid(0.5 * theta + 1) + sigmoid(theta - 0.5))[:, 0] / 2
    np.testing.assert_allclose(
      found[rule], 0.5 * found['weighted'] + 0.5 * unseen, rtol=1e-9
    )
  assert (np.abs(found['pirt'] - found['mpirt']) > 1e-4).all()
  np.testing.assert_allclose(
    found['gmpirt'], 0.3 * found['weighted'] + 0.7 * found['mpirt']
  )


def test_where_all_is_asked_nothing_is_estimated():
  values = np.array([[1.0, 0.0, 1.0, 0.0], [0, 0, 1, 0]])
  rules = estimates.Rules('pirt', anchors=1000)
  made = estimates.make(rules, values, [0, 1])
  np.testing.assert_array_equal(made.anchors, range(4))
  np.testing.assert_allclose(made(values), values.mean(axis=1))


def simulated(members, items, seed=0):
  rng = np.random.default_rng(seed)
  asked = item_response.Items(
    np.maximum(0.3, 1 + 0.4 * rng.normal(size=(items, 1))),
    1.5 * rng.normal(size=items),
  )
  p = asked.probabilities(rng.normal(size=(members, 1)))
  return (rng.random(p.shape) < p).astype(float)


def test_estimates_of_few_items_are_nearer_than_their_means():
  values = simulated(60, 200)
  known, new = values[:17], values[17:]
  off = {}
  for rule in estimates.RULES:
    off[rule] = []
    for seed in range(8):
      rules = estimates.Rules(rule, anchors=0.06, seed=seed)
      made = estimates.make(rules, known, range(1, 11))
      assert len(made.anchors) == 12
      found = made(new[:, made.anchors])
      error = estimates.error(found, new.mean(axis=1))
      assert error['members'] == 43 and error['rank_correlation'] > 0.4
      off[rule].append(error['mean_absolute'])
  off = {rule: np.mean(values) for rule, values in off.items()}
  assert off['weighted'] == pytest.approx(off['mean'])
  assert off['pirt'] < 0.85 * off['mean']
  assert off['mpirt'] < off['gmpirt'] < off['mean']


def test_experts_are_left_out_of_what_estimates_them():
  values = simulated(8, 40)
  rules = estimates.Rules('mpirt', anchors=8)
  experts = [1, 3, 4]
  made = estimates.make(rules, values, experts)
  found = estimates.left_out(made, values, experts)
  # What an expert did on items that are not asked changes nothing for it.
  other = values.copy()
  rest = np.setdiff1d(np.arange(40), made.anchors)
  other[3, rest] = 1 - other[3, rest]
  again = estimates.left_out(made, other, experts)
  assert again[1] == pytest.approx(found[1], abs=1e-6)
  assert abs(again[0] - found[0]) > 1e-5
  plain = dataclasses.replace(made, rules=estimates.Rules('mean', anchors=8))
  np.testing.assert_allclose(
    estimates.left_out(plain, values, experts),
    values[experts][:, made.anchors].mean(axis=1),
  )


def test_anchors_are_drawn_by_seed_and_task():
  def draw(task=0, **options):
    rules = estimates.Rules('mean', anchors=0.25, **options)
    items = item_response.Items(np.ones((30, 1)), np.arange(30.0))
    return estimates.draw(rules, items, task)

  (one, weights), (same, _) = draw(), draw()
  np.testing.assert_array_equal(one, same)
  assert len(set(one.tolist())) == len(one) == 8 and (np.diff(one) > 0).all()
  np.testing.assert_allclose(weights, 1 / 8)
  for other in (draw(task=1), draw(seed=1)):
    assert other[0].tolist() != one.tolist()


def test_clusters_have_the_weights_of_their_sizes():
  # Three kinds of items, and of the third all are alike.
  difficulties = np.array([-5.0, -5.1, -4.9, -5.05, 3.0, 3.1, 9.0, 9.0, 9.0])
  items = item_response.Items(np.ones((9, 1)), difficulties)
  for seed in range(5):
    rules = estimates.Rules('weighted', 3, draw='clustered', seed=seed)
    anchors, weights = estimates.draw(rules, items)
    kinds = np.searchsorted([0, 5], difficulties[anchors])
    np.testing.assert_array_equal(kinds, [0, 1, 2])
    np.testing.assert_allclose(weights, [4 / 9, 2 / 9, 3 / 9])
  alike = item_response.Items(np.ones((5, 1)), np.zeros(5))
  anchors, weights = estimates.draw(rules, alike)
  assert len(set(anchors.tolist())) == 3 and weights.sum() == pytest.approx(1)


def test_scores_are_estimates_and_answers_stay():
  answers = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
  result = TaskItems(
    'a', 'accuracy', True, True, ['x', 'y'], answers, [[None] * 2] * 3
  )
  failed = np.array([0.5, 1.0, np.nan], np.float32)
  scores = Evaluation(failed, failed[:, None], [result], [None, None, 'nan'])
  objective = make_objective('minimum', np.ones(1, np.float32), [Share])
  estimator = estimates.Estimator([make('weighted')])
  assert estimator.anchors == [[0, 2]]
  found = estimator.apply(scores, objective)
  np.testing.assert_array_equal(found.fitness, [0.25, 1.0, np.nan])
  np.testing.assert_array_equal(found.task_scores[:, 0], found.fitness)
  assert found.tasks[0].values is answers and found.reasons[2] == 'nan'


class Share:
  """A score that can be estimated, as scorers are."""

  metric, maximise, percent, corpus = 'share', True, True, False


@pytest.mark.parametrize(
  'rules, scorer, experts, message',
  [
    ({}, {'corpus': True}, 2, "'gmpirt' for share; expected a score that is"),
    ({}, {'maximise': False}, 2, 'mean of shares of right answers'),
    ({}, {'percent': False}, 2, 'mean of shares of right answers'),
    ({}, {}, 1, "for 1 expert; expected two or more to combine. 'pirt'"),
    ({'anchors': 2.5}, {}, 2, 'anchors 2.5; expected a share below 1 or a'),
    ({'rule': 'irt'}, {}, 2, "rule 'irt' and draw 'random'; expected one of"),
    ({'draw': 'all'}, {}, 2, "draw 'all'; expected one of"),
  ],
)
def test_what_cannot_be_estimated_is_refused(rules, scorer, experts, message):
  with pytest.raises(ValueError, match=message):
    made = estimates.Rules(**{'rule': 'gmpirt', **rules})
    estimates.check(made, [Share, type('Other', (Share,), scorer)], experts)


GOOD = {'slopes': [1.0, 0.5], 'difficulty': -1}


@pytest.mark.parametrize(
  'content, message',
  [
    ([], 'tasks is missing'),
    ({'tasks': {'b': 1}}, r'tasks\.a is missing or no object'),
    ({'tasks': {'a': {}}}, r'tasks\.a\.items is missing'),
    ({'x': GOOD}, r"tasks\.a\.items lacks 1 of the 2 dev items, such as 'y'"),
    ({'x': GOOD, 'y': 3}, r'items\.y is 3; expected slopes, 2 numbers, and'),
    ({'x': {**GOOD, 'slopes': []}, 'y': GOOD}, r'items\.x is .* a list of num'),
    ({'x': GOOD, 'y': {**GOOD, 'slopes': [1.0]}}, r'items\.y .*, 2 numbers'),
    ({'x': GOOD, 'y': {**GOOD, 'difficulty': None}}, r'items\.y is'),
    ({'x': GOOD, 'y': {**GOOD, 'slopes': [1, np.nan]}}, r'items\.y is'),
  ],
)
def test_a_file_of_parameters_is_checked(content, message):
  if 'x' in content:
    content = {'tasks': {'a': {'items': content}}}
  with pytest.raises(ValueError, match=message):
    estimates.items_of(content, 'a', ['x', 'y'])


def test_a_file_of_parameters_is_read_in_the_order_of_the_items():
  content = {'tasks': {'a': {'items': {'y': {**GOOD, 'difficulty': 2}}}}}
  content['tasks']['a']['items']['x'] = GOOD
  found = estimates.items_of(content, 'a', ['x', 'y'])
  np.testing.assert_array_equal(found.slopes, [[1.0, 0.5]] * 2)
  np.testing.assert_array_equal(found.difficulties, [-1.0, 2.0])


def test_errors_count_what_both_have():
  found = estimates.error(np.array([1.0, 2, 4, 3]), np.array([1, 1, 2, np.nan]))
  assert found == {
    'members': 3,
    'mean_absolute': pytest.approx(1.0),
    'rank_correlation': pytest.approx(np.sqrt(3) / 2),
  }
  none = estimates.error(np.array([np.nan]), np.array([1.0]))
  assert none['members'] == 0 and none['mean_absolute'] is None
  assert estimates.error(np.ones(2), np.ones(2))['rank_correlation'] is None
