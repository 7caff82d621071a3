"""The strategies on evosax's own problems, as evosax algorithms."""

import functools

from evosax import problems as evosax_problems
from evosax.algorithms import base as evosax_base
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.strategies import evosax
from evojax_llm.strategies import low_rank_es
from evojax_llm.strategies import model_swarms
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm as genome

P, DIMS = 16, 4


@functools.cache
def make(kind, **options):
  """One strategy for all problems: each one that is made is compiled anew."""
  return kind(P, step_floor=0.3, **options)


def run(strategy, fn_name, rounds, dims=DIMS):
  """Best cost at first and at last."""
  algorithm = evosax.as_evosax(strategy)
  assert isinstance(algorithm, evosax_base.EvolutionaryAlgorithm)
  with jax.numpy_dtype_promotion('standard'):
    # evosax's problems mix integers and floats.
    problem = evosax_problems.BBOBProblem(
      fn_name, num_dims=dims, x_opt=jnp.zeros(dims), f_opt=0.0, seed=1
    )

    def evaluate(key, members, problem_state):
      with jax.numpy_dtype_promotion('standard'):
        return problem.eval(key, members, problem_state)

    key = jax.random.key(0)
    problem_state = problem.init(key)
    members = jax.vmap(problem.sample)(jax.random.split(key, P))
    fitness, problem_state, _ = evaluate(key, members, problem_state)
  params = algorithm.default_params
  state = algorithm.init(key, members, fitness, params)
  first = float(state.best_fitness)
  for _ in range(rounds):
    key, key_ask, key_eval, key_tell = jax.random.split(key, 4)
    members, state = algorithm.ask(key_ask, state, params)
    fitness, problem_state, _ = evaluate(key_eval, members, problem_state)
    state, metrics = algorithm.tell(key_tell, members, fitness, state, params)
  assert float(metrics['best_fitness']) == float(state.best_fitness)
  assert int(metrics['generation_counter']) == rounds
  assert algorithm.get_population(state) is state.strategy.population
  best = algorithm.get_best_solution(state)
  with jax.numpy_dtype_promotion('standard'):
    again, _, _ = evaluate(key, best[None], problem_state)
  np.testing.assert_allclose(again[0], state.best_fitness, rtol=1e-3, atol=1e-4)
  return first, float(state.best_fitness)


@pytest.mark.parametrize('fn_name', ('sphere', 'rosenbrock'))
@pytest.mark.parametrize('with_succession', (True, False))
def test_genome_improves(fn_name, with_succession):
  strategy = make(genome.Genome, with_succession=with_succession)
  first, last = run(strategy, fn_name, 60)
  # Moves give up places that variation keeps, so they pay later.
  assert last < (0.3 if with_succession else 0.1) * first


@pytest.mark.parametrize(
  ('name', 'options'),
  [('CMA_ES', {'sigma': 1.0}), ('PSO', {}), ('DifferentialEvolution', {})],
)
def test_stock_algorithms_improve(name, options):
  strategy = registry.make_strategy(name, P, genome=jnp.zeros(DIMS), **options)
  first, last = run(strategy, 'sphere', 40)
  assert last < 0.2 * first


@pytest.mark.parametrize('fn_name', ('sphere', 'rosenbrock'))
def test_model_swarms_improve(fn_name):
  strategy = make(model_swarms.ModelSwarms)
  first, last = run(strategy, fn_name, 60)
  assert last < 0.3 * first


def test_low_rank_es_improves():
  strategy = low_rank_es.LowRankES(P, relative_sigma=False)
  first, last = run(strategy, 'sphere', 60)
  assert last < 0.5 * first


def test_evogm_improves():
  strategy = registry.make_strategy(
    'evogm', P, genome=jnp.zeros(DIMS), width=16, epochs=20, learning_rate=0.01
  )
  first, last = run(strategy, 'sphere', 15)
  assert last < 0.5 * first


def test_strategies_that_see_more_than_a_cost_are_refused():
  with pytest.raises(ValueError, match="sees 'tasks'"):
    evosax.as_evosax(genome.Genome(P, chosen_by='pareto'))


def test_a_cost_is_negative_fitness_and_nan_stays():
  np.testing.assert_array_equal(
    evosax.negate(jnp.asarray([1.0, -2.0, jnp.nan])), [-1.0, 2.0, np.nan]
  )
