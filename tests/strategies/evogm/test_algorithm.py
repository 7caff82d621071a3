import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evojax_llm.genomes import gates
from evojax_llm.genomes import initial
from evojax_llm.runs import checkpoint
from evojax_llm.runs import evolution
from evojax_llm.runs import record
from evojax_llm.runs import record_rows
from evojax_llm.strategies import base
from evojax_llm.strategies import registry
from evojax_llm.strategies.evogm import coordinates
from evojax_llm.strategies.evogm import training
from evojax_llm.strategies.evogm.training import Generator
from tests.strategies import problems

N, P, T = 10, 20, 3
GATES = gates.GATES
# The only ones that are compiled; the others share their programs.
SMALL = {'width': 32, 'epochs': 200, 'learning_rate': 1e-3}
OTHER = {
  **SMALL,
  'top_k': 4,
  'mode': 'paper',
  'generators': 'single',
  'epochs': 3,
}


AVERAGE = {GATES: jnp.full((10, N), 1 / N)}


@functools.cache
def make(size=P, **options):
  return registry.make_strategy(
    'evogm', size, genome={GATES: jnp.zeros(N)}, **SMALL | options
  )


def start(strategy, members):
  scores = base.Scores(fitness_of(members))
  return strategy.init(problems.KEY, members, scores, strategy.default_params)


def fitness_of(members):
  """Negative, so that a slot that is taken for a member would win."""
  return problems.fitness(members) - 1.0


def first_population(seed=0, size=P):
  rows = initial.make_rows(
    N, ('experts', 'average', 'uniform'), size, jax.random.key(seed)
  )
  return {GATES: jnp.asarray(np.stack([r.second for r in rows]), jnp.float32)}


def begin(strategy):
  return start(strategy, first_population(0, strategy.population_size))


@functools.cache
def played(**options):
  """(members, fitness, state before, state after) of two rounds."""
  return [
    (np.asarray(members[GATES]), fitness, before, jax.tree.map(np.array, after))
    for members, fitness, before, after in _play(make(**options))
  ]


def _play(strategy):
  state = begin(strategy)
  for _ in range(7):
    for step in problems.play(strategy, state, 1, score=fitness_of):
      # tell gives the state up.
      yield (*step[:3], jax.tree.map(jnp.copy, step[3]))
      state = step[3]


def test_it_begins_with_experts_their_average_and_random_rows():
  first = np.asarray(first_population()[GATES])
  np.testing.assert_array_equal(first[:N], np.eye(N))
  np.testing.assert_allclose(first[N], 1 / N)
  rest = first[N + 1 :]
  assert rest.min() < -0.8 and rest.max() > 0.8 and abs(rest).max() <= 1
  assert abs(rest.mean()) < 0.2


@pytest.mark.parametrize('cache, evaluations', [(True, 150), (False, 160)])
def test_counts_of_evaluations_winners_and_losers(cache, evaluations):
  steps = played(cache=cache)
  scored = [int(before.proposal.filled.sum()) for _, _, before, _ in steps]
  assert P + sum(scored) == evaluations
  assert scored == [P] * T + [P - N * cache] + [P] * T
  counts = []
  for *_, before, _ in (step for i, step in enumerate(steps) if i != T):
    pools = before.history.pools(make()._winners)
    sizes = int(pools.winners.sum()), int(pools.losers.sum())
    assert int(pools.count) == min(sizes)
    worst = before.history.fitness[np.asarray(pools.winners)].min()
    assert worst >= before.history.fitness[np.asarray(pools.losers)].max()
    counts.append(sizes)
  assert counts == [(6, 14), (12, 28), (18, 42)] * 2


def test_the_population_is_the_best_of_old_and_new():
  for i, (members, fitness, before, after) in enumerate(played()):
    if i == T:
      continue
    known = np.concatenate([before.fitness, fitness])
    order = np.argsort(-known, kind='stable')[:P]
    np.testing.assert_array_equal(after.fitness, known[order])
    both = np.concatenate([before.population[GATES], members])
    np.testing.assert_array_equal(after.population[GATES], both[order])
    # What a row stands for is what was scored.
    history = after.history
    there = history.ids >= 0
    np.testing.assert_allclose(
      history.rows[there] @ after.basis, history.members[there], atol=1e-5
    )


