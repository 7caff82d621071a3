"""Item-response estimates on made-up answers whose truth is known."""

import numpy as np
import pytest

from evojax_llm.fitness import item_response


def answers(members=40, items=150, seed=0, slopes=0.0, dimension=1):
  """(values, probabilities, items) of members and items of all kinds."""
  rng = np.random.default_rng(seed)
  ability = rng.normal(size=(members, dimension))
  asked = item_response.Items(
    np.maximum(0.2, 1 + slopes * rng.normal(size=(items, dimension))),
    rng.normal(size=items) - 0.5,
  )
  p = asked.probabilities(ability)
  return (rng.random(p.shape) < p).astype(float), p, asked


def raced(values, easiest):
  """What a race leaves: the worse members have seen the easy items alone."""
  values = values.copy()
  order = np.argsort(easiest)[::-1]
  worse = np.argsort(values.mean(axis=1))[: len(values) // 2]
  values[np.ix_(worse, order[len(order) // 2 :])] = np.nan
  return values


@pytest.mark.parametrize('dimension, off', [(1, 0.05), (2, 0.09)])
def test_what_answers_were_drawn_from_is_found(dimension, off):
  values, p, truth = answers(200, 100, slopes=0.4, dimension=dimension)
  found, abilities = item_response.fit(values, dimension)
  assert abilities.shape == (200, dimension)
  assert np.abs(found.probabilities(abilities) - p).mean() < off
  difficulties = found.difficulties, truth.difficulties
  assert np.corrcoef(difficulties)[0, 1] > 0.95
  if dimension == 1:
    slopes = found.slopes[:, 0], truth.slopes[:, 0]
    assert np.corrcoef(slopes)[0, 1] > 0.8


def test_gaps_of_a_race_are_filled():
  values, p, _ = answers()
  part = raced(values, p.mean(axis=0))
  found, abilities = item_response.fit(part)
  filled = np.where(np.isnan(part), found.probabilities(abilities), part)
  gaps, truth = np.isnan(part).any(axis=1), p.mean(axis=1)
  plain = np.abs(np.nanmean(part, axis=1) - truth)[gaps].mean()
  assert np.abs(filled.mean(axis=1) - truth)[gaps].mean() < 0.4 * plain


def test_all_right_and_never_asked_are_finite():
  values, _, _ = answers(6, 20)
  values[0], values[1], values[2] = 1, 0, np.nan
  values[:, 5] = np.nan
  found, abilities = item_response.fit(values)
  assert np.isfinite(abilities).all()
  assert abilities[0] == abilities.max() < 10
  assert abilities[1] == abilities.min()
  assert abilities[2] == 0
  # Of the item, what was known before.
  share = (np.nansum(values) + 1) / (np.isfinite(values).sum() + 2)
  assert found.difficulties[5] == pytest.approx(-np.log(share / (1 - share)))
  assert found.slopes[5] == 1


@pytest.mark.parametrize('dimension', [1, 2])
def test_order_of_members_decides_nothing(dimension):
  values, p, _ = answers(12, 30)
  values = raced(values, p.mean(axis=0))
  order = np.random.default_rng(3).permutation(12)
  one, two = (item_response.fit(v, dimension) for v in (values, values[order]))
  np.testing.assert_allclose(one[1][order], two[1], atol=1e-4)
  np.testing.assert_allclose(one[0].slopes, two[0].slopes, atol=1e-4)


def test_estimates_are_at_the_top_of_the_posterior():
  values, _, asked = answers(5, 30)
  values[0, :7] = np.nan
  found = item_response.abilities(asked, values)
  rest = np.where(np.isfinite(values), values - asked.probabilities(found), 0)
  np.testing.assert_allclose(rest @ asked.slopes, found, atol=1e-6)


def test_a_mix_is_a_combination_of_parents():
  """Its slope, in weights around an even mix, is none; checked in theta."""
  values, _, asked = answers(3, 40, dimension=2)
  parents = np.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.2]])
  found = item_response.mixed(asked, values, parents)
  gain = (values - asked.probabilities(found)) @ asked.slopes
  # At the top weights - 1/N are the slope, so theta is the mean and so far.
  wanted = parents.mean(axis=0) + gain @ parents.T @ parents
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  # One parent alone leaves one direction.
  (alone,) = item_response.mixed(asked, values[:1], parents[:1])
  assert alone[1] == 0


def test_a_share_counts_as_much_as_right_and_wrong_answers():
  asked = item_response.Items(np.ones((2, 1)), np.zeros(2))
  half, both = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])
  np.testing.assert_array_equal(
    item_response.abilities(asked, half), item_response.abilities(asked, both)
  )


@pytest.mark.parametrize(
  'values', [[[1.5, 1.0]], [[np.nan]], [1.0, 0.0], np.zeros((0, 3))]
)
def test_what_is_no_answer_is_refused(values):
  with pytest.raises(ValueError, match='between 0 and 1'):
    item_response.fit(np.asarray(values))
