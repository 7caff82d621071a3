import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import selection
from evojax_llm.operators import survival

NAN = jnp.nan


def f32(*values):
  return jnp.asarray(values, jnp.float32)


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
  count = survival.elite_count(share, members, least=least, rounding=rounding)
  assert int(count) == expected


def survive(method, fitness, eligible, count, elites, times=200):
  ids = jnp.arange(fitness.shape[0], dtype=jnp.int32)[::-1]
  keys = jax.random.split(jax.random.key(3), times)
  run = jax.jit(
    jax.vmap(
      lambda key: survival.survivors(
        key, fitness, eligible, count, ids, elites, method=method
      )
    )
  )
  return np.asarray(run(keys)), np.asarray(ids)


@pytest.mark.parametrize('method', selection.METHODS)
def test_survivors_hold_the_elites_and_no_member_twice(method):
  fitness = f32(0.1, 0.8, NAN, 0.3, 0.9, 0.2, 0.0, 0.7)
  eligible = jnp.asarray([True] * 4 + [False] + [True] * 3)
  places, ids = survive(method, fitness, eligible, 4, elites=2)
  for row in places:
    assert len(set(row)) == 4
    assert {1, 7} <= set(row), 'the fittest that are eligible'
    assert not {2, 4} & set(row), 'neither the failed nor the empty'
    assert np.all(np.diff(ids[row]) > 0)


@pytest.mark.parametrize(
  'method', ('roulette', 'tournament', 'rank', 'universal')
)
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
def test_all_members_failed(method):
  fitness = jnp.full(5, NAN, jnp.float32)
  eligible = jnp.asarray([True, True, True, False, False])
  places, _ = survive(method, fitness, eligible, 3, elites=1)
  np.testing.assert_array_equal(np.sort(places), np.tile([0, 1, 2], (200, 1)))


def test_wrong_requests_are_refused():
  key, fitness = jax.random.key(0), f32(1.0, 2.0)
  ids = jnp.arange(2, dtype=jnp.int32)
  with pytest.raises(ValueError, match="'lottery'"):
    survival.survivors(
      key, fitness, jnp.ones(2, bool), 1, ids, method='lottery'
    )
  with pytest.raises(ValueError, match='3 survivors out of 2'):
    survival.survivors(key, fitness, jnp.ones(2, bool), 3, ids)
  with pytest.raises(ValueError, match="'up'"):
    survival.elite_count(0.1, 10, rounding='up')
