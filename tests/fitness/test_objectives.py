"""The table of objectives, by what each must do and by properties of all."""

import types

import numpy as np
import pytest

from evojax_llm.fitness import objectives

SCORES = np.array(
  [[0.5, 0.1], [0.2, 0.8], [0.0, 0.9], [np.nan, 0.5]], np.float32
)
EXPERTS = np.array([[0.5, 0.2], [0.3, 0.4]])


def metric(maximise=True, percent=True):
  return types.SimpleNamespace(maximise=maximise, percent=percent)


def make(name, weights=(0.5, 0.5), maximise=(True, True), experts=EXPERTS):
  made = objectives.make_objective(
    name, np.asarray(weights, np.float32), [metric(m) for m in maximise]
  )
  return made.normalised_by(experts) if made.needs_experts else made


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('weighted_mean', [0.3, 0.5, 0.45]),
    ('pareto', [0.3, 0.5, 0.45]),
    ('harmonic_mean', [1 / 6, 0.32, 0.0]),
    ('minimum', [0.1, 0.2, 0.0]),
    # Means 0.4 and 0.3, deviations 0.1 and 0.1.
    ('z_score', [-0.5, 1.5, 1.0]),
    # Best experts 0.5 and 0.4.
    ('best_expert', [0.625, 1.2, 1.125]),
  ],
)
def test_by_hand(name, expected):
  fitness = make(name)(SCORES)
  assert fitness.dtype == np.float32
  np.testing.assert_allclose(fitness, [*expected, np.nan], rtol=1e-5)


def test_equal_means_are_equal_whatever_is_scored_beside():
  tenths = [(2, 10, 6, 3), (5, 8, 6, 2), (3, 6, 7, 5), (9, 9, 1, 2)]
  thirds = [
    (1, 2, 3, 0),
    (2, 2, 2, 0),
    (1, 1, 1, 3),
    (0, 0, 3, 3),
    (1, 1, 2, 2),
  ]
  objective = make('weighted_mean', (0.25,) * 4, (True,) * 4, None)
  for counts, of, mean in ((tenths, 10, 0.525), (thirds, 3, 0.5)):
    scores = (np.array(counts) / of).astype(np.float32)
    assert set(objective(scores)) == {np.float32(mean)}
  uneven = np.random.default_rng(0).random((64, 4), np.float32)
  alone = [objective(row[None])[0] for row in uneven]
  np.testing.assert_array_equal(objective(uneven), alone)


def test_weights():
  np.testing.assert_allclose(
    make('harmonic_mean', (0.25, 0.75))(SCORES[:1]),
    [1 / (0.25 / 0.5 + 0.75 / 0.1)],
    rtol=1e-5,
  )
  # A task without weight is measured and does not count.
  assert make('minimum', (1, 0))(SCORES[:1])[0] == np.float32(0.5)
  np.testing.assert_allclose(
    make('harmonic_mean', (1, 0))(np.array([[0.5, 0.0]])), [0.5]
  )


def test_published_harmonic_mean_of_nothing():
  published = make('harmonic_mean_as_published')
  scores = np.array([[0, 0], [0, 0.5], [0.5, 0.5]])
  np.testing.assert_allclose(published(scores), [0.01, 0, 0.5], rtol=1e-6)
  np.testing.assert_allclose(make('harmonic_mean')(scores), [0, 0, 0.5])


@pytest.mark.parametrize('name', objectives.OBJECTIVES)
def test_better_is_never_worse_and_others_do_not_matter(name):
  rng = np.random.default_rng(0)
  objective = make(name, experts=rng.uniform(0.1, 1, (4, 2)))
  scores = rng.uniform(0, 1, (20, 2)).astype(np.float32)
  fitness = objective(scores)
  better = objective(np.minimum(scores + 0.1, 1.5))
  assert (better >= fitness).all()
  for m in (0, 7):
    np.testing.assert_allclose(objective(scores[m : m + 1])[0], fitness[m])


@pytest.mark.parametrize('name', ['weighted_mean', 'minimum', 'z_score'])
def test_less_of_a_perplexity_is_better(name):
  objective = make(
    name, maximise=(True, False), experts=np.array([[0.5, 9], [0.4, 12]])
  )
  good, bad = objective(np.array([[0.5, 8.0], [0.5, 11.0]]))
  assert good > bad and not objective.percent
  ratio = make('best_expert', (0, 1), (True, False), np.array([[0.5, 9.0]]))
  np.testing.assert_allclose(ratio(np.array([[0.5, 18.0]])), [0.5])


def test_what_has_no_meaning_is_refused():
  with pytest.raises(ValueError, match='expected one of weighted_mean'):
    make('mean')
  with pytest.raises(ValueError, match='to be minimised'):
    make('harmonic_mean', maximise=(True, False))
  with pytest.raises(ValueError, match='expected it to be positive'):
    make('best_expert', experts=np.zeros((2, 2)))
  with pytest.raises(ValueError, match='none of them could be scored'):
    make('z_score', experts=np.full((2, 2), np.nan))
  bare = objectives.make_objective('z_score', np.ones(1), [metric()])
  assert bare.needs_experts
  with pytest.raises(ValueError, match='scores of the experts first'):
    bare(np.ones((1, 1)))


def test_equal_experts_leave_a_task_as_it_is():
  objective = make('z_score', (1, 0), experts=np.full((3, 2), 0.5))
  np.testing.assert_allclose(
    objective(np.array([[0.7, 0.0]])), [0.2], rtol=1e-5
  )


def second_best(scores, objective):
  """An objective, as a user would write one."""
  return np.sort(scores, axis=1)[:, -2] - objective.experts.max()


second_best.needs_experts = True


def test_an_objective_of_ones_own():
  objective = make(f'{__name__}:second_best')
  assert not objective.percent
  np.testing.assert_allclose(objective(SCORES[:2]), [-0.4, -0.3], rtol=1e-6)
  with pytest.raises(ValueError, match='expected a function of scores'):
    make(f'{__name__}:SCORES')
  with pytest.raises(ValueError, match="Did you mean 'second_best'"):
    make(f'{__name__}:second_bets')


def test_front():
  scores = [[1, 0], [0, 1], [0.5, 0.5], [0.4, 0.4], [1, 0], [np.nan, 9]]
  assert objectives.front(scores, [True, True]).tolist() == [0, 1, 2, 4]
  # Of the second task less is better: what has most of the first and none of
  # the second beats all.
  assert objectives.front(scores, [True, False]).tolist() == [0, 4]
  assert objectives.front(np.zeros((0, 2)), [True, True]).tolist() == []
