"""Parents, survivors and their criterion, as GENOME draws them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import pareto
from evojax_llm.strategies import base
from evojax_llm.strategies.genome import algorithm
from evojax_llm.strategies.genome import parent_selection
from tests.strategies import problems

P = 8
FITNESS = jnp.asarray([0.1, 0.9, np.nan, 0.5, 0.0, 0.7, np.nan, np.nan])
# The last two places are empty.
IDS = jnp.asarray([4, 9, 2, 7, 1, 5, -1, -1], jnp.int32)


def draw_parents(method, fitness=FITNESS, share=0.5, count=400):
  keys = jax.random.split(problems.KEY, count)
  return np.asarray(
    jax.jit(
      jax.vmap(
        lambda key: parent_selection.parents(
          method, key, fitness, IDS, jnp.float32(share), 3
        )
      )
    )(keys)
  )


@pytest.mark.parametrize('method', parent_selection.METHODS)
def test_parents_are_two_different_members_that_live(method):
  pairs = draw_parents(method)
  assert np.all(pairs[:, 0] != pairs[:, 1])
  assert set(pairs.ravel().tolist()) <= {0, 1, 3, 4, 5}
  # Neither of them is always the first.
  assert len(set(pairs[:, 0].tolist())) > 1


@pytest.mark.parametrize('method', parent_selection.METHODS)
def test_failed_members_are_parents_for_want_of_others(method):
  failed = jnp.where(IDS == 9, 0.5, jnp.full((P,), jnp.nan))
  pairs = draw_parents(method, failed)
  assert np.all(pairs[:, 0] != pairs[:, 1])
  assert set(pairs.ravel().tolist()) <= {0, 1, 2, 3, 4, 5}


def test_pressure_of_the_methods():
  share = {
    method: np.mean(draw_parents(method) == 1)
    for method in parent_selection.METHODS
  }
  # Five live: evenly, the fittest is half of the time one of two in 2 of 5.
  assert share['random'] == pytest.approx(0.2, abs=0.03)
  for method in ('roulette', 'rank', 'tournament', 'universal'):
    assert share[method] > 0.25, method
  # The fittest half of five are three.
  kept = draw_parents('truncation')
  assert set(kept.ravel().tolist()) == {1, 3, 5}
  assert share['truncation'] == pytest.approx(1 / 3, abs=0.04)
  two = draw_parents('truncation', share=0.0)
  assert set(two.ravel().tolist()) == {1, 5}


@pytest.mark.parametrize('method', parent_selection.METHODS)
def test_survivors_are_distinct_members_and_the_elites_among_them(method):
  drawn = jax.jit(
    jax.vmap(
      lambda key: parent_selection.survivors(
        method, key, FITNESS, IDS, 3, jnp.int32(2), 3
      )
    )
  )(jax.random.split(problems.KEY, 30))
  for places in np.asarray(drawn):
    assert len(set(places.tolist())) == 3
    assert {1, 5} <= set(places.tolist())
    assert set(places.tolist()) <= {0, 1, 3, 4, 5}


@pytest.mark.parametrize('method', parent_selection.METHODS)
def test_all_survive_where_there_is_room(method):
  places = parent_selection.survivors(
    method, problems.KEY, FITNESS, IDS, 7, jnp.int32(1), 3
  )
  ids = IDS[places].tolist()
  assert sorted(ids) == [-1, 1, 2, 4, 5, 7, 9]


def test_random_survivors_are_drawn_evenly():
  keys = jax.random.split(problems.KEY, 600)
  places = jax.vmap(
    lambda key: parent_selection.survivors(
      'random', key, FITNESS, IDS, 3, jnp.int32(1), 3
    )
  )(keys)
  counts = np.bincount(np.asarray(places).ravel(), minlength=P) / 600
  assert counts[1] == 1.0
  np.testing.assert_allclose(counts[[0, 3, 4, 5]], 0.5, atol=0.08)


def test_criterion_by_the_vector():
  objectives = jnp.asarray(
    [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.4, 0.0], [np.nan, np.nan]]
  )
  ids = jnp.arange(5, dtype=jnp.int32)
  fitness = jnp.mean(objectives, axis=1)
  value = parent_selection.criterion(
    'pareto', fitness, objectives, ids, jnp.float32(1.0)
  )
  np.testing.assert_array_equal(value, pareto.fitness(objectives, ids))
  # Only the fourth is beaten by another on all tasks; who failed has none.
  assert np.nanargmin(value) == 3 and np.isnan(value[4])
  shared = parent_selection.criterion(
    'shared', fitness, objectives, ids, jnp.float32(1.0)
  )
  # The second task is solved by one almost alone: that is worth most.
  assert np.nanargmax(shared) == 2 and np.isnan(shared[4])
  assert (
    parent_selection.criterion('fitness', fitness, None, ids, None) is fitness
  )


def test_sharing_bears_metrics_to_be_minimised():
  objectives = -jnp.asarray([[1.0, 3.0], [2.0, 1.0], [5.0, 5.0]])
  ids = jnp.arange(3, dtype=jnp.int32)
  fitness = jnp.mean(objectives, axis=1)
  shared = parent_selection.criterion(
    'shared', fitness, objectives, ids, jnp.float32(1.0)
  )
  assert np.all(shared >= 0) and np.argmin(shared) == 2


def vector(members):
  """Two tasks at odds: near to a half, and near to minus a half."""
  other = jax.tree.map(lambda leaf: leaf + 1.0, members)
  return jnp.stack([problems.fitness(members), problems.fitness(other)], 1)


@pytest.mark.parametrize(
  'chosen_by, with_succession',
  (('pareto', False), ('shared', False), ('pareto', True)),
)
def test_a_population_chosen_by_the_vector_keeps_its_ends(
  chosen_by, with_succession
):
  strategy = algorithm.Genome(
    P,
    with_succession=with_succession,
    chosen_by=chosen_by,
    survivors='truncation',
    parents='tournament',
  )
  params = strategy.default_params
  members = problems.population()
  tasks = vector(members)
  scores = base.Scores(tasks.mean(axis=1), tasks)
  state = strategy.init(problems.KEY, members, scores, params)
  best = np.asarray(tasks.max(axis=0))
  for _ in range(4):
    members, state = strategy.ask(problems.KEY, state, params)
    tasks = vector(members)
    scores = base.Scores(tasks.mean(axis=1), tasks)
    state = strategy.tell(problems.KEY, members, scores, state, params)
    np.testing.assert_allclose(state.tasks, vector(state.population), rtol=1e-5)
    if chosen_by == 'pareto' and not with_succession:
      # The two ends of the first front have infinite distance.
      now = np.asarray(state.tasks.max(axis=0))
      assert np.all(now >= best - 1e-6)
      best = now
