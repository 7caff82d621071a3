import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import gates
from evojax_llm.strategies import base
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm
from tests.strategies import problems


def test_own_strategies_by_name():
  plain = registry.make_strategy('genome', 4)
  plus = registry.make_strategy('genome_plus', 4, sigma=0.2)
  assert isinstance(plain, algorithm.Genome) and not plain.with_succession
  assert plus.with_succession
  assert float(plus.default_params.sigma) == pytest.approx(0.2)


@pytest.mark.parametrize('dtype', (jnp.float32, jnp.bfloat16))
@pytest.mark.parametrize('name', ('Open_ES', 'SimpleGA'))
def test_stock_algorithms_keep_structure_and_types(name, dtype):
  members = problems.population(dtype)
  one = jax.tree.map(lambda leaf: leaf[0], members)
  strategy = registry.make_strategy(name, problems.P, genome=one)
  state = problems.start(strategy, dtype)
  seen = set(range(problems.P))
  for proposed, _, before, after in problems.play(strategy, state, 3):
    assert jax.tree.map(lambda x: (x.shape, x.dtype), proposed) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), members)
    )
    ids = set(before.proposal.ids.tolist())
    assert len(ids) == problems.P and not ids & seen
    seen |= ids
    state = after
  assert np.isfinite(state.memory.best_fitness)


def test_stock_algorithms_bear_failures():
  one = {'x': jnp.zeros(3)}
  strategy = registry.make_strategy('CMA_ES', 8, genome=one, sigma=0.5)
  members = {'x': jax.random.normal(problems.KEY, (8, 3))}
  params = strategy.default_params
  state = strategy.init(
    problems.KEY, members, base.Scores(jnp.full(8, jnp.nan)), params
  )
  for fitness in (
    jnp.full(8, jnp.nan),
    -jnp.arange(8.0).at[0].set(jnp.nan),
    -jnp.arange(8.0),
  ):
    members, state = strategy.ask(problems.KEY, state, params)
    assert np.all(np.isfinite(members['x']))
    scores = base.Scores(fitness)
    state = strategy.tell(problems.KEY, members, scores, state, params)
  assert float(state.memory.best_fitness) == 0.0