@pytest.mark.parametrize('cache', (True, False))
def test_elites_are_the_next_basis_bit_for_bit(cache):
  members, _, before, after = played(cache=cache)[T]
  history = before.history
  best = np.argsort(-history.fitness[: P * (T + 1)], kind='stable')[:N]
  np.testing.assert_array_equal(after.basis, history.members[best])
  np.testing.assert_array_equal(members[:N], history.members[best])
  np.testing.assert_allclose(members[N], after.basis.mean(axis=0), atol=1e-6)
  np.testing.assert_array_equal(after.fitness[:N], history.fitness[best])
  # Unchanged members keep their ids; those that are scored again have new ones.
  assert (after.ids[:N] == history.ids[best]).all() == cache
  np.testing.assert_array_equal(
    before.proposal.ids[:N] >= 0, np.full(N, not cache)
  )
  assert len(set(after.ids.tolist())) == P and (after.ids >= 0).all()
  assert (after.history.ids[P:] == -1).all()


def test_generators_live_for_a_round_or_an_iteration():
  steps = [int(after.learner.adam.count) for *_, after in played()]
  epochs = SMALL['epochs']
  assert steps == [epochs, 2 * epochs, 3 * epochs, 3 * epochs] + [
    epochs,
    2 * epochs,
    3 * epochs,
  ]


def test_fewer_elites_make_a_smaller_search_with_one_generator():
  strategy = make(8, **OTHER)
  first = start(strategy, {GATES: jax.random.normal(problems.KEY, (8, N))})
  score = {'score': fitness_of}
  steps = list(problems.play(strategy, first, T + 2, **score))
  for members, _, before, _ in steps[T:]:
    assert not np.any(before.asked[:, 4:]) and np.any(before.asked[:, :4])
    assert not np.any(before.basis[4:])
    np.testing.assert_allclose(
      np.asarray(members[GATES]),
      before.asked[:, :4] @ before.basis[:4],
      atol=1e-5,
    )
  # Generators are new in every iteration, and there is no way back.
  for _, _, before, _ in steps:
    assert int(before.learner.adam.count) == OTHER['epochs']
    assert np.isnan(before.cycle_error)
    assert before.learner.adam.mu['params']['Dense_0']['bias'].shape[0] == 1
  monitors = strategy.monitors(steps[-1][3])
  assert monitors['singular_values'].shape == (4,)
  assert np.isnan(monitors['cycle_error'])
  with pytest.raises(ValueError, match='larger population'):
    make(8)


def test_products_with_the_basis_are_those_in_double_precision():
  rng = np.random.default_rng(0)
  rows = rng.uniform(-1, 1, (20, 10)).astype(np.float32)
  basis = (100 * rng.normal(size=(10, 10))).astype(np.float32)
  rows[:10] = np.eye(10)
  # Terms that cancel.
  basis[1] = -basis[0] * np.float32(1 + 1e-6)
  rows[12, :2] = 1.0
  exact = (rows.astype(np.float64) @ basis.astype(np.float64)).astype('f4')
  made = np.asarray(jax.jit(coordinates.combine)(rows, basis))
  np.testing.assert_array_equal(made[:10], basis)
  np.testing.assert_array_max_ulp(made, exact, 1)
  assert np.any(rows @ basis != exact)


def test_members_that_are_known_cost_nothing():
  others = np.float32([[0.5, 0.5], [1, 0], [0, 0]])
  members = np.float32([[0.5, 0.5 + 5e-7], [0, 0], [1, 1], [1, 1], [1, 0.9]])
  known = coordinates.is_known(members, others, np.asarray([True, True, False]))
  np.testing.assert_array_equal(known, [True, False, False, True, False])
  # Generators that all propose one member: it is scored once.
  strategy = make()
  state = begin(strategy)
  zeros = jax.tree.map(jnp.zeros_like, state.learner)
  state = state.replace(learner=zeros, generation=jnp.int32(1))
  params = strategy.default_params.replace(learning_rate=jnp.float32(0))
  _, asked = strategy.ask(problems.KEY, state, params)
  assert int(asked.proposal.filled.sum()) == 1


