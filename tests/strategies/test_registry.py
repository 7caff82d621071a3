import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import gates
from evojax_llm.genomes import initial
from evojax_llm.strategies import coefficient_search
from evojax_llm.strategies import presets
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm
from tests.strategies import problems


def test_own_strategies_by_name():
  plain = registry.make_strategy('genome', 4, None)
  plus = registry.make_strategy('genome_plus', 4, None, sigma=0.2)
  assert isinstance(plain, algorithm.Genome) and not plain.with_succession
  assert plus.with_succession
  assert float(plus.default_params.sigma) == pytest.approx(0.2)


@pytest.mark.parametrize('dtype', (jnp.float32, jnp.bfloat16))
@pytest.mark.parametrize('name', ('Open_ES', 'SimpleGA'))
def test_stock_algorithms_keep_structure_and_types(name, dtype):
  members = problems.population(dtype)
  one = jax.tree.map(lambda leaf: leaf[0], members)
  strategy = registry.make_strategy(name, problems.P, one)
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
  strategy = registry.make_strategy('CMA_ES', 8, one, sigma=0.5)
  members = {'x': jax.random.normal(problems.KEY, (8, 3))}
  params = strategy.default_params
  state = strategy.init(problems.KEY, members, jnp.full(8, jnp.nan), params)
  for costs in (
    jnp.full(8, jnp.nan),
    jnp.arange(8.0).at[0].set(jnp.nan),
    jnp.arange(8.0),
  ):
    members, state = strategy.ask(problems.KEY, state, params)
    assert np.all(np.isfinite(members['x']))
    state, _ = strategy.tell(problems.KEY, members, costs, state, params)
  assert float(state.memory.best_fitness) == 0.0


@pytest.mark.parametrize(
  'name, message',
  [
    ('CMA_ES', '10,000 numbers.*square.*Sep_CMA_ES'),
    ('DiffusionEvolution', 'square'),
    ('EvoTF_ES', 'copies of the population'),
    ('SV_Open_ES', 'several means'),
    ('Nonsense', "'Nonsense'; expected one of"),
  ],
)
def test_refusals_give_the_reason(name, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy(name, 8, jax.ShapeDtypeStruct((10_000,), 'f4'))


def test_genomes_beyond_32_bits_are_refused():
  huge = jax.ShapeDtypeStruct((2**16, 2**16), 'f4')
  with pytest.raises(ValueError, match="'genome'"):
    registry.make_strategy('PSO', 8, huge)


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
  assert set(registry.strategy_names()) - own <= known


def coefficient_cost(members):
  target = jnp.asarray([1.5, 0.0, 0.5], jnp.float32)
  gap = members[gates.GATES] - target
  return jnp.sum(jnp.square(gap), axis=1)


@pytest.mark.parametrize('search', ('cma_es', 'random_search'))
def test_coefficient_searches_improve_on_the_experts(search):
  strategy = getattr(coefficient_search, search)(8, 3)
  members = {gates.GATES: jnp.tile(jnp.eye(3), (3, 1))[:8]}
  first = coefficient_cost(members)
  state = strategy.init(problems.KEY, members, first, strategy.default_params)
  state = problems.last(strategy, state, 20, score=coefficient_cost)
  assert float(state.best_fitness) < 0.5 * float(first.min())


def test_random_coefficients_have_free_mass():
  keys = jax.random.split(problems.KEY, 500)
  mixes, masses = jax.vmap(lambda key: initial.random_mix(key, 5, high=3.0))(
    keys
  )
  drawn = mixes * masses[:, None]
  mass = np.asarray(drawn.sum(axis=1))
  assert drawn.min() >= 0 and mass.max() <= 3.0001
  assert mass.mean() == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize('name', presets.PRESETS)
def test_presets_make_their_strategies(name):
  preset = presets.PRESETS[name]
  strategy = registry.make_strategy(
    preset.strategy, preset.population_size, None, **preset.options
  )
  params = strategy.default_params
  for option, value in preset.options.items():
    if hasattr(params, option):
      assert float(getattr(params, option)) == pytest.approx(value)
  published = 'as_published' in name
  if preset.strategy == 'low_rank_es':
    assert strategy.members == preset.options['members']
    return
  if preset.strategy == 'model_swarms':
    assert (strategy.restart == 'forever') == published
    assert strategy.keep_best == (name != 'model_swarms_by_genome')
    assert preset.rounds == preset.generations
    return
  assert (strategy.variation.least_elites == 0) == published
  assert (strategy.variation.weighing == 'fitness') == published
  assert strategy.keep_best != published
  quirks = published and strategy.with_succession
  assert (strategy.succession.draws == 'run') == quirks
  assert strategy.succession.rescore != quirks
  assert preset.rounds == preset.generations * (
    2 if strategy.with_succession else 1
  )
