import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import selection
from evojax_llm.operators import survival

NAN = jnp.nan


def f32(*values):
  return jnp.asarray(values, jnp.float32)


def draws(function, fitness, count, times=4000, **options):
  """(times, count) places, one row for each key."""
  keys = jax.random.split(jax.random.key(11), times)
  run = jax.jit(
    jax.vmap(functools.partial(function, count=count, **options), (0, None))
  )
  return np.asarray(run(keys, fitness))


@pytest.mark.parametrize('replace', (False, True))
def test_roulette_frequencies_follow_fitness(replace):
  fitness = f32(0.1, 0.4, 0.0, 0.3, 0.2)
  first = draws(selection.roulette, fitness, 1, replace=replace)[:, 0]
  frequency = np.bincount(first, minlength=5) / len(first)
  np.testing.assert_allclose(frequency, fitness, atol=0.03)


def test_roulette_without_replacement_has_the_law_of_successive_draws():
  fitness = f32(0.5, 0.3, 0.2)
  pairs = draws(selection.roulette, fitness, 2)
  assert np.all(pairs[:, 0] != pairs[:, 1])
  # P(second is 2 | first is 0) = 0.2 / 0.5.
  after_first = pairs[pairs[:, 0] == 0, 1]
  assert np.mean(after_first == 2) == pytest.approx(0.4, abs=0.04)


def test_roulette_shifts_negative_fitness():
  first = draws(selection.roulette, f32(-3.0, -2.0, -1.0), 1)[:, 0]
  frequency = np.bincount(first, minlength=3) / len(first)
  np.testing.assert_allclose(frequency, [0, 1 / 3, 2 / 3], atol=0.03)


@pytest.mark.parametrize('value', (0.0, -2.0, 0.7))
def test_equal_fitness_draws_evenly(value):
  first = draws(selection.roulette, jnp.full(4, value, jnp.float32), 1)[:, 0]
  frequency = np.bincount(first, minlength=4) / len(first)
  np.testing.assert_allclose(frequency, 0.25, atol=0.03)


def test_zero_fitness_comes_after_positive_and_before_failed():
  places = draws(selection.roulette, f32(0.0, NAN, 0.5, 0.0, 0.5), 5, 50)
  assert np.all(np.sort(places[:, :2]) == [2, 4])
  assert np.all(np.sort(places[:, 2:4]) == [0, 3])
  assert np.all(places[:, 4] == 1)


def test_rank_ignores_the_scale_of_fitness():
  first = draws(selection.rank, f32(0.1, 1000.0, NAN, 0.2), 1)[:, 0]
  frequency = np.bincount(first, minlength=4) / len(first)
  np.testing.assert_allclose(frequency, [1 / 6, 3 / 6, 0, 2 / 6], atol=0.03)


def test_tournament_of_all_is_truncation():
  fitness = f32(0.2, 0.9, NAN, 0.5, 0.7)
  places = draws(selection.tournament, fitness, 4, 20, entrants=5)
  np.testing.assert_array_equal(places, np.tile([1, 4, 3, 0], (20, 1)))


def test_tournament_frequencies():
  # Three of five at a time: the best enters 6 of 10 triples, the second wins
  # the 3 triples without the best, the third the last one.
  fitness = f32(0.2, 0.9, 0.1, 0.5, 0.7)
  first = draws(selection.tournament, fitness, 1, entrants=3)[:, 0]
  frequency = np.bincount(first, minlength=5) / len(first)
  np.testing.assert_allclose(frequency, [0, 0.6, 0, 0.1, 0.3], atol=0.03)


def test_truncation_breaks_ties_by_id():
  places = selection.truncation(
    f32(0.5, 0.9, 0.5, NAN), 4, jnp.asarray([7, 1, 3, 0], jnp.int32)
  )
  np.testing.assert_array_equal(places, [1, 2, 0, 3])


def test_tournament_with_replacement_draws_each_time_from_all():
  fitness = f32(0.2, 0.9, 0.1, 0.5, 0.7)
  places = draws(selection.tournament, fitness, 6, 1000, replace=True)
  for drawn in places.T:
    frequency = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(frequency, [0, 0.6, 0, 0.1, 0.3], atol=0.05)


def test_universal_draws_each_member_as_often_as_expected():
  fitness = f32(0.1, 0.4, 0.0, 0.3, 0.2)
  places = draws(selection.universal, fitness, 6, 500)
  for row in places:
    counts = np.bincount(row, minlength=5)
    expected = 6 * np.asarray(fitness)
    assert np.all(counts >= np.floor(expected - 1e-4))
    assert np.all(counts <= np.ceil(expected + 1e-4))
  frequency = np.bincount(places.ravel(), minlength=5) / places.size
  np.testing.assert_allclose(frequency, fitness, atol=0.01)


def test_universal_without_replacement_caps_the_shares():
  # 3 of four: the first is certain, the others share two draws 4 : 3 : 1, of
  # which the second is certain as well.
  places = draws(selection.universal, f32(8.0, 4.0, 3.0, 1.0), 3, replace=False)
  assert np.all(places[:, :2] == [0, 1])
  assert np.mean(places[:, 2] == 2) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize('replace', (False, True))
def test_universal_exhausts_the_positive_first(replace):
  fitness = f32(0.0, NAN, 0.5, 0.0, 0.5)
  places = draws(selection.universal, fitness, 3, 100, replace=replace)
  counts = np.stack([np.bincount(row, minlength=5) for row in places])
  assert np.all(counts[:, [2, 4]] >= 1) and np.all(counts[:, 1] == 0)
  assert np.all(counts[:, [0, 3]].sum(axis=1) == (0 if replace else 1))


@pytest.mark.parametrize('replace', (False, True))
def test_roulette_takes_the_ineligible_for_want_of_others_alone(replace):
  fitness = f32(0.9, 0.0, NAN, 0.5)
  options = dict(replace=replace, eligible=jnp.asarray([0, 1, 1, 0], bool))
  places = draws(selection.roulette, fitness, 2, 50, **options)
  assert np.all(places == 1 if replace else np.sort(places) == [1, 2])


def test_wrong_requests_are_refused():
  key, fitness = jax.random.key(0), f32(1.0, 2.0)
  with pytest.raises(ValueError, match='3 members to draw out of 2'):
    selection.roulette(key, fitness, 3)
  with pytest.raises(ValueError, match='3 members to draw out of 2'):
    selection.universal(key, fitness, 3, replace=False)
  with pytest.raises(ValueError, match='3 members to draw out of 2'):
    selection.truncation(fitness, 3)
  with pytest.raises(ValueError, match='tournaments of 0 entrants'):
    selection.tournament(key, fitness, 1, entrants=0)


@pytest.mark.parametrize('method', selection.METHODS)
def test_infinite_fitness_is_that_of_a_failed_member(method):
  fitness = f32(jnp.inf, 1.0, -jnp.inf, 2.0, NAN)
  if method == 'truncation':
    drawn = selection.truncation(fitness, 2)
  else:
    options = {'entrants': 5} if method == 'tournament' else {'replace': False}
    drawn = draws(getattr(selection, method), fitness, 2, 20, **options)
  assert set(np.ravel(drawn).tolist()) == {1, 3}
  alive = jnp.ones(5, bool)
  ids = jnp.arange(5, dtype=jnp.int32)
  kept = survival.survivors(
    jax.random.key(0), fitness, alive, 2, ids, method=method, entrants=5
  )
  assert kept.tolist() == [1, 3]
