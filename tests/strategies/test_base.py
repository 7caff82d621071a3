import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import model_swarms
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm
from tests.strategies import problems


@functools.cache
def make(**options):
  return algorithm.Genome(problems.P, **options)


def test_init_keeps_what_it_is_given_and_the_best_once():
  strategy = make()
  members = problems.population()
  fitness = problems.fitness(members)
  tasks = jnp.stack([fitness, 1.0 - fitness], axis=1)
  state = strategy.init(
    problems.KEY,
    members,
    base.Scores(fitness, tasks),
    strategy.default_params,
  )
  np.testing.assert_array_equal(state.fitness, fitness)
  best, memory = int(np.argmax(fitness)), state.memory
  assert int(memory.best_id) == best and int(memory.best_generation) == 0
  np.testing.assert_array_equal(memory.best_tasks, tasks[best])
  # Members it does not see the tasks of are not kept with them.
  assert strategy.sees == 'fitness' and state.tasks is None


def test_the_memory_tells_when_the_best_was_born_and_what_it_does():
  strategy = make()
  params = strategy.default_params
  state = strategy.init(
    problems.KEY,
    problems.population(),
    base.Scores(jnp.zeros(problems.P), jnp.zeros((problems.P, 2))),
    params,
  )
  for generation in (1, 2):
    members, state = strategy.ask(problems.KEY, state, params)
    fitness = problems.fitness(members) * float(generation == 2)
    tasks = jnp.stack([fitness, 2 * fitness], axis=1)
    state = strategy.tell(
      problems.KEY, members, base.Scores(fitness, tasks), state, params
    )
    memory = state.memory
    assert int(memory.best_generation) == (2 if generation == 2 else 0)
    np.testing.assert_array_equal(
      memory.best_tasks, np.float32([1, 2]) * np.asarray(memory.best_fitness)
    )


def test_members_that_are_held_can_be_scored_again():
  strategy = make()
  state = problems.last(strategy, problems.start(strategy), 4)
  genomes, ids = strategy.held(state)
  assert len(ids) == 2 * problems.P + 2
  again = strategy.rescored(
    jax.tree.map(jnp.copy, state), problems.scores(genomes)
  )
  problems.assert_same(again.population, state.population)
  np.testing.assert_allclose(again.fitness, state.fitness, rtol=1e-6)
  assert int(again.memory.best_id) == int(state.memory.best_id)
  # On other items the worst are the best.
  other = strategy.rescored(state, base.Scores(-problems.fitness(genomes)))
  assert int(other.memory.best_id) == int(again.memory.worst_id)
  assert int(other.memory.best_generation) == 4


def test_scores_that_a_strategy_sees_are_asked_for():
  strategy = make(chosen_by='pareto')
  assert strategy.sees == 'tasks'
  with pytest.raises(ValueError, match="without tasks.*sees 'tasks'"):
    problems.start(strategy)


@pytest.mark.parametrize(
  'with_succession, dtype',
  [(True, jnp.float32), (True, jnp.bfloat16), (False, jnp.bfloat16)],
)
def test_states_keep_their_types_under_scan(with_succession, dtype):
  strategy = make(with_succession=with_succession)
  params = strategy.default_params
  state = problems.start(strategy, dtype)

  def generation(state, key):
    members, state = strategy.ask(key, state, params)
    state = strategy.tell(key, members, problems.scores(members), state, params)
    return state, state.memory.best_fitness

  keys = jax.random.split(jax.random.key(0), 6)
  final, best = jax.jit(lambda s: jax.lax.scan(generation, s, keys))(state)
  kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), final)
  assert kinds == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
  assert {x.dtype for x in jax.tree.leaves(final.population)} == {
    jnp.dtype(dtype)
  }
  assert np.all(np.diff(best) >= 0)


def test_nothing_recompiles_when_hyperparameters_change():
  strategy = algorithm.Genome(problems.P)
  state = problems.start(strategy)
  state = problems.last(strategy, state, 2)

  def programs():
    kind = type(strategy)
    return kind._ask._cache_size(), kind._tell._cache_size()

  compiled = programs()
  params = base.as_arrays(
    strategy.default_params.replace(sigma=0.5, cross_rate=jnp.float32(0.1))
  )
  problems.last(strategy, state, 4, params=params)
  assert programs() == compiled


