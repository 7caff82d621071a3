"""IPOP and BIPOP, beside evosax's own, which restart on the host."""

import functools

from evosax.algorithms.distribution_based import cma_es
from evosax.core import restart
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.strategies import base
from evojax_llm.strategies import cma_restarts
from evojax_llm.strategies import registry
from tests.strategies import problems

DIMS = 3
GENOME = {'x': jax.ShapeDtypeStruct((DIMS,), 'f4')}
NAMES = ('ipop_cma_es', 'bipop_cma_es')


def make(name, size=6, **options):
  return registry.make_strategy(name, size, genome=GENOME, **options)


def rastrigin(members):
  x = members['x']
  return -jnp.sum(x**2 - 10 * jnp.cos(2 * np.pi * x) + 10, axis=-1)


def flat(members):
  return jnp.zeros(len(members['x']))


def start(strategy, score, at=3.0):
  members = {'x': jnp.full((strategy.population_size, DIMS), at)}
  scores = base.Scores(score(members))
  return strategy.init(problems.KEY, members, scores, strategy.default_params)


def test_parameters_of_a_size_are_evosaxs():
  size = 5
  made = jax.jit(cma_restarts.cma_params, static_argnums=(1, 2))(
    jnp.int32(size), 24, DIMS, jnp.float32(0.5)
  )
  with jax.numpy_dtype_promotion('standard'):
    known = cma_es.CMA_ES(size, jnp.zeros(DIMS)).default_params
  assert not np.any(made.weights[size:])
  made = made.replace(weights=made.weights[:size])
  known = known.replace(std_init=0.5)
  jax.tree.map(
    lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5),
    made,
    known,
  )


@pytest.mark.parametrize('name', NAMES)
def test_runs_are_those_of_evosax(name):
  """Every run stagnates, as all are equal, and ends after two rounds."""
  strategy = make(name, doublings=2, min_num_gens=2.0)
  first, sizes, deviations = start(strategy, flat), [], []
  for members, _, before, after in problems.play(
    strategy, first, 10, score=flat
  ):
    sizes.append(int(before.proposal.filled.sum()))
    deviations.append(float(before.inner.std))
    assert np.isfinite(members['x']).all()
    restarts = int(after.restarts)
  assert restarts == 5

  settings = {'min_num_gens': 2}
  with jax.numpy_dtype_promotion('standard'):

    def algorithm(size):
      return cma_es.CMA_ES(min(size, 24), jnp.zeros(DIMS))

    one = algorithm(6)
    params = one.default_params.replace(std_init=jnp.float32(0.3))
    if name == 'ipop_cma_es':
      made = restart.IPOPRestart, restart.IPOPRestartParams
    else:
      made = restart.BIPOPRestart, restart.BIPOPRestartParams
    theirs = made[0](
      algorithm,
      6,
      restart_params=made[1](**settings),
      strategy_params_factory=lambda s, _: s.default_params.replace(
        std_init=jnp.float32(0.3)
      ),
    )
    controller = theirs.init(one)
    inner = one.init(problems.KEY, jnp.zeros(DIMS), params)
    for generation in range(10):
      assert sizes[generation] == one.population_size
      expected = pytest.approx(float(inner.std), rel=1e-4)
      assert deviations[generation] == expected
      key = functools.partial(
        keys.key_for, problems.KEY, generation, lineage.NO_MEMBER
      )
      members, inner = one.ask(key('ask'), inner, params)
      cost = jnp.zeros(one.population_size)
      inner, _ = one.tell(problems.KEY, members, cost, inner, params)
      if generation % 2:
        assert theirs.should_restart(members, cost, inner, params, controller)
        one, params, inner, controller = theirs.restart(
          key('restart'), one, inner, params, controller
        )
  assert len(set(sizes)) >= 3


@pytest.mark.parametrize('name', ('cma_es', *NAMES))
def test_restarts_find_what_one_run_does_not(name):
  options = {'sigma': 0.5}
  if name != 'cma_es':
    options |= {
      'doublings': 4,
      'min_num_gens': 20.0,
      'min_fitness_spread': 1e-3,
    }
  strategy = make(name, **options)
  params, first = strategy.default_params, start(strategy, rastrigin)

  def search(key):
    def step(state, _):
      members, state = strategy.ask(key, state, params)
      scores = base.Scores(rastrigin(members))
      return strategy.tell(key, members, scores, state, params), None

    state, _ = jax.lax.scan(step, first, None, length=800)
    return state.memory.best_fitness

  # A last bit changes where a search goes, so that one says little.
  several = jax.random.split(problems.KEY, 8)
  found = int((jax.jit(jax.vmap(search))(several) > -1e-2).sum())
  assert found == 0 if name == 'cma_es' else found > 1


def test_a_search_goes_on_bit_for_bit_and_compiles_nothing():
  strategy = make('bipop_cma_es', doublings=1, min_num_gens=1.0)
  rounds = problems.play(strategy, start(strategy, flat), 16, score=flat)
  assert max(int(before.size) for _, _, before, _ in rounds) == 12
  whole = problems.last(strategy, start(strategy, flat), 9, score=flat)
  half = problems.last(strategy, start(strategy, flat), 4, score=flat)
  compiled = type(strategy)._tell._cache_size()
  resumed = problems.last(strategy, half, 5, score=flat)
  problems.assert_same(whole, resumed)
  assert type(strategy)._tell._cache_size() == compiled
  assert int(strategy.monitors(resumed)['restarts']) == 9


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match='population of 1;.* 2 or more'):
    make('ipop_cma_es', 1)
  with pytest.raises(ValueError, match='doublings 13; expected 0 to 12'):
    make('ipop_cma_es', doublings=13)
  with pytest.raises(ValueError, match="unknown option 'mean'"):
    make('bipop_cma_es', mean=1.0)
  with pytest.raises(ValueError, match='at most 131,072'):
    make('bipop_cma_es', 100, doublings=12)
