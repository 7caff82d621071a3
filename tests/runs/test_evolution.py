"""The loop, with a real strategy on a toy genome."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.runs import evolution
from evojax_llm.runs import run_state
from evojax_llm.strategies.genome.algorithm import Genome

P, D = 6, 4


def make_population():
  return {'x': jax.random.normal(jax.random.key(3), (P, D))}


class Score:
  """Fitness is the (negative) distance to the ones; two equal tasks.

  Members whose first gene is above `fails_above` cannot be scored.
  """

  def __init__(self, fails_above=np.inf):
    self.fails_above = fails_above
    self.calls = []

  def __call__(self, population, members):
    self.calls.append(np.asarray(members))
    x = np.asarray(population['x'])[members]
    fitness = -np.abs(x - 1).mean(axis=1).astype(np.float32)
    failed = x[:, 0] > self.fails_above
    fitness[failed] = np.nan
    tasks = np.stack([fitness, fitness], axis=1)
    reasons = ['too large' if bad else None for bad in failed]
    return Evaluation(fitness, tasks, [], reasons)


# One instance compiles once.
make_strategy = functools.cache(lambda: Genome(P))


def run(score=None, seed=0, generations=6, strategy=None, **kwargs):
  strategy = strategy or make_strategy()
  return list(
    evolution.evolve(
      strategy,
      None,
      score or Score(),
      population=make_population(),
      seed=seed,
      generations=generations,
      **kwargs,
    )
  )


def assert_same(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def host(state):
  return jax.tree.map(np.array, state)


def test_a_run_counts_and_remembers_what_it_scored():
  score = Score()
  rounds = run(score)
  assert [g.number for _, g in rounds] == list(range(7))
  state, last = rounds[-1]
  scored = [i for _, g in rounds for i in g.ids]
  assert len(scored) == len(set(scored)), 'a member was scored twice'
  assert last.evaluations == len(scored) == sum(map(len, score.calls))
  assert int(state.evaluations) == len(scored)
  fitness = np.concatenate([g.fitness for _, g in rounds])
  assert last.best_fitness == fitness.max()
  assert last.best_id == scored[int(fitness.argmax())]
  best = np.asarray(state.strategy.memory.best['x'])
  np.testing.assert_allclose(-np.abs(best - 1).mean(), fitness.max(), rtol=1e-6)


def test_best_fitness_never_falls_and_the_search_gets_somewhere():
  best = [g.best_fitness for _, g in run(generations=20)]
  assert all(a <= b for a, b in zip(best[:-1], best[1:], strict=True))
  assert best[-1] > best[0] + 0.1


def test_empty_slots_are_not_scored():
  score = Score()
  strategy = Genome(P, with_succession=False, mutation_rate=0.1)
  rounds = run(score, strategy=strategy)
  assert all(len(c) < strategy.num_proposals for c in score.calls[1:])
  assert all(i >= 0 for _, g in rounds for i in g.ids)


def test_parents_are_known_members():
  seen = set()
  for _, generation in run():
    born = set(generation.ids)
    for parents in generation.parents:
      assert set(parents) - {-1} <= seen | born
    seen |= born


def test_same_seed_same_bits():
  first, again, other = run(seed=5), run(seed=5), run(seed=6)
  assert_same(first[-1][0], again[-1][0])
  x = [np.asarray(r[-1][0].strategy.memory.best['x']) for r in (first, other)]
  assert not np.array_equal(*x)


@pytest.mark.parametrize('stop', [0, 1, 2, 5])
def test_going_on_from_a_state_changes_nothing(stop):
  strategy = make_strategy()
  whole, kept = [], None
  for state, generation in evolution.evolve(
    strategy,
    None,
    Score(),
    population=make_population(),
    seed=1,
    generations=6,
  ):
    # Copied at once: the strategy gives up the buffers of its last state.
    whole.append((host(state), generation))
    if generation.number == stop:
      kept = jax.tree.map(jnp.array, state)
  rest = run(seed=99, state=kept)
  assert [g.number for _, g in rest] == list(range(stop + 1, 7))
  assert_same(host(rest[-1][0]), whole[-1][0])
  for (_, a), (_, b) in zip(rest, whole[stop + 1 :], strict=True):
    assert (a.ids, a.parents, a.operators) == (b.ids, b.parents, b.operators)
    np.testing.assert_array_equal(a.fitness, b.fitness)


def test_failed_members_are_counted_and_never_win():
  limit = float(np.median(make_population()['x'][:, 0]))
  rounds = run(Score(fails_above=limit), generations=8)
  assert sum(g.failed for _, g in rounds) > 0
  for _, generation in rounds:
    assert np.isfinite(generation.best_fitness)
    assert np.isfinite(generation.mean_fitness)
  state = rounds[-1][0]
  assert float(state.strategy.memory.best['x'][0]) <= limit


@pytest.mark.parametrize('bad', (np.nan, np.inf, -np.inf))
def test_members_whose_fitness_is_not_finite_have_failed(bad):
  def score(population, which):
    return np.where(which == 2, np.float32(bad), of_x(population, which))

  (_, first), (_, last) = run(score, generations=1)
  failed = 'its fitness is not finite'
  assert first.reasons == [failed if i == 2 else None for i in first.ids]
  assert np.isnan(first.fitness[2]) and np.isfinite(first.best_fitness)
  assert np.isfinite(last.best_fitness) and last.best_id != 2
  with pytest.raises(evolution.EvolutionError, match=failed):
    run(lambda population, which: np.full(len(which), bad, np.float32))


def test_all_members_failing_is_an_error_with_the_reason():
  with pytest.raises(evolution.EvolutionError, match='too large'):
    run(Score(fails_above=-np.inf))


def test_all_members_failing_on_other_items_is_an_error_with_the_reason():
  score = Score()

  def redraw(number):
    score.fails_above = -np.inf if number == 2 else np.inf

  with pytest.raises(evolution.EvolutionError, match='generation 2.*too large'):
    run(score, redraw=redraw)


def flat(population, members):
  return np.full(len(members), 0.5, np.float32)


def test_of_equals_the_elder_stays_best():
  assert run(flat)[-1][1].best_id == 0


def test_patience_ends_a_run_that_stands_still():
  assert run(flat, patience=3)[-1][1].number == 3


def test_abstract_state_is_that_of_a_run():
  strategy = make_strategy()
  abstract = run_state.abstract_state(
    strategy, strategy.default_params, make_population(), num_tasks=2
  )
  for state, _ in run(strategy=strategy, generations=2):
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for a, b in zip(
      jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
    ):
      assert (a.shape, a.dtype) == (b.shape, b.dtype)


class OtherTargets(Score):
  """A score whose target moves with every draw."""

  target = 1.0

  def redraw(self, number):
    self.target = 1.0 + number
    self.calls.append(f'draw {number}')

  def __call__(self, population, members):
    x = np.asarray(population['x']) / self.target
    return super().__call__({'x': x}, members)

  def fitness(self, genome):
    one = {'x': np.asarray(genome['x'])[None]}
    return Score()({'x': one['x'] / self.target}, [0]).fitness[0]


def test_members_that_live_on_are_scored_again_on_other_items():
  score = OtherTargets()
  steps = run(score, generations=3, redraw=score.redraw)
  assert [c for c in score.calls if isinstance(c, str)] == [
    'draw 1',
    'draw 2',
    'draw 3',
  ]
  last = steps[-1][0]
  counted = sum(len(c) for c in score.calls if not isinstance(c, str))
  assert int(last.evaluations) == counted
  # Everything that the state says holds for the items of the last draw.
  inner, memory = last.strategy, last.strategy.memory
  for i in range(P):
    member = {'x': inner.population['x'][i]}
    assert inner.fitness[i] == pytest.approx(score.fitness(member), rel=1e-5)
  assert memory.best_fitness == pytest.approx(
    score.fitness(memory.best), rel=1e-5
  )
  assert float(memory.best_fitness) >= float(np.max(inner.fitness))
  if memory.personal is not None:
    for i in range(P):
      own = {'x': memory.personal['x'][i]}
      assert memory.personal_fitness[i] == pytest.approx(
        score.fitness(own), rel=1e-5
      )


@pytest.mark.parametrize('other_items', (False, True))
def test_a_strategy_sees_the_scores_of_the_tasks(other_items):
  # More slots than members: the last ones are empty and not scored.
  strategy = Genome(P, chosen_by='pareto', max_population=P + 4)
  score = OtherTargets()
  kwargs = {'redraw': score.redraw} if other_items else {}
  steps = run(
    score, strategy=strategy, generations=4, maximise=(True, False), **kwargs
  )
  assert all(-1 not in generation.ids for _, generation in steps)
  inner = steps[-1][0].strategy
  fitness = np.asarray(inner.fitness)
  assert np.isnan(fitness[np.asarray(inner.ids) < 0]).all()
  np.testing.assert_array_equal(
    inner.tasks, np.stack([fitness, -fitness], axis=1)
  )


def test_the_same_items_again_change_nothing_but_the_count():
  plain, again = run(), run(redraw=lambda number: None)
  for (_, a), (_, b) in zip(plain, again, strict=True):
    assert a.best_fitness == pytest.approx(b.best_fitness, rel=1e-6)
    np.testing.assert_allclose(a.fitness, b.fitness, rtol=1e-6)
  np.testing.assert_array_equal(
    plain[-1][0].strategy.population['x'], again[-1][0].strategy.population['x']
  )
  assert int(again[-1][0].evaluations) > int(plain[-1][0].evaluations)


def test_members_that_are_only_remembered_can_be_left_out():
  # The elites move too, so the best of all time is lost sooner or later.
  strategy = make_strategy()
  rounds = evolution.evolve(
    strategy,
    None,
    Score(),
    population=make_population(),
    seed=0,
    generations=9,
  )
  states = [host(state) for state, _ in rounds]
  lost = [
    s for s in states if int(s.strategy.memory.best_id) not in s.strategy.ids
  ]
  assert lost
  for state in lost:
    inner = state.strategy
    assert run_state.best_members(state, 1).ids == [
      int(state.strategy.memory.best_id)
    ]
    found = run_state.best_members(state, P, keep_best=False)
    assert sorted(found.ids) == sorted(inner.ids.tolist())
    assert found.fitness[0] == inner.fitness.max() < inner.memory.best_fitness
    winner = inner.fitness.argmax()
    np.testing.assert_array_equal(
      found.population['x'][0], inner.population['x'][winner]
    )
  failed = inner.replace(fitness=np.full_like(inner.fitness, np.nan))
  none_alive = state.replace(strategy=failed)
  found = run_state.best_members(none_alive, 1, keep_best=False)
  assert found.ids == [int(state.strategy.memory.best_id)]


def of_x(population, which):
  """Fitness as a plain array."""
  return -np.abs(np.asarray(population['x'])[which] - 1).mean(axis=1)


class Space:
  """A space that can begin."""

  def initial(self, recipe, size, key):
    assert recipe == evolution.RECIPE and size == P
    return types.SimpleNamespace(population=make_population())


def test_a_search_of_a_space_by_a_function_of_fitness():
  search = evolution.evolve(make_strategy(), Space(), of_x, generations=3)
  assert search.stop is None
  generation = list(search)[-1][1]
  assert generation.number == 3 and search.stop == 'generations'
  scored = run(generations=3)[-1][1]
  assert generation.best_fitness == scored.best_fitness
  np.testing.assert_array_equal(
    generation.best_task_scores, [generation.best_fitness]
  )


@pytest.mark.parametrize('budget', (P - 2, P, P + 1, 40))
def test_exactly_so_many_members_are_scored(budget):
  score = Score()
  search = evolution.evolve(
    make_strategy(),
    None,
    score,
    population=make_population(),
    evaluations=budget,
  )
  rounds = list(search)
  assert search.stop == 'evaluations'
  assert sum(map(len, score.calls)) == budget
  state, last = rounds[-1]
  assert int(state.evaluations) == last.evaluations == budget
  assert sum(g.scored for _, g in rounds) == budget
  spent = [r == evolution.SPENT for r in last.reasons]
  assert spent == [False] * last.scored + [True] * (len(spent) - last.scored)
  assert np.isnan(last.fitness[spent]).all()


def test_without_the_best_kept_generations_are_whole():
  score = Score()
  strategy = Genome(P, keep_best=False)
  search = evolution.evolve(
    strategy, None, score, population=make_population(), evaluations=40
  )
  rounds = list(search)
  assert all(g.scored == len(g.ids) for _, g in rounds)
  assert search.stop == 'evaluations'
  assert 40 - P < rounds[-1][1].evaluations == sum(map(len, score.calls)) <= 40


def test_members_are_refined_before_they_are_scored():
  seen = []

  def refine(members, which, key):
    seen.append((len(which), np.asarray(jax.random.key_data(key))))
    x = members['x'].at[which].set(1.0)
    return {'x': x}

  rounds = run(generations=2, refine=refine, patience=None)
  assert len(seen) == 2 and not np.array_equal(seen[0][1], seen[1][1])
  for (_, generation), (count, _) in zip(rounds[1:], seen, strict=True):
    assert count == len(generation.ids)
    np.testing.assert_array_equal(generation.fitness, 0.0)
  best = rounds[-1][0].strategy.memory.best
  np.testing.assert_array_equal(best['x'], np.ones(D))


def test_a_strategy_that_sees_items_is_given_them():
  class Sees(Genome):
    """Looks at the items, and remembers how many."""

    sees = 'items'

    def __init__(self, *args, **options):
      super().__init__(*args, **options)
      self.sees, self.shapes = 'items', []

    def _succeed(self, key, population, scores, state, params):
      self.shapes.append(scores.items.shape)
      return super()._succeed(key, population, scores, state, params)

  def score(population, which):
    scored = Score()(population, which)
    scored.tasks = [
      types.SimpleNamespace(
        values=np.ones((len(which), 3), np.float32), maximise=maximise
      )
      for maximise in (True, False)
    ]
    return scored

  strategy = Sees(P)
  for state, _ in run(score, strategy=strategy, generations=2):
    assert state.strategy.tasks.shape == (P, 2)
  assert strategy.shapes == [(strategy.num_proposals, 6)]