def test_without_a_cycle_proposals_collapse():
  strategy = make(cycle_scale=0.0)
  state = begin(strategy)
  _, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  asked, rows = np.asarray(asked.asked), np.asarray(state.rows)
  assert asked.std(axis=0).mean() < 0.05 * rows.std(axis=0).mean()


def test_a_generator_learns_to_make_winners_and_the_way_back():
  rows = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (12, 3)), 'f4')
  wins = jnp.arange(12) < 4
  generator, active = Generator(16), jnp.ones(3, jnp.float32)
  params = make().default_params
  pools = training.Pools(rows, wins, ~wins, jnp.int32(4))

  def trained(dual):
    first = training.start(problems.KEY, generator, active, dual)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(first.networks)} == {
      1 + dual
    }
    return training.train(
      problems.KEY,
      first,
      generator,
      pools,
      active,
      params,
      batch=4,
      epochs=150,
    )

  _, cycle = trained(True)
  assert float(cycle) < 0.3  # 0.74 before the first step
  learner, cycle = trained(False)
  assert np.isnan(cycle) and int(learner.adam.count) == 150
  made = training.propose(learner, generator, rows, active)
  mean = rows[:4].mean(axis=0)
  assert np.abs(made - mean).mean() < 0.1 * np.abs(rows[4:] - mean).mean()


def test_a_step_is_one_of_adam():
  generator, adam = training.Generator(2), optax.scale_by_adam()
  learner = training.start(problems.KEY, generator, jnp.ones(3), True)
  expected, state = learner.networks, learner.adam
  for n in (1.0, -0.3, 1e-6):
    gradient = jax.tree.map(lambda leaf, n=n: n * leaf, learner.networks)
    with jax.numpy_dtype_promotion('standard'):
      steps, state = adam.update(gradient, state)
    expected = jax.tree.map(lambda x, d: x - 0.1 * d, expected, steps)
    learner = training._step(learner, gradient, jnp.float32(0.1))
    check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(check, learner.networks, expected)
    jax.tree.map(check, learner.adam, state)


def test_monitors_are_recorded():
  strategy = make()
  *_, after = played()[T]
  monitors = jax.device_get(strategy.monitors(after))
  assert int(monitors['known']) == N and monitors['spread'] > 0.1
  np.testing.assert_allclose(
    monitors['singular_values'],
    np.linalg.svd(after.basis, compute_uv=False),
    rtol=1e-4,
    atol=1e-5,
  )
  assert np.isfinite(strategy.monitors(played()[0][3])['cycle_error'])
  assert int(strategy.monitors(begin(strategy))['known']) == 0
  done = evolution.Generation(
    1, [], [], [], *[np.zeros(0)] * 2, [], 0.0, 0, 0.0, np.zeros(1), 1, 0
  )
  row = record_rows.metrics_row(done, ('a',), {}, monitors=monitors)
  assert record.plain(row)['monitors']['known'] == N
  assert 'monitors' not in record_rows.metrics_row(done, ('a',), {})


@pytest.mark.parametrize('done', (2, 5))
def test_a_search_that_was_killed_in_a_round_goes_on_bit_for_bit(
  done, tmp_path
):
  strategy = make()
  *_, state = played()[done - 1]
  folder = checkpoint.Checkpoints(tmp_path)
  state = jax.tree.map(jnp.asarray, state)
  folder.save(done, state)
  folder.close()
  _, restored = checkpoint.Checkpoints(tmp_path).restore(begin(strategy))
  again = problems.last(strategy, restored, 7 - done, score=fitness_of)
  problems.assert_same(again, played()[-1][3])


