import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import pareto
from evojax_llm.operators import selection

NAN = jnp.nan
#  0 and 1 are the first front with 4; 2 is beaten by 1; 3 by all of them.
POINTS = jnp.asarray(
  [[4.0, 1.0], [2.0, 2.0], [2.0, 1.5], [1.0, 1.0], [1.0, 4.0], [NAN, 9.0]],
  jnp.float32,
)


def fronts_by_definition(points):
  """Peels off the members that no other one left dominates."""
  left = set(np.flatnonzero(np.all(np.isfinite(points), axis=1)).tolist())
  front = np.full(len(points), len(points))
  number = 0
  while left:
    best = {
      i
      for i in left
      if not any(
        np.all(points[j] >= points[i]) and np.any(points[j] > points[i])
        for j in left
      )
    }
    front[list(best)] = number
    left, number = left - best, number + 1
  return front


def test_fronts_of_an_example():
  np.testing.assert_array_equal(pareto.fronts(POINTS), [0, 0, 1, 2, 0, 6])


def test_fronts_follow_their_definition():
  run = jax.jit(pareto.fronts)
  for seed in range(60):
    random = np.random.default_rng(seed)
    points = random.integers(0, 2 + seed % 9, (17, 3)).astype(np.float32)
    wrong = random.random(points.shape) < 0.03
    points[wrong] = random.choice([np.nan, np.inf, -np.inf], wrong.sum())
    np.testing.assert_array_equal(run(points), fronts_by_definition(points))


def test_crowding_is_the_gap_between_neighbours():
  points = jnp.asarray([[0, 4], [1, 2], [3, 1], [4, 0]], jnp.float32)
  distance = pareto.crowding(points, pareto.fronts(points))
  np.testing.assert_allclose(
    distance, [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf], rtol=1e-6
  )


def test_lonely_members_come_first_and_ties_go_to_the_lower_id():
  points = jnp.asarray(
    [[0, 4], [1, 3], [1.2, 2.8], [4, 0], [4, 0]], jnp.float32
  )
  ids = jnp.asarray([9, 3, 4, 8, 2], jnp.int32)
  order = pareto.ranking(points, ids)
  # Both ends first, the twins being an end each, by id; then by the gap.
  assert np.asarray(ids)[order].tolist()[:3] == [2, 8, 9]
  assert int(order[-1]) == 1


def test_one_objective_is_truncation():
  values = jnp.asarray([0.3, 0.9, NAN, 0.1, 0.5], jnp.float32)
  np.testing.assert_array_equal(
    pareto.ranking(values[:, None])[:4], selection.truncation(values, 4)
  )


def test_fitness_orders_members_as_the_ranking_does():
  fitness = pareto.fitness(POINTS)
  assert np.isnan(fitness[5])
  np.testing.assert_array_equal(
    selection.ranking(fitness), pareto.ranking(POINTS)
  )


def test_any_objectives_give_an_order():
  for points in (
    jnp.zeros((4, 2)),
    jnp.full((4, 2), NAN),
    -jnp.ones((4, 2)),
    jnp.full((4, 2), jnp.inf),
    jnp.zeros((1, 3)),
  ):
    order = np.asarray(pareto.ranking(points.astype(jnp.float32)))
    assert sorted(order) == list(range(len(points)))
    fitness = pareto.fitness(points.astype(jnp.float32))
    assert np.all(np.isfinite(fitness) == np.all(np.isfinite(points), axis=1))


def test_an_infinite_objective_is_that_of_a_failed_member():
  points = jnp.asarray([[1.0, jnp.inf], [1.0, 2.0], [-jnp.inf, 3.0]])
  np.testing.assert_array_equal(pareto.fronts(points), [3, 0, 3])
  np.testing.assert_array_equal(pareto.fitness(points), [np.nan, 3, np.nan])


@pytest.mark.parametrize(
  ('points', 'reference', 'volume'),
  [
    ([[0.5]], [0.0], 0.5),
    ([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]], [0.0, 0.0], 6.0),
    # What is beaten, equal, failed, or no better than the reference.
    ([[2, 2], [2, 2], [1, 2], [np.nan, 9], [9, 0], [9, -1]], [0, 0], 4.0),
    ([[2.0, 2.0]], [1.0, -1.0], 3.0),
    ([[1, 1, 2], [1, 2, 1], [2, 1, 1]], [0, 0, 0], 4.0),
    (np.eye(5) + 1.0, np.zeros(5), 6.0),
    (np.zeros((0, 3)), [0, 0, 0], 0.0),
  ],
)
def test_hypervolume_of_known_fronts(points, reference, volume):
  found = pareto.hypervolume(np.asarray(points, np.float64), reference)
  assert found == pytest.approx(volume)


@pytest.mark.parametrize('dimensions', [1, 2, 3, 4, 5])
def test_hypervolume_is_that_of_inclusion_and_exclusion(dimensions):
  random = np.random.default_rng(dimensions)
  points = random.integers(1, 6, (9, dimensions)).astype(np.float64)
  volume = sum(
    (-1) ** (count - 1) * np.min(chosen, axis=0).prod()
    for count in range(1, len(points) + 1)
    for chosen in itertools.combinations(points, count)
  )
  found = pareto.hypervolume(points - 2.0, np.full(dimensions, -2.0))
  assert found == pytest.approx(volume)


def test_hypervolume_that_would_take_long_is_not_known():
  points = np.random.default_rng(0).dirichlet(np.ones(8), 100)
  assert np.isnan(pareto.hypervolume(points, np.zeros(8)))