@pytest.mark.parametrize(
  'name, message',
  [
    ('CMA_ES', '10,000 numbers.*square.*Sep_CMA_ES'),
    ('DiffusionEvolution', 'square'),
    ('EvoTF_ES', 'copies of the population'),
    ('SV_Open_ES', 'several means'),
    ('Nonsense', "'Nonsense'.* one of genome"),
  ],
)
def test_refusals_give_the_reason(name, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy(
      name, 8, genome=jax.ShapeDtypeStruct((10_000,), 'f4')
    )


@pytest.mark.parametrize(
  'size, message',
  [
    (-1, 'population_size -1; expected 1 or more'),
    (2.5, 'population_size 2.5; expected 1 or more, whole'),
    (1_000_000, 'Got 1,000,000 members .* at most 131,072'),
  ],
)
def test_sizes_that_cannot_be_are_refused(size, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy('genome', size)


def test_genomes_beyond_32_bits_are_refused():
  huge = jax.ShapeDtypeStruct((2**16, 2**16), 'f4')
  with pytest.raises(ValueError, match="'genome'"):
    registry.make_strategy('PSO', 8, genome=huge)


def test_the_registry_does_not_import_evosax():
  code = (
    'import sys; from evojax_llm.strategies import registry; '
    'registry.strategy_names(); '
    'sys.exit(any(m.startswith("evosax") for m in sys.modules))'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_stock_names_are_evosax_names():
  from evosax import algorithms

  known = set(algorithms.algorithms)
  own = {'genome', 'genome_plus', 'model_swarms', 'low_rank_es'}
  own |= {'random_search', 'cma_es', 'pso_merging', 'lorahub', 'grid'}
  own |= {'nsga2', 'evogm', 'evomerge', 'ipop_cma_es', 'bipop_cma_es'}
  own |= {'mixed_cma_es'}
  own |= {'m2n2', 'randopt'}
  assert set(registry.strategy_names()) - own <= known


@pytest.mark.parametrize(
  'name, message',
  [
    ('tests.strategies.nowhere:Thing', 'cannot be imported'),
    ('tests.strategies.problems:Thing', "has no 'Thing'"),
    ('tests.strategies.problems:KEY', 'which has no for_space, declared, init'),
  ],
)
def test_a_name_of_no_strategy_says_what_is_missing(name, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy(name, 4)


class Mine(algorithm.Genome):
  """A strategy of a user's own."""


def test_a_strategy_of_a_users_own_by_name():
  strategy = registry.make_strategy(f'{__name__}:Mine', 4, sigma=0.3)
  assert isinstance(strategy, Mine)
  assert 'sigma' in registry.options(f'{__name__}:Mine')


class Space:
  """Three experts, as the spaces of weights of experts have them."""

  names = ('a', 'b', 'c')
  sample = gates.GateSpace.sample

  def experts(self):
    return {gates.GATES: jnp.eye(3)}


def fitness_of_weights(members):
  target = jnp.asarray([1.5, 0.0, 0.5], jnp.float32)
  gap = members[gates.GATES] - target
  return -jnp.sum(jnp.square(gap), axis=1)


@pytest.mark.parametrize('search', ('cma_es', 'random_search', 'lorahub'))
def test_searches_of_weights_improve_on_the_experts(search):
  strategy = registry.make_strategy(search, 8, Space())
  members = {gates.GATES: jnp.tile(jnp.eye(3), (3, 1))[:8]}
  first = fitness_of_weights(members)
  state = strategy.init(
    problems.KEY, members, base.Scores(first), strategy.default_params
  )
  state = problems.last(strategy, state, 20, score=fitness_of_weights)
  assert float(state.memory.best_fitness) > 0.5 * float(first.max())


def test_random_weights_have_free_mass():
  strategy = registry.make_strategy('random_search', 500, Space(), high=3.0)
  members = {gates.GATES: jnp.zeros((500, 3))}
  scores = base.Scores(jnp.zeros(500))
  params = strategy.default_params
  state = strategy.init(problems.KEY, members, scores, params)
  drawn, _ = strategy.ask(problems.KEY, state, params)
  mass = np.asarray(drawn[gates.GATES].sum(axis=1))
  assert drawn[gates.GATES].min() >= 0 and mass.max() <= 3.0001
  assert mass.mean() == pytest.approx(1.5, abs=0.15)
  with pytest.raises(ValueError, match="unknown option 'higher'"):
    registry.make_strategy('random_search', 8, Space(), higher=1.0)
  with pytest.raises(ValueError, match='no space'):
    registry.make_strategy('random_search', 8)


@pytest.mark.parametrize('name', problems.PRESETS)
def test_presets_make_their_strategies(name):
  preset = problems.PRESETS[name]
  strategy = registry.make_strategy(
    preset.strategy, preset.population, **preset.options
  )
  params = strategy.default_params
  for option, value in preset.options.items():
    if hasattr(params, option):
      assert float(getattr(params, option)) == pytest.approx(value)
  if preset.strategy == 'pso_merging':
    return
  published = 'as_published' in name
  if preset.strategy == 'evogm':
    assert strategy.options.cache != published
    return
  if preset.strategy == 'm2n2':
    assert strategy.capacity == 20
    assert strategy.options.matchmaker == (name != 'm2n2_ga')
    return
  if preset.strategy == 'low_rank_es':
    assert strategy.members == preset.options['members']
    return
  if preset.strategy == 'model_swarms':
    assert (strategy.restart == 'forever') == published
    assert strategy.keep_best == (name != 'model_swarms_by_genome')
    return
  assert (strategy.variation.least_elites == 0) == published
  assert (strategy.variation.weighing == 'fitness') == published
  assert strategy.keep_best != published
  quirks = published and strategy.with_succession
  assert (strategy.succession.draws == 'run') == quirks
  assert strategy.succession.rescore != quirks