def test_genomes_that_are_too_large_are_refused():
  with pytest.raises(ValueError, match="10,000 numbers.*the space 'gates'"):
    registry.make_strategy('evogm', 8, genome={'x': jnp.zeros(10_000)})
  with pytest.raises(ValueError, match='20 elites for genomes of 10 numbers'):
    make(30, top_k=20)


def _surrogate(seed):
  """A target near mixes of the experts; its cost is the square distance."""
  rng = np.random.default_rng(seed)
  return rng.uniform(-0.2, 0.5, N).astype('f4')


def _cost(seed):
  target = _surrogate(seed)
  return lambda members: -jnp.sum(jnp.square(members[GATES] - target), axis=1)


def _searched(strategy, members, generations, seed, fitness=None):
  fitness = fitness or _cost(seed)
  state = strategy.init(
    problems.KEY, members, base.Scores(fitness(members)),
    strategy.default_params,
  )  # fmt: skip
  state = problems.last(
    strategy, state, generations, key=jax.random.key(seed), score=fitness
  )
  return state.memory


@functools.cache
def _cma_es():
  return registry.make_strategy(
    'CMA_ES', 10, genome={GATES: jnp.zeros(N)}, sigma=1 / 6
  )


def _one_plus_one(seed):
  rng, target = np.random.default_rng(seed), _surrogate(seed)
  first = np.asarray(first_population(seed)[GATES])
  cost = np.square(first - target).sum(axis=1)
  best, least = first[cost.argmin()], cost.min()
  for _ in range(160 - P):
    new = best + 0.15 * rng.normal(size=N)
    cost = np.square(new - target).sum()
    best, least = (new, cost) if cost < least else (best, least)
  return least


def _random(seed):
  rows = np.asarray(first_population(seed, 160)[GATES])
  return np.square(rows - _surrogate(seed)).sum(axis=1).min()


def test_searches_of_a_sphere_rank_as_they_should_at_160_evaluations():
  seeds = range(5)

  def least(*given):
    return -float(_searched(*given).best_fitness)

  costs = {
    'random': [_random(seed) for seed in seeds],
    'evogm': [least(make(), first_population(seed), 7, seed) for seed in seeds],
    'one_plus_one': [_one_plus_one(seed) for seed in seeds],
    'cma_es': [least(_cma_es(), AVERAGE, 15, seed) for seed in seeds],
  }
  medians = [float(np.median(values)) for values in costs.values()]
  assert medians == sorted(medians, reverse=True)


def test_planted_experts_are_merged_and_one_is_found_again():
  """A model of bigrams; each expert knows the next words of one task's."""
  rng = np.random.default_rng(0)
  contexts, words = 12, 8
  base_logits = rng.normal(size=(N, contexts, words))
  gold = rng.integers(words, size=(N, contexts))
  # What an expert learns disturbs the tasks of others.
  change = 0.7 * rng.normal(size=(N, N, contexts, words))
  own = np.arange(N)
  change[own, own] = 4.0 * np.eye(words)[gold]

  def tasks(members):
    logits = jnp.einsum('pn,nkcw->pkcw', members[GATES], jnp.asarray(change))
    logits = logits + jnp.asarray(base_logits)
    return jnp.mean(jnp.argmax(logits, axis=-1) == gold, axis=-1)

  def every(members):
    return jnp.mean(tasks(members), axis=1).astype(jnp.float32)

  experts = {GATES: jnp.eye(N)}
  found = _searched(_cma_es(), AVERAGE, 15, 0, every)
  plain = max(float(jnp.max(every(x))) for x in (experts, AVERAGE))
  assert found.best_fitness > plain + 0.1

  def third(members):
    return tasks(members)[:, 3].astype(jnp.float32)

  assert int(jnp.argmax(third(experts))) == 3
  found = _searched(_cma_es(), AVERAGE, 15, 0, third)
  assert found.best_fitness == 1.0
  assert int(jnp.argmax(found.best[GATES])) == 3
