import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import niching

NAN = jnp.nan
SCORES = jnp.asarray(
  [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], jnp.float32
)


def test_fitness_is_shared_among_those_that_solve_an_example():
  # z = (3, 2, 1, 0)
  np.testing.assert_allclose(
    niching.shared_fitness(SCORES),
    [1 / 3 + 1 / 2, 1 / 3 + 1 / 2, 1, 1 / 3],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    niching.shared_fitness(SCORES, alpha=0.0), [2, 2, 1, 1]
  )
  np.testing.assert_allclose(
    niching.shared_fitness(SCORES.astype(bool), 2.0, jnp.full(4, 9.0)),
    [1 + 9 / 4, 1 + 9 / 4, 9, 1],
    rtol=1e-6,
  )


def test_attraction_is_what_the_other_has_and_oneself_lacks():
  shared = niching.shares(SCORES)
  np.testing.assert_allclose(
    niching.attraction(shared, jnp.int32(3)), [1 / 2, 1 / 2, 1, 0], rtol=1e-6
  )


def drawn(scores, times=3000, **options):
  keys = jax.random.split(jax.random.key(2), times)
  run = jax.jit(jax.vmap(lambda k: niching.mates(k, scores, **options)))
  return np.asarray(run(keys))


def test_mates_follow_fitness_and_attraction():
  pairs = drawn(SCORES)
  assert np.all(pairs[:, 0] != pairs[:, 1])
  first = np.bincount(pairs[:, 0], minlength=4) / len(pairs)
  fitness = np.asarray(niching.shared_fitness(SCORES))
  np.testing.assert_allclose(first, fitness / fitness.sum(), atol=0.03)
  # Of one that misses the third example, the one that solves it is the mate;
  # its twin has nothing to offer.
  of_zero = pairs[pairs[:, 0] == 0, 1]
  assert np.all(of_zero == 2)
  of_two = np.bincount(pairs[pairs[:, 0] == 2, 1], minlength=4)
  np.testing.assert_allclose(
    of_two / of_two.sum(), [5 / 12, 5 / 12, 0, 2 / 12], atol=0.04
  )


def test_without_attraction_both_are_drawn_by_fitness():
  pairs = drawn(SCORES, attract=False)
  assert np.any((pairs[:, 0] == 0) & (pairs[:, 1] == 1))


@pytest.mark.parametrize(
  'scores',
  [
    np.zeros((4, 3)),
    np.ones((4, 3)),
    np.full((4, 3), np.nan),
    np.asarray([[1, 0], [np.nan, 1], [np.inf, 1], [0, 0]]),
  ],
  ids=('zero', 'equal', 'failed', 'mixed'),
)
def test_any_scores_give_two_members(scores):
  scores = jnp.asarray(scores, jnp.float32)
  pairs = drawn(scores, 100)
  assert np.all((pairs >= 0) & (pairs < 4))
  assert np.all(pairs[:, 0] != pairs[:, 1])
  if np.isfinite(scores).all():
    return
  alive = np.isfinite(np.asarray(scores)).all(axis=1)
  if alive.any():
    assert np.all(alive[pairs[:, 0]]) and np.all(alive[pairs[:, 1]])
  assert np.all(np.isnan(niching.shared_fitness(scores)) == ~alive)


def test_failed_members_use_nothing_up():
  with_failed = jnp.concatenate([SCORES, jnp.full((1, 4), NAN)])
  np.testing.assert_allclose(
    niching.shared_fitness(with_failed)[:4], niching.shared_fitness(SCORES)
  )


def test_mates_are_members_not_places():
  ids = jnp.asarray([7, 3, 12, 5], jnp.int32)
  order = jnp.asarray([2, 0, 3, 1])
  for seed in range(10):
    key = jax.random.key(seed)
    one = ids[niching.mates(key, SCORES, ids)]
    two = ids[order][niching.mates(key, SCORES[order], ids[order])]
    np.testing.assert_array_equal(one, two)
