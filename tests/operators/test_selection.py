import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import selection

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


@pytest.mark.parametrize(
  'share, members, least, rounding, expected',
  [
    (0.02, 10, 0, 'floor', 0),
    (0.02, 10, 1, 'floor', 1),
    (0.1, 10, 0, 'floor', 1),
    (0.3, 10, 0, 'floor', 3),
    (0.1, 17, 0, 'round', 2),
    (2.0, 10, 1, 'floor', 10),
  ],
)
def test_elite_count(share, members, least, rounding, expected):
  count = selection.elite_count(share, members, least=least, rounding=rounding)
  assert int(count) == expected


def survive(method, fitness, eligible, count, elites, times=200):
  ids = jnp.arange(fitness.shape[0], dtype=jnp.int32)[::-1]
  keys = jax.random.split(jax.random.key(3), times)
  run = jax.jit(
    jax.vmap(
      lambda key: selection.survivors(
        key, fitness, eligible, count, ids, elites, method=method
      )
    )
  )
  return np.asarray(run(keys)), np.asarray(ids)


@pytest.mark.parametrize('method', selection.METHODS)
def test_survivors_hold_the_elites_and_nobody_twice(method):
  fitness = f32(0.1, 0.8, NAN, 0.3, 0.9, 0.2, 0.0, 0.7)
  eligible = jnp.asarray([True] * 4 + [False] + [True] * 3)
  places, ids = survive(method, fitness, eligible, 4, elites=2)
  for row in places:
    assert len(set(row)) == 4
    assert {1, 7} <= set(row), 'the fittest that are eligible'
    assert not {2, 4} & set(row), 'neither the failed nor the empty'
    assert np.all(np.diff(ids[row]) > 0)


@pytest.mark.parametrize('method', ('roulette', 'tournament', 'rank'))
def test_without_elites_the_best_may_be_lost(method):
  fitness = f32(0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)
  eligible = jnp.ones(8, bool)
  places, _ = survive(method, fitness, eligible, 2, elites=0)
  assert np.any(~np.any(places == 0, axis=1))
  places, _ = survive(method, fitness, eligible, 2, elites=1)
  assert np.all(np.any(places == 0, axis=1))


@pytest.mark.parametrize('method', selection.METHODS)
def test_failed_members_survive_only_for_want_of_others(method):
  fitness = f32(NAN, 0.0, NAN, NAN, 0.2)
  places, _ = survive(method, fitness, jnp.ones(5, bool), 3, elites=1)
  for row in places:
    assert {1, 4} <= set(row) and len(set(row)) == 3


@pytest.mark.parametrize('method', selection.METHODS)
def test_everybody_failed(method):
  fitness = jnp.full(5, NAN, jnp.float32)
  eligible = jnp.asarray([True, True, True, False, False])
  places, _ = survive(method, fitness, eligible, 3, elites=1)
  np.testing.assert_array_equal(np.sort(places), np.tile([0, 1, 2], (200, 1)))


def test_wrong_requests_are_refused():
  key, fitness = jax.random.key(0), f32(1.0, 2.0)
  with pytest.raises(ValueError, match='3 members to draw out of 2'):
    selection.roulette(key, fitness, 3)
  with pytest.raises(ValueError, match="'lottery'"):
    selection.survivors(
      key,
      fitness,
      jnp.ones(2, bool),
      1,
      jnp.arange(2, dtype=jnp.int32),
      method='lottery',
    )
  with pytest.raises(ValueError, match="'up'"):
    selection.elite_count(0.1, 10, rounding='up')
