"""Item-response estimates on made-up answers whose truth is known."""

import numpy as np
import pytest

from evojax_llm.fitness import item_response


def answers(members=40, items=150, seed=0):
  """(values, probabilities) of members and items of all kinds."""
  rng = np.random.default_rng(seed)
  ability = rng.normal(size=(members, 1))
  p = 1 / (1 + np.exp(-(0.5 + ability - rng.normal(size=(1, items)))))
  return (rng.random(p.shape) < p).astype(float), p


def raced(values, easiest):
  """What a race leaves: the worse members have seen the easy items alone."""
  values = values.copy()
  order = np.argsort(easiest)[::-1]
  worse = np.argsort(values.mean(axis=1))[: len(values) // 2]
  values[np.ix_(worse, order[len(order) // 2 :])] = np.nan
  return values


def test_what_is_expected_is_what_is_likely():
  values, p = answers()
  found = item_response.fit(values)
  truth = np.log(p / (1 - p))
  guess = found.offset + found.abilities[:, None] - found.difficulties[None]
  assert np.corrcoef(truth.ravel(), guess.ravel())[0, 1] > 0.93
  # With priors, estimates lie nearer to the mean than the truth, on both sides.
  assert np.abs(found.expected() - p).mean() < 0.06


def test_gaps_of_a_race_are_filled():
  values, p = answers()
  part = raced(values, p.mean(axis=0))
  found = item_response.fit(part)
  truth = p.mean(axis=1)
  gaps = np.isnan(part).any(axis=1)
  plain = np.abs(np.nanmean(part, axis=1) - truth)[gaps].mean()
  filled = np.abs(found.accuracy() - truth)[gaps].mean()
  assert filled < 0.4 * plain
  whole = ~gaps
  np.testing.assert_allclose(
    found.accuracy()[whole], values[whole].mean(axis=1)
  )


def test_all_right_and_never_asked_are_finite():
  values, _ = answers(6, 20)
  values[0], values[1], values[2] = 1, 0, np.nan
  values[:, 5] = np.nan
  found = item_response.fit(values)
  assert np.isfinite(found.abilities).all()
  assert found.abilities[0] == found.abilities.max() < 10
  assert found.abilities[1] == found.abilities.min()
  assert found.abilities[2] == found.difficulties[5] == 0


def test_order_and_copies_of_a_fit_decide_nothing():
  values, p = answers(12, 30)
  values = raced(values, p.mean(axis=0))
  order = np.random.default_rng(3).permutation(12)
  found, other = item_response.fit(values), item_response.fit(values[order])
  np.testing.assert_allclose(found.abilities[order], other.abilities, atol=1e-6)
  # The estimates are at the top: the slope of what is maximised is none.
  seen = np.isfinite(values)
  rest = np.where(seen, values - found.expected(), 0.0)
  np.testing.assert_allclose(rest.sum(axis=1), found.abilities, atol=1e-6)
  np.testing.assert_allclose(rest.sum(axis=0), -found.difficulties, atol=1e-6)


@pytest.mark.parametrize(
  'values', [[[0.5, 1.0]], [[np.nan]], [1.0, 0.0], np.zeros((0, 3))]
)
def test_what_is_not_right_or_wrong_is_refused(values):
  with pytest.raises(ValueError, match='right and wrong'):
    item_response.fit(np.asarray(values))
