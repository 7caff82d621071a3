import numpy as np
import pytest

from evojax_llm.fitness import ensembles

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


def test_size_is_chosen_by_dev_and_the_smallest_of_equals():
  # Members 1 and 2 agree on what member 0 gets wrong; member 3 adds nothing.
  predictions = [['A', 'A'], ['B', 'A'], ['B', 'A'], ['C', 'C']]
  values = np.asarray([[0, 1], [1, 1], [1, 1], [0, 0]], np.float32)
  fitness = np.asarray([0.9, 0.8, 0.7, 0.1])
  size, by_size = ensembles.choose_size(
    'majority', [predictions], [values], [1.0], fitness
  )
  assert size == 3
  np.testing.assert_allclose(by_size, [0.5, 0.5, 1.0, 1.0])


def test_the_value_is_that_of_the_member_who_stands():
  values = np.asarray([[0.2, 0.9], [0.7, 0.1]])
  np.testing.assert_allclose(
    ensembles.decided(values, np.asarray([1, 0])), [0.7, 0.9]
  )
  assert ensembles.oracle(values).tolist() == [1, 0]


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match='expected one of'):
    ensembles.choose_size('mean', [], [], [], FITNESS)
  with pytest.raises(ValueError, match='2 members'):
    ensembles.majority(one_item('A', 'B'), FITNESS)
  with pytest.raises(ValueError, match='items'):
    ensembles.majority([['A'], ['A', 'B'], ['A']], FITNESS)
