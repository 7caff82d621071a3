import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import pareto
from evojax_llm.strategies import base
from evojax_llm.strategies import nsga2
from evojax_llm.strategies import registry
from tests.strategies import problems

P = 12
BOUNDS = (
  {'x': jnp.zeros(4), 'n': jnp.zeros(2, jnp.int32)},
  {'x': jnp.ones(4), 'n': jnp.full(2, 5, jnp.int32)},
)


@functools.cache
def within_bounds():
  return nsga2.NSGA2(P, bounds=BOUNDS)


def population():
  x, n = jax.random.split(jax.random.key(0))
  return {
    'x': jax.random.uniform(x, (P, 4), jnp.float32),
    'n': jax.random.randint(n, (P, 2), 0, 6),
  }


def two_goals(members):
  """Near to 0 and near to 1; whole numbers away from 2 cost both."""
  cost = 0.1 * jnp.sum(jnp.abs(members['n'] - 2), axis=1).astype(jnp.float32)
  near = [jnp.mean(jnp.square(members['x'] - at), axis=1) for at in (0.0, 1.0)]
  return jnp.stack([1.0 - near[0] - cost, 1.0 - near[1] - cost], axis=1)


def some_fail(members):
  failed = members['x'][:, 0] > 0.8
  return jnp.where(failed[:, None], jnp.nan, two_goals(members))


def play(strategy, rounds, members, score=two_goals):
  """Yields (proposed, their scores, state before, state after)."""
  params, key = strategy.default_params, problems.KEY
  tasks = score(members)
  scores = base.Scores(jnp.mean(tasks, axis=1), tasks)
  state = strategy.init(key, members, scores, params)
  for _ in range(rounds):
    proposed, asked = strategy.ask(key, state, params)
    tasks = score(proposed)
    before = jax.tree.map(np.array, asked)
    scores = base.Scores(jnp.mean(tasks, axis=1), tasks)
    state = strategy.tell(key, proposed, scores, asked, params)
    yield proposed, tasks, before, state


def volume(tasks):
  return pareto.hypervolume(np.asarray(tasks), np.zeros(2))


@pytest.mark.parametrize('score', [two_goals, some_fail])
def test_the_best_of_members_and_children_live_on(score):
  before_first = population()
  last = volume(score(before_first))
  for proposed, tasks, before, after in play(
    within_bounds(), 12, before_first, score
  ):
    for name, (low, high) in {
      name: (BOUNDS[0][name], BOUNDS[1][name]) for name in BOUNDS[0]
    }.items():
      assert np.all((proposed[name] >= low) & (proposed[name] <= high))
      assert proposed[name].dtype == before.population[name].dtype
    pool = np.concatenate([before.tasks, tasks])
    ids = np.concatenate([before.ids, before.proposal.ids])
    order = np.asarray(pareto.ranking(jnp.asarray(pool), jnp.asarray(ids)))
    np.testing.assert_array_equal(after.ids, ids[order[:P]])
    np.testing.assert_array_equal(after.tasks, pool[order[:P]])
    # Where all of the first front live, nothing of it is lost.
    front = np.asarray(pareto.fronts(jnp.asarray(pool)))
    if (front == 0).sum() <= P:
      assert volume(after.tasks) >= last - 1e-6
    last = volume(after.tasks)
  assert last > 1.1 * volume(score(before_first))


def test_descent_says_what_made_a_child():
  operators = set()
  for proposed, _, before, _ in play(within_bounds(), 6, population()):
    by_id = dict(zip(before.ids.tolist(), range(P), strict=True))
    proposal = before.proposal
    assert np.all(proposal.ids >= 0)
    for i, (parents, number) in enumerate(
      zip(proposal.parents, proposal.operator, strict=True)
    ):
      name = nsga2.OPERATORS[number]
      operators.add(name)
      assert (parents[1] >= 0) == ('crossover' in name)
      assert parents[0] != parents[1] and int(parents[0]) in by_id
      if name == 'crossover':
        one, two = (before.population['x'][by_id[int(p)]] for p in parents)
        child = np.asarray(proposed['x'][i])
        # A gene that is not crossed is the first parent's.
        assert np.all((child == one) | (one != two))
  assert operators == set(nsga2.OPERATORS)


def test_genomes_without_bounds_are_merged():
  members = problems.population(members=P)
  one = jax.tree.map(lambda leaf: leaf[0], members)
  strategy = registry.make_strategy('nsga2', P, genome=one)
  assert not strategy.within_bounds

  def score(members):
    fitness = problems.fitness(members)
    return jnp.stack([fitness, -(problems.fitness(members) ** 2)], axis=1)

  for proposed, _, before, after in play(strategy, 2, members, score):
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(proposed))
    assert len(set(after.ids.tolist())) == P
    np.testing.assert_allclose(
      before.reference, np.min(score(members), axis=0), rtol=1e-6
    )
  given = {'low': -1.0, 'high': 1.0, 'vary': 'bounds'}
  params = registry.make_strategy(
    'nsga2', P, genome=one, **given
  ).default_params
  for tree, end in ((params.lowest, -1.0), (params.highest, 1.0)):
    for leaf, gene in zip(*map(jax.tree.leaves, (tree, one)), strict=True):
      np.testing.assert_array_equal(leaf, np.full(gene.shape, end))


@pytest.mark.parametrize(
  'size, options, message',
  [
    (1, {}, 'population_size 1; expected 2 or more'),
    (4, {'vary': 'bounds'}, "vary 'bounds' for genomes without"),
    (4, {'merge': 'ties'}, 'change of a base'),
    (4, {'low': 1.0, 'high': 1.0}, 'expected low below high'),
    (4, {'cross_rate': 2.0}, 'cross_rate 2.0; expected 0 to 1'),
  ],
)
def test_what_cannot_be_is_refused(size, options, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy('nsga2', size, genome={'x': jnp.zeros(3)}, **options)
