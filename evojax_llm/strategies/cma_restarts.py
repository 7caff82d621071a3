"""CMA-ES that begins anew with larger populations: IPOP and BIPOP.

A run that stagnates ends, and another begins at the first mean. IPOP (Auger and
Hansen, CEC 2005) doubles the population each time. BIPOP (Hansen, GECCO 2009)
keeps two budgets, and takes the regime that has spent less: doubled
populations, or small ones of a size and a deviation drawn for each.

Conditions, sizes and draws are those of evosax.core.restart, which makes
another algorithm for each size on the host. Here one algorithm has the slots of
the largest; a smaller population leaves slots empty, whose weights are zero.
"""

import dataclasses
from typing import Any

from evosax.algorithms.distribution_based import cma_es
from evosax.core import restart
import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import evosax


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays, but for `sigma` with evosax's names."""

  sigma: jax.Array = option(0.3, 'first standard deviation', low=0.0)
  min_num_gens: jax.Array = option(
    50.0, 'rounds of a run before it can end', low=1.0
  )
  min_fitness_spread: jax.Array = option(
    1e-12, 'a run ends whose members differ by less in fitness', low=0.0
  )
  tol_x: jax.Array = option(
    1e-12, 'a run ends whose deviations and path are all below', low=0.0
  )
  tol_x_up: jax.Array = option(
    1e4, 'a run ends with a deviation above', low=0.0
  )
  tol_condition_C: jax.Array = option(
    1e14, 'a run ends with a condition of its covariance above', low=1.0
  )


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made."""

  doublings: int = option(
    3,
    'the largest population is 2 ** doublings times the first',
    low=0,
    high=12,
  )
  copy_mean: bool = option(
    False, 'whether a run begins at the mean of the last, not at the first'
  )


@flax.struct.dataclass
class State(evosax.State):
  """State of CMA-ES with restarts.

  Attributes:
    first: mean of the first run, a genome in f32.
    size: () i32 members of an ask of this run.
    restarts: () i32 runs that ended.
    large: () i32 how often the population was doubled.
    spent: (2,) i32 evaluations of ended runs with doubled and small
      populations; the first run counts for neither.
    small: () bool, whether this run has a small population.
  """

  first: Any
  size: jax.Array
  restarts: jax.Array
  large: jax.Array
  spent: jax.Array
  small: jax.Array


class RestartedCMAES(evosax.EvosaxStrategy):
  """See the module; `two_regimes` is BIPOP, else it is IPOP."""

  declared = (Params, Options)

  def __init__(
    self,
    algorithm: str,
    population_size: int,
    genome: stack.Genome,
    *,
    two_regimes: bool,
    **options: Any,
  ):
    """Makes the strategy; options are those of `Params` and `Options`.

    Raises:
      ValueError: an option is unknown or out of range, or the population has
        one member.
    """
    self.take(options)
    self._first_size, self._two_regimes = population_size, two_regimes
    if population_size < 2:
      raise ValueError(
        f'Got a population of {population_size}; CMA-ES learns from the better '
        'half of its members: expected 2 or more.'
      )
    largest = population_size << self.options.doublings
    stack.check_size(largest)
    super().__init__(algorithm, largest, genome)
    self.population_size = population_size
    self.static = RestartedCMAES, two_regimes, self.options, *self.static

  # Not evosax's.
  default_params = base.Strategy.default_params

  def monitors(self, state: State) -> dict[str, jax.Array]:
    """Returns the `population` of this run and the `restarts` before it."""
    return {'population': state.size, 'restarts': state.restarts}

  def _start(self, key, state, scores, params):
    size = jnp.int32(self._first_size)
    cma = self._cma(size, params.sigma)
    begun = super()._start(key, state, scores, cma)
    none = jnp.int32(0)
    return State(
      **vars(begun),
      first=evosax.as_f32(state.memory.best),
      size=size,
      restarts=none,
      large=none,
      spent=jnp.zeros((2,), jnp.int32),
      small=jnp.bool(True),
    )

  def _propose(self, key, state, params):
    cma = self._cma(state.size, params.sigma)
    members, changes = super()._propose(key, state, cma)
    filled = jnp.arange(self.num_proposals) < state.size
    proposal = lineage.fill(filled, state.next_id)
    return members, changes | {'proposal': proposal}

  def _succeed(self, key, population, scores, state, params):
    cost = evosax.without_failures(evosax.negate(scores.fitness))
    # Empty slots come behind all members, and so have no weight.
    told = jnp.where(state.proposal.filled, cost, jnp.inf)
    cma = self._cma(state.size, params.sigma)
    state = self._told(key, population, scores, told, state, cma)
    with jax.numpy_dtype_promotion('standard'):
      seen = None, cost, state.inner, None, None, params
      ended = restart.spread_cond(*seen) | restart.cma_cond(*seen)
      ended &= state.inner.generation_counter >= params.min_num_gens
    key = keys.key_for(key, state.generation, lineage.NO_MEMBER, 'restart')
    begun = self._restarted(key, state, params)
    changes = jax.tree.map(
      lambda new, old: jnp.where(ended, new, old),
      begun,
      {name: getattr(state, name) for name in begun},
    )
    return state.replace(**changes)

  def _restarted(self, key, state, params):
    """The fields of the state that another run changes, at its beginning."""
    size_key, sigma_key, key = jax.random.split(key, 3)
    inner, sigma = state.inner, params.sigma
    large, spent, small = state.large, state.spent, state.small
    ran = state.size * inner.generation_counter
    ran = jnp.where(state.restarts > 0, ran, 0)
    spent += jnp.where(small, jnp.array([0, 1]), jnp.array([1, 0])) * ran
    small = jnp.bool(False)
    if self._two_regimes:
      small = spent[1] < spent[0]
      span = jnp.maximum(0.5 * jnp.exp2(large.astype(jnp.float32)), 1.0)
      drawn = self._first_size * span ** jax.random.uniform(size_key) ** 2
      shrunk = sigma * 10.0 ** (-2.0 * jax.random.uniform(sigma_key))
      sigma = jnp.where(small, shrunk, sigma)
    doubled = jnp.minimum(large + 1, self.options.doublings)
    large = jnp.where(small, large, doubled)
    size = self._first_size << large
    if self._two_regimes:
      size = jnp.where(small, drawn.astype(jnp.int32), size)
    with jax.numpy_dtype_promotion('standard'):
      mean = state.first
      if self.options.copy_mean:
        mean = self.inner.get_mean(inner)
      fresh = self.inner.init(key, mean, self._cma(size, sigma))
    fresh = fresh.replace(
      best_solution=inner.best_solution, best_fitness=inner.best_fitness
    )
    return {
      # In the types, which may be weak, of the state.
      'inner': jax.tree.map(
        lambda new, old: jnp.asarray(new, old.dtype), fresh, inner
      ),
      'size': size,
      'restarts': state.restarts + 1,
      'large': large,
      'spent': spent,
      'small': small,
    }

  def _cma(self, size, sigma):
    return cma_params(size, self.num_proposals, self.inner.num_dims, sigma)


def cma_params(
  size: jax.Array, slots: int, dims: int, sigma: jax.Array
) -> cma_es.Params:
  """evosax's parameters of CMA-ES (arXiv 1604.00772) for a size () i32.

  Weights are (slots,), zero from the size on; slots are as many or more.
  """
  rank = jnp.arange(1, slots + 1, dtype=jnp.float32)
  count = size.astype(jnp.float32)
  raw = jnp.where(rank <= count, jnp.log((count + 1) / 2) - jnp.log(rank), 0.0)
  elite = rank <= jnp.maximum(count // 2, 1)

  def effective(raw):
    return jnp.sum(raw) ** 2 / jnp.sum(raw**2)

  mu = effective(jnp.where(elite, raw, 0.0))  # Eq. (8)
  mu_minus = effective(jnp.where(elite, 0.0, raw))
  c_c = (4 + mu / dims) / (dims + 4 + 2 * mu / dims)  # Eq. (56)
  c_1 = 2 / ((dims + 1.3) ** 2 + mu)  # Eq. (57)
  c_mu = 2 * (mu + 1 / mu - 2) / ((dims + 2) ** 2 + mu)  # Eq. (58)
  c_mu = jnp.minimum(1 - c_1 - 1e-8, c_mu)
  alpha = jnp.minimum(1 + c_1 / c_mu, 1 + 2 * mu_minus / (mu + 2))
  alpha = jnp.minimum(alpha, (1 - c_1 - c_mu) / (dims * c_mu))  # Eq. (50-52)
  weights = jnp.where(
    raw >= 0,
    raw / jnp.sum(jnp.maximum(raw, 0.0)),
    alpha * raw / -jnp.sum(jnp.minimum(raw, 0.0)),
  )  # Eq. (53)
  c_std = (mu + 2) / (dims + mu + 5)  # Eq. (55)
  wide = jnp.sqrt((mu - 1) / (dims + 1)) - 1
  return cma_es.Params(
    std_init=sigma,
    std_min=jnp.float32(0.0),
    std_max=jnp.float32(1e8),
    weights=weights,
    mu_eff=mu,
    c_mean=jnp.float32(1.0),
    c_std=c_std,
    d_std=1 + 2 * jnp.maximum(0.0, wide) + c_std,
    c_c=c_c,
    c_1=c_1,
    c_mu=c_mu,
    chi_n=jnp.float32(dims**0.5 * (1 - 1 / (4 * dims) + 1 / (21 * dims**2))),
  )
