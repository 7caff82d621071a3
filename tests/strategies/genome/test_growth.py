"""GENOME+ from few members to many, in places that are there from the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.genome import algorithm
from tests.strategies import problems

FEW, MANY = 4, 10


@functools.cache
def make(**options):
  return algorithm.Genome(FEW, max_population=MANY, **options)


def alive(state):
  return np.asarray(state.ids)[np.asarray(state.ids) >= 0]


@pytest.mark.parametrize(
  'options',
  (
    {},
    {'decay': 'member', 'survivors': 'tournament'},
    {'with_succession': False, 'survivors': 'universal'},
  ),
  ids=str,
)
def test_a_population_grows_until_it_is_full_and_nothing_recompiles(options):
  strategy = make(mutation_rate=0.3, **options)
  assert strategy.population_size == FEW and strategy.capacity == MANY
  state = problems.start(strategy)
  assert state.ids.shape == (MANY,) and len(alive(state)) == FEW
  sizes, seen, programs = [FEW], set(range(FEW)), None
  for members, _, before, after in problems.play(strategy, state, 9):
    filled = before.proposal.filled
    crossed = before.proposal.operator == algorithm.OPERATORS.index('crossover')
    assert crossed.sum() <= sizes[-1] // 2
    used = set(before.proposal.parents[filled].ravel().tolist())
    assert used <= seen | set(before.proposal.ids.tolist())
    seen |= set(before.proposal.ids[filled].tolist())
    ids = alive(after)
    assert len(set(ids.tolist())) == len(ids) and set(ids.tolist()) <= seen
    fitness = np.asarray(after.fitness)
    empty = np.asarray(after.ids) < 0
    assert np.isnan(fitness[empty]).all()
    np.testing.assert_allclose(
      fitness[~empty],
      np.asarray(problems.fitness(after.population))[~empty],
      rtol=1e-5,
    )
    if sizes[-1] < MANY and sizes[-1] + filled.sum() <= MANY:
      if before.proposal.operator.max() > 0:  # nobody dies as long as it grows
        assert set(before.ids[before.ids >= 0].tolist()) <= set(ids.tolist())
    sizes.append(len(ids))
    now = type(strategy)._tell._cache_size(), type(strategy)._ask._cache_size()
    assert now == (programs or now)
    programs = now
    del members
  assert np.all(np.diff(sizes) >= 0) and sizes[-1] == MANY
  assert len(set(sizes)) > 2


def test_nobody_is_the_partner_or_parent_of_an_empty_place():
  strategy = make()
  state = problems.start(strategy)
  x = state.population['layers']['mlp']['a']
  v = state.velocity['layers']['mlp']['a']
  for place in range(FEW):
    target = np.asarray(x + v)[place]
    gaps = np.abs(np.asarray(x)[:FEW] - target).reshape(FEW, -1).max(axis=1)
    assert gaps.min() < 1e-5 and gaps.argmin() != place


def test_as_released_the_step_shrinks_with_every_member_alive():
  strategy = make(decay='member', step_length=0.5, step_decay=0.9)
  params = strategy.default_params
  state = problems.start(strategy)
  x = np.asarray(state.population['layers']['mlp']['a'])
  members, asked = strategy.ask(problems.KEY, state, params)
  assert float(asked.step_length) == pytest.approx(0.5 * 0.9**FEW)
  speed = np.asarray(asked.velocity['layers']['mlp']['a'])
  moved = np.asarray(members['layers']['mlp']['a'])
  for i in range(FEW):
    np.testing.assert_allclose(
      moved[i] - x[i], 0.5 * 0.9 ** (i + 1) * speed[i], rtol=1e-3, atol=1e-5
    )


def test_growth_is_the_same_as_no_growth_without_room():
  roomy = algorithm.Genome(FEW, max_population=FEW)
  plain = algorithm.Genome(FEW)
  problems.assert_same(
    problems.last(roomy, problems.start(roomy), 4),
    problems.last(plain, problems.start(plain), 4),
  )


def test_a_population_of_failures_stays_a_population():
  strategy = make(with_succession=False)
  members = problems.population(members=FEW)
  state = strategy.init(
    problems.KEY,
    members,
    base.Scores(jnp.full(FEW, jnp.nan)),
    strategy.default_params,
  )
  state = problems.last(strategy, state, 3)
  assert len(alive(state)) >= FEW
  assert np.isfinite(state.memory.best_fitness)


def test_shrinking_is_refused():
  with pytest.raises(ValueError, match='slots for 3 members'):
    algorithm.Genome(FEW, max_population=3)


def test_spared_elites_stay_where_they_are_and_are_not_scored():
  strategy = algorithm.Genome(
    problems.P, spare_elites=True, elite_share=0.25, mutation_rate=0.5
  )
  state = problems.start(strategy)
  for _, _, before, after in problems.play(strategy, state, 5):
    if int(before.generation) % 2:
      continue
    order = np.argsort(-before.fitness)[:2]
    spared = before.proposal.ids[: problems.P] < 0
    assert set(np.flatnonzero(spared)) == set(order)
    for place in order:
      assert int(after.ids[place]) == int(before.ids[place])
      problems.assert_same(
        stack.take(after.population, place),
        stack.take(jax.tree.map(jnp.asarray, before.population), place),
      )
      problems.assert_same(
        stack.take(after.velocity, place),
        stack.take(jax.tree.map(jnp.asarray, before.velocity), place),
      )
    np.testing.assert_allclose(
      after.fitness, problems.fitness(after.population), rtol=1e-5
    )


def test_the_elites_that_stay_are_those_that_selection_would_keep():
  # On the second task no other member scores: shared, that is worth the most.
  tasks = jnp.asarray([[0.9, 0.0], [0.8, 0.0], [0.8, 0.0], [0.0, 0.6]])
  strategy = algorithm.Genome(
    4, spare_elites=True, elite_share=0.25, chosen_by='shared'
  )
  members = problems.population(members=4)
  params = strategy.default_params
  scores = base.Scores(jnp.mean(tasks, axis=1), tasks)
  state = strategy.init(problems.KEY, members, scores, params)
  _, state = strategy.ask(problems.KEY, state, params)
  spared = np.asarray(state.proposal.ids[:4]) < 0
  assert spared.tolist() == [False, False, False, True]