def test_tell_gives_up_the_state_but_not_the_first_population():
  strategy = make()
  members = problems.population()
  state = strategy.init(
    problems.KEY, members, problems.scores(members), strategy.default_params
  )
  old = jax.tree.leaves(state.population)[0]
  problems.last(strategy, state, 1)
  assert old.is_deleted()
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(members))


def test_ask_copies_no_population():
  strategy = make()
  state = problems.start(strategy)
  _, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  assert asked.population is state.population
  assert asked.memory is state.memory


def test_scores_of_empty_slots_does_not_matter():
  strategy = make(with_succession=False, mutation_rate=0.2, cross_rate=0.4)
  params = strategy.default_params
  finals = []
  for filler in (jnp.nan, 1e9):
    state = problems.start(strategy)
    for _ in range(4):
      members, state = strategy.ask(problems.KEY, state, params)
      assert not np.all(state.proposal.filled)
      filled = state.proposal.filled
      values = jnp.where(filled, problems.fitness(members), filler)
      state = strategy.tell(
        problems.KEY, members, base.Scores(values), state, params
      )
    finals.append(state)
  problems.assert_same(*finals)


def test_wrong_sizes_are_refused():
  strategy = make()
  members = problems.population(members=5)
  with pytest.raises(ValueError, match='5 members.*expected 8'):
    strategy.init(
      problems.KEY, members, problems.scores(members), strategy.default_params
    )
  with pytest.raises(ValueError, match='population_size 0'):
    algorithm.Genome(0)


def test_genomes_that_are_cut_evolve_as_whole_ones(monkeypatch):
  monkeypatch.setattr(sharding, '_FEW', 1)
  whole = make()
  split = whole.cut_over(sharding.population_mesh())
  one = problems.last(whole, problems.start(whole), 5)
  two = problems.last(split, problems.start(split), 5)
  # Of (P, 2, 2, 4) the last axis alone can be cut for four devices.
  leaf = jax.tree.leaves(two.population)[1]
  assert leaf.sharding.shard_shape(leaf.shape) == (problems.P, 2, 2, 1)
  np.testing.assert_array_equal(one.ids, two.ids)
  for field in dataclasses.fields(one):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      getattr(one, field.name),
      getattr(two, field.name),
    )


@pytest.mark.parametrize(
  'name, swept, static',
  (
    ('genome_plus', {'sigma': 0.2, 'cross_low': -1.0}, {'mask': 'layer'}),
    (
      'genome',
      {'merge_parameters': {'density': 0.5}, 'merge': 'dare_ties'},
      {'merge': 'dare_linear'},
    ),
    ('model_swarms', {'inertia': 0.4}, {'restart': 'never'}),
    ('low_rank_es', {'learning_rate': 0.2}, {'rank': 2}),
    ('pso_merging', {'social': 1.0}, {'draws': 'none'}),
    ('evogm', {'learning_rate': 0.2}, {'epochs': 2}),
    ('m2n2', {'alpha': 0.0}, {'matchmaker': False}),
    ('PSO', {'inertia_coeff': 0.5}, {}),
    ('SNES', {'sigma': 0.2}, {'optimizer': 'adam', 'learning_rate': 0.1}),
    ('SimpleGA', {'crossover_rate': 0.5}, {'sigma': 0.5}),
  ),
)
def test_points_of_a_sweep_share_their_programs(name, swept, static):
  genome = jax.eval_shape(lambda: stack.take(problems.population(), 0))
  common = {
    'genome': {'merge_base': jax.tree.map(jnp.zeros_like, genome)},
    'evogm': {'top_k': 4},
  }.get(name, {})
  if 'merge' in swept:
    common['merge'] = swept.pop('merge')

  def make(**options):
    return registry.make_strategy(
      name, problems.P, genome=genome, **common | options
    )

  one, two, other = make(), make(**swept), make(**static)
  assert one == two and hash(one) == hash(two)
  assert (one == other) == (not static)


def test_another_point_compiles_nothing():
  sizes = []
  for sigma in (0.1, 0.2):
    strategy = model_swarms.ModelSwarms(problems.P, inertia=sigma)
    problems.last(strategy, problems.start(strategy), 2)
    sizes.append(
      [getattr(base.Strategy, f)._cache_size() for f in ('_ask', '_tell')]
    )
  assert sizes[0] == sizes[1]


def test_a_subclass_shares_programs_only_where_it_says_so():
  class Mine(model_swarms.ModelSwarms):
    pass

  one = Mine(problems.P)
  assert one == one and one != Mine(problems.P)
