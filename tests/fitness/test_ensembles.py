import dataclasses

import numpy as np
import pytest

from evojax_llm.fitness import ensembles
from evojax_llm.fitness.item_log import GenerationItems
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.tasks.scorers import exact
from evojax_llm.tasks.scorers import measures
from evojax_llm.tasks.scorers import options
from evojax_llm.tasks.task import Item

FITNESS = np.asarray([0.9, 0.5, 0.45])


def one_item(*answers):
  return [[answer] for answer in answers]


@pytest.mark.parametrize(
  'answers, rule, stands',
  (
    (('A', 'B', 'B'), 'majority', 1),
    (('A', 'B', 'B'), 'weighted', 1),  # 0.95 against 0.9
    (('A', 'B', 'C'), 'majority', 0),  # a tie goes to the best by dev
    (('A', 'B', None), 'majority', 0),
    ((None, 'B', 'C'), 'majority', 1),
    ((None, None, None), 'majority', 0),
    (('', 'B', 'B'), 'majority', 1),  # an empty answer is an answer
    (('the cat sat', 'a dog ran', 'the cat sits'), 'medoid', 0),
    (('a dog ran', 'the cat sat', 'the cat sits'), 'medoid', 1),
    ((None, 'x', 'y'), 'medoid', 1),
    ((None, None, None), 'medoid', 0),
  ),
)
def test_who_stands(answers, rule, stands):
  assert ensembles.RULES[rule](one_item(*answers), FITNESS).tolist() == [stands]


def test_two_together_outvote_the_best_only_if_they_weigh_more():
  answers = one_item('A', 'B', 'B')
  weak = np.asarray([0.9, 0.4, 0.4])
  assert ensembles.weighted(answers, weak).tolist() == [0]
  failed = np.asarray([0.9, np.nan, -1.0])
  assert ensembles.weighted(answers, failed).tolist() == [0]


@pytest.mark.parametrize('rule', ensembles.RULES)
def test_alone_a_member_decides(rule):
  predictions = [['A', None, '7']]
  stands = ensembles.RULES[rule](predictions, np.asarray([0.5]))
  assert stands.tolist() == [0, 0, 0]


ITEMS = [[Item(str(i), '', 'A') for i in range(2)]]


def make_group(predictions, values, fitness):
  values = np.asarray(values, np.float32)
  result = TaskItems(
    task='t',
    metric='accuracy',
    maximise=True,
    binary=True,
    ids=['0', '1'],
    values=values,
    predictions=np.asarray(predictions, object),
    asked=np.ones(values.shape, bool),
  )
  scores = values.mean(axis=1, keepdims=True)
  return ensembles.Group(np.asarray(fitness, np.float32), scores, [result])


def test_size_is_chosen_by_dev_and_the_smallest_of_equals():
  # Members 1 and 2 agree on what member 0 gets wrong; member 3 adds nothing.
  group = make_group(
    [['A', 'A'], ['B', 'A'], ['B', 'A'], ['C', 'C']],
    [[0, 1], [1, 1], [1, 1], [0, 0]],
    [0.9, 0.8, 0.7, 0.1],
  )
  size, by_size = ensembles.choose_size(
    'auto', group, [exact.ExactMatch()], ITEMS, lambda scores: scores[:, 0]
  )
  assert size == 3
  np.testing.assert_allclose(by_size[:, 0], [0.5, 0.5, 1.0, 1.0])
  np.testing.assert_allclose(
    ensembles.bound(group, [exact.ExactMatch()]), [1.0]
  )


def test_texts_are_decided_by_the_medoid_unless_told_otherwise():
  answers = [['a dog ran', 'x'], ['the cat sat', 'x'], ['the cat sits', 'x']]
  group = make_group(answers, [[0.1, 0], [0.5, 0], [0.9, 0]], [0.9, 0.8, 0.7])

  def decide(rule):
    return ensembles.decide(rule, group, [measures.RougeL()], ITEMS)[0]

  assert decide('auto') == decide('medoid') == np.float32(0.25)
  assert decide('majority') == np.float32(0.05)


def test_without_predictions_the_best_member_stands():
  group = make_group([[None, None]] * 2, [[2, 4], [1, 1]], [0.9, 0.8])
  scores = ensembles.decide('auto', group, [options.Perplexity()], ITEMS)
  assert scores.tolist() == [3.0]  # its score, not what two values would make


def log_of(*generations):
  whole = make_group([['A', 'B']] * 5, np.arange(10).reshape(5, 2), [0] * 5)
  return [
    GenerationItems(number, np.asarray(ids, np.int32), whole.take(ids).results)
    for number, ids in enumerate(generations)
  ]


def test_answers_are_gathered_from_the_log_in_the_order_asked_for():
  (result,) = ensembles.gather(log_of([0, 1], [2, 3, 4]), [3, 0, 2])
  assert result.values.tolist() == [[6, 7], [0, 1], [4, 5]]
  assert result.predictions.tolist() == [['A', 'B']] * 3
  assert ensembles.gather(log_of([0, 1]), [0, 2]) is None


def test_answers_to_other_items_are_not_mixed():
  first, second = log_of([0], [1])
  other = dataclasses.replace(second.tasks[0], ids=['0', '9'])
  second = dataclasses.replace(second, tasks=[other])
  assert ensembles.gather([first, second], [0, 1]) is None
  assert ensembles.gather([first, second], [1])[0].ids == ['0', '9']


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match='expected one of'):
    ensembles.check_rule('mean')
  with pytest.raises(ValueError, match='2 members'):
    ensembles.majority(one_item('A', 'B'), FITNESS)
  with pytest.raises(ValueError, match='items'):
    ensembles.majority([['A'], ['A', 'B'], ['A']], FITNESS)
