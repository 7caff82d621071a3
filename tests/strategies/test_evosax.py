"""evosax's algorithms by name: their options, and their size."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import space as space_lib
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import registry
from evojax_llm.strategies.evosax_options import ALGORITHMS
from evojax_llm.systems import evosax_algorithms as stock_config
from tests.strategies import problems

ONE = {'x': jnp.zeros(3)}
OURS = {'sigma', 'optimizer', 'learning_rate'}


def make(name, size=8, **options):
  if name == 'RandomSearch':
    options['sampling_fn'] = lambda key: {'x': jax.random.normal(key, (3,))}
  if name == 'GESMR_GA':
    size = 9
  return registry.make_strategy(name, size, genome=ONE, **options)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_table_is_what_evosax_has(name):
  strategy = make(name)
  options = set(ALGORITHMS[name])
  arguments = set(inspect.signature(type(strategy.inner)).parameters)
  params = strategy.default_params
  numbers = {
    field.name
    for field in dataclasses.fields(params)
    if isinstance(getattr(params, field.name), bool | int | float | jax.Array)
    and jnp.ndim(getattr(params, field.name)) == 0
  }
  has_sigma = 'std_init' in numbers or 'std_schedule' in arguments
  assert ('sigma' in options) == has_sigma
  assert ('optimizer' in options) == ('optimizer' in arguments)
  assert numbers - {'std_init'} == options - OURS - arguments
  constructed = options - OURS - numbers
  assert constructed <= arguments
  for argument in constructed:
    kind = ALGORITHMS[name][argument].kind
    default = inspect.signature(type(strategy.inner)).parameters[argument]
    assert kind in (int, bool) and isinstance(default.default, kind | None)


@pytest.mark.parametrize('name', ('SimpleGA', 'CMA_ES', 'Open_ES', 'SNES'))
def test_sigma_is_the_spread_of_what_is_asked_first(name):
  strategy = make(name, 512, sigma=0.25)
  members = {'x': jnp.full((strategy.population_size, 3), 2.0)}
  params = strategy.default_params
  costs = base.Scores(jnp.zeros(strategy.population_size))
  state = strategy.init(problems.KEY, members, costs, params)
  asked, _ = strategy.ask(problems.KEY, state, params)
  assert float(jnp.std(asked['x'])) == pytest.approx(0.25, rel=0.15)


class Apart(space_lib.Space):
  """Genomes of two scales, with experts one deviation from their mean."""

  def __init__(self, experts=2):
    self.names = tuple(map(str, range(experts)))

  def experts(self):
    sides = {'x': [0.01, 0.03], 'y': [-0.02, 0.02]}
    return {
      name: jnp.repeat(jnp.asarray(v)[: len(self.names), None], 64, axis=1)
      for name, v in sides.items()
    }

  def base(self):
    return {'x': jnp.zeros(64), 'y': jnp.zeros(64)}


def test_a_space_says_how_far_apart_its_experts_are():
  assert Apart().deviation() == pytest.approx(np.sqrt((0.01**2 + 0.02**2) / 2))
  assert Apart(1).deviation() == pytest.approx(np.sqrt((0.01**2 + 0.02**2) / 2))


# One of each way in which evosax is told of a scale.
@pytest.mark.parametrize(
  'name',
  (
    'SNES',
    'SimpleGA',
    'GradientlessDescent',
    'DiffusionEvolution',
    'iAMaLGaM_Full',
  ),
)
def test_the_first_steps_are_as_long_as_the_experts_are_apart(name):
  space, size = Apart(), 64
  strategy = registry.make_strategy(name, size, space)
  members = stack.take(space.experts(), jnp.arange(size) % 2)
  params = strategy.default_params
  scores = base.Scores(jnp.arange(size, dtype=jnp.float32))
  state = strategy.init(problems.KEY, members, scores, params)
  asked, _ = strategy.ask(problems.KEY, state, params)
  apart = [
    jnp.std(leaf - expert)
    for leaf, expert in zip(
      *map(jax.tree.leaves, (asked, members)), strict=True
    )
  ]
  assert max(map(float, apart)) < 0.1
  assert registry.make_strategy(
    'SNES', 8, space, sigma=0.25
  ).default_params.std_init == pytest.approx(0.25)


def test_hyperparameters_are_set_and_recompile_nothing():
  strategy = make('PSO', inertia_coeff=0.5, social_coeff=None)
  params = strategy.default_params
  assert float(params.inertia_coeff) == 0.5 and float(params.social_coeff) == 2
  members = {'x': jax.random.normal(problems.KEY, (8, 3))}
  state = strategy.init(
    problems.KEY, members, base.Scores(jnp.arange(8.0)), params
  )
  strategy.ask(problems.KEY, state, params)
  compiled = type(strategy)._ask._cache_size()
  strategy.ask(
    problems.KEY, state, params.replace(inertia_coeff=jnp.float32(0.1))
  )
  assert type(strategy)._ask._cache_size() == compiled
  assert bool(make('DifferentialEvolution').default_params.elitism)
  eager = make('DifferentialEvolution', elitism=False, num_diff=2)
  assert not bool(eager.default_params.elitism) and eager.inner.num_diff == 2


def test_an_optimiser_by_name_moves_the_mean_as_far_as_it_says():
  means = {}
  for rate in (0.01, 0.1):
    strategy = make('Open_ES', optimizer='sgd', learning_rate=rate, sigma=0.5)
    params = strategy.default_params
    members = {'x': jnp.zeros((8, 3))}
    state = strategy.init(
      problems.KEY, members, base.Scores(jnp.zeros(8)), params
    )
    members, state = strategy.ask(problems.KEY, state, params)
    scores = base.Scores(-jnp.sum(members['x'] ** 2, 1))
    state = strategy.tell(problems.KEY, members, scores, state, params)
    means[rate] = np.asarray(state.inner.mean)
  np.testing.assert_allclose(means[0.1], 10 * means[0.01], rtol=1e-4)


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('PSO', {'inertia': 0.5}, r"\['inertia'\] of PSO.*'inertia_coeff'"),
    ('PSO', {'sigma': 0.5}, r"\['sigma'\] of PSO"),
    ('SimpleGA', {'learning_rate': 0.5}, r"\['learning_rate'\] of SimpleGA"),
    ('SNES', {'optimizer': 'best', 'learning_rate': 0.1}, "'best'"),
    ('SNES', {'optimizer': 'sgd'}, 'learning_rate None'),
  ],
)
def test_unknown_options_are_refused_with_the_list(name, options, message):
  with pytest.raises(ValueError, match=message):
    make(name, **options)


def test_large_flat_populations_are_warned_of():
  large = jax.ShapeDtypeStruct((1 << 22,), 'f4')
  with pytest.warns(UserWarning, match='SimpleGA ravels.*0.3 GiB'):
    registry.make_strategy('SimpleGA', 20, genome=large)


def test_the_configuration_has_all_options_of_an_algorithm():
  config = stock_config.get_config('PGPE')
  assert set(config.strategy.options) == set(ALGORITHMS['PGPE'])
  assert config.strategy.options.sigma is None
  config.lock()
  config.strategy.options.std_lr = 0.2
  with pytest.raises(AttributeError):
    config.strategy.options.std_rate = 0.2
  with pytest.raises(ValueError, match='refused: its tell keeps'):
    stock_config.get_config('EvoTF_ES')


@pytest.mark.parametrize(
  'name, size, message',
  [
    ('ARS', 3, 'must be even'),
    ('DifferentialEvolution', 3, 'population_size >= 4'),
    ('iAMaLGaM_Full', 1, 'division by zero'),
    ('LES', 1, ''),
  ],
)
def test_populations_that_evosax_refuses_are_refused_with_words(
  name, size, message
):
  with pytest.raises(ValueError, match=f'population of {size}.*{message}'):
    make(name, size)


def test_lorahub_sees_the_price_of_weights_and_reports_none():
  one = {'gates': jnp.zeros(3)}
  options = {'l1': 0.5, 'bound': 0.4, 'sigma': 0.3}
  make = functools.partial(
    registry.make_strategy, 'lorahub', 8, genome=one, **options
  )
  members = {'gates': jnp.ones((8, 3)) * jnp.arange(8.0)[:, None]}
  first = base.Scores(jnp.full(8, 0.75).at[3].set(jnp.nan))
  for made, size in ((make(penalty='mean'), 1.0), (make(), 3.0)):
    seen = made._seen(members, first).fitness
    expected = np.where(
      np.arange(8) == 3, np.nan, 0.75 - 0.5 * size * np.arange(8)
    )
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
  params = made.default_params
  state = made.init(problems.KEY, members, first, params)
  assert not np.any(state.inner.mean)  # Not where the best member is.
  members, state = made.ask(problems.KEY, state, params)
  weights = np.asarray(members['gates'])
  assert np.abs(weights).max() == np.float32(0.4)
  # All alike but for what their weights cost: the mean goes to the cheap.
  scores = base.Scores(jnp.ones(8))
  state = made.tell(problems.KEY, members, scores, state, params)
  np.testing.assert_array_equal(state.fitness, 1.0)
  assert float(state.memory.best_fitness) == 1.0
  cheap = np.argsort(np.abs(weights).sum(axis=1))[:4]
  shares = np.asarray(params.weights)[:4]
  np.testing.assert_allclose(
    state.inner.mean, shares @ weights[cheap], rtol=1e-4, atol=1e-5
  )
