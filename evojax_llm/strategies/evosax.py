"""evosax's algorithms as strategies, and strategies as evosax algorithms.

evosax minimises a cost of flat vectors; this package maximises fitness of
pytrees. The sign flips here and nowhere else.
"""

import functools
import inspect
from typing import Any
import warnings

from evosax import algorithms
from evosax.algorithms.population_based import base as evosax_base
import flax.struct
import jax
import jax.numpy as jnp
import optax

from evojax_llm import options as options_lib
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.evosax_options import ALGORITHMS
from evojax_llm.strategies.evosax_options import SEARCHES

# These hold matrices of N x N over the N numbers of a genome.
_QUADRATIC = (
  'ASEBO',
  'CMA_ES',
  'DiffusionEvolution',
  'MA_ES',
  'iAMaLGaM_Full',
  'xNES',
)
MAX_QUADRATIC = 8192
# What evosax has for problems of unit scale, in units of the space's deviation.
_SCALES = {
  'sigma': 1.0,
  'radius_max': 1.0,
  'radius_min': 0.005,
  'scale_factor': 1.0,
}
# evosax counts the numbers of a genome in 32 bits.
MAX_FLAT = 2**31 - 1
# From so many bytes in one flat copy of the population on, a warning is given.
LARGE_COPY = 2**28


def negate(values: jax.Array) -> jax.Array:
  """Turns a cost into fitness and fitness into a cost; NaN stays NaN."""
  return -values


@flax.struct.dataclass
class State(base.State):
  """State of a wrapped algorithm; `inner` is evosax's, of flat f32 vectors."""

  inner: Any


class EvosaxStrategy(base.Strategy):
  """One of evosax's algorithms as a strategy, on flat f32 vectors.

  An algorithm that starts from a mean starts from the best initial member; one
  that keeps a population, from all of them. The population of the state is what
  the last ask proposed. A failed member counts as the worst of its generation,
  as not every algorithm bears NaN.
  """

  # They keep scores of their own, which cannot be made anew on other items.
  can_rescore = False

  def __init__(
    self,
    algorithm: str,
    population_size: int,
    genome: stack.Genome,
    *,
    sigma: float | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    **options: Any,
  ):
    """Makes the strategy; `for_space` checks the size of the genome first.

    Options are arguments of evosax's constructor and hyperparameters; None
    leaves what evosax has; see `evosax_options`. The genome, or its shapes and
    types, is one.

    Raises:
      ValueError: if the algorithm has no such option, or cannot work with such
        a population.
    """
    made = algorithms.algorithms[algorithm]
    arguments = inspect.signature(made).parameters
    if genome is None:
      raise ValueError(
        f'Got no genome for {algorithm!r}; expected a space or a genome.'
      )
    given = {k: v for k, v in options.items() if v is not None}
    known = ALGORITHMS[algorithm]
    common = {
      'sigma': sigma,
      'optimizer': optimizer,
      'learning_rate': learning_rate,
    }
    wanted = {*given, *(k for k, v in common.items() if v is not None)}
    unknown = sorted(wanted - set(known) - set(arguments))
    if unknown:
      raise ValueError(
        f'Got unknown options {unknown} of {algorithm}; expected some of '
        f'{sorted(known)}.'
      )
    constructed = {k: given.pop(k) for k in arguments if k in given}
    if optimizer is not None or learning_rate is not None:
      constructed['optimizer'] = _optimizer(optimizer, learning_rate)
    if sigma is not None and 'std_schedule' in arguments:
      constructed['std_schedule'] = optax.constant_schedule(float(sigma))
    leaves, structure = jax.tree.flatten(genome)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    static = {**constructed, 'optimizer': (optimizer, learning_rate)}
    if 'std_schedule' in static:
      static['std_schedule'] = sigma
    static = tuple(sorted(static.items()))
    self.static = EvosaxStrategy, algorithm, structure, kinds, static
    self._kinds = jax.tree.map(lambda leaf: leaf.dtype, genome)
    super().__init__(population_size, population_size, (algorithm,))
    # evosax mixes integers and floats.
    with jax.numpy_dtype_promotion('standard'):
      try:
        self.inner = made(
          population_size=population_size,
          # Only its shapes matter, and shapes alone may be what is given.
          solution=jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.float32), genome
          ),
          metrics_fn=lambda *_: {},  # evosax would copy whole solutions
          **constructed,
        )
        params = self.inner.default_params
        if sigma is not None and hasattr(params, 'std_init'):
          given['std_init'] = sigma
        self._params = params.replace(
          **{
            field: jnp.full_like(_number(getattr(params, field)), value)
            for field, value in given.items()
          }
        )
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')  # evosax's own, not the user's
          jax.eval_shape(self._round, genome)
      # It shows in many ways that a population is too small for it.
      except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(
          f'Got a population of {population_size} for {algorithm!r}, which '
          f'evosax refuses ({reason}). Give it more members.'
        ) from error

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; what is too large for the algorithm is refused.

    The first deviation is that of the space's experts, if none is given.
    """
    check_size(population_size, genome, **options)
    unset = [
      name
      for name in _SCALES
      if name in ALGORITHMS[options['algorithm']] and options.get(name) is None
    ]
    if space is not None and unset:
      deviation = space.deviation()
      options |= {name: _SCALES[name] * deviation for name in unset}
    return cls(population_size=population_size, genome=genome, **options)

  @property
  def default_params(self) -> Any:
    """evosax's own hyperparameters."""
    return self._params

  def _round(self, genome):
    """A round on zeros, to be traced."""
    population = jax.tree.map(
      lambda leaf: jnp.zeros((self.population_size, *leaf.shape), leaf.dtype),
      genome,
    )
    key, params = jax.random.key(0), self.default_params
    scores = base.Scores(jnp.zeros(self.population_size))
    state = self._begin(key, population, scores, params)
    members, state = self.ask(key, state, params)
    return self._tell(key, members, scores, state, params)

  def _start(self, key, state, scores, params):
    cost = without_failures(negate(scores.fitness))
    key = keys.key_for(key, 0, lineage.NO_MEMBER, 'stock')
    with jax.numpy_dtype_promotion('standard'):
      if isinstance(self.inner, evosax_base.PopulationBasedAlgorithm):
        inner = self.inner.init(key, as_f32(state.population), cost, params)
      else:
        inner = self.inner.init(key, as_f32(state.memory.best), params)
      if hasattr(inner, 'c_mult'):
        # iAMaLGaM begins with a variance of one, whatever its deviation.
        inner = inner.replace(C=inner.C * inner.std**2)
    return State(**vars(state), inner=_settled(inner))

  def _propose(self, key, state, params):
    key = keys.key_for(key, state.generation, lineage.NO_MEMBER, 'ask')
    with jax.numpy_dtype_promotion('standard'):
      proposals, inner = self.inner.ask(key, state.inner, params)
    proposals = jax.tree.map(
      lambda leaf, kind: leaf.astype(kind), proposals, self._kinds
    )
    filled = jnp.ones((self.num_proposals,), bool)
    proposal = lineage.fill(filled, state.next_id)
    return proposals, {'inner': _settled(inner), 'proposal': proposal}

  def _succeed(self, key, population, scores, state, params):
    cost = without_failures(negate(scores.fitness))
    return self._told(key, population, scores, cost, state, params)

  def _told(self, key, population, scores, cost, state, params):
    """The state after evosax's algorithm was told the cost of members."""
    key = keys.key_for(key, state.generation, lineage.NO_MEMBER, 'tell')
    with jax.numpy_dtype_promotion('standard'):
      inner, _ = self.inner.tell(
        key, as_f32(population), cost, state.inner, params
      )
    return state.replace(
      population=population,
      fitness=scores.fitness,
      ids=state.proposal.ids,
      inner=_settled(inner),
    )


class RandomSearch(EvosaxStrategy):
  """Independent draws of the space's `sample`; the memory keeps the best."""

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; options are those of the space's `sample`."""
    if space is None:
      raise ValueError("Got no space for 'random_search', which draws of it.")
    options_lib.check_known(options, SEARCHES['random_search'])
    sample = functools.partial(space.sample, **options)
    return cls('RandomSearch', population_size, genome, sampling_fn=sample)


@flax.struct.dataclass
class CostState:
  """A strategy's state under the names and the sign of evosax's states."""

  strategy: base.State

  @property
  def best_solution(self) -> Any:
    """The best genome of all time."""
    return self.strategy.memory.best

  @property
  def best_fitness(self) -> jax.Array:
    """Its cost; NaN before anything was scored."""
    return negate(self.strategy.memory.best_fitness)

  @property
  def generation_counter(self) -> jax.Array:
    """Completed generations."""
    return self.strategy.generation


class _AsEvosax(evosax_base.PopulationBasedAlgorithm):
  """See `as_evosax`."""

  def __init__(self, strategy: base.Strategy):
    # evosax's constructors ravel a genome; they are left out on purpose.
    self.strategy = strategy
    self.population_size = strategy.population_size
    self.metrics_fn = metrics

  @property
  def _default_params(self):
    return self.strategy.default_params

  def init(self, key, population, fitness, params):
    scores = base.Scores(negate(fitness))
    return CostState(self.strategy.init(key, population, scores, params))

  def ask(self, key, state, params):
    members, inner = self.strategy.ask(key, state.strategy, params)
    return members, CostState(inner)

  def tell(self, key, population, fitness, state, params):
    scores = base.Scores(negate(fitness))
    state = CostState(
      self.strategy.tell(key, population, scores, state.strategy, params)
    )
    return state, self.metrics_fn(key, population, fitness, state, params)

  def get_best_solution(self, state):
    return state.best_solution

  def get_population(self, state):
    return state.strategy.population


def as_evosax(strategy: base.Strategy) -> evosax_base.PopulationBasedAlgorithm:
  """Offers a strategy as an evosax algorithm, for evosax's problems and loops.

  `init`, `ask` and `tell` take a cost, NaN where a member failed. The members
  of an ask are pytrees (M, ...); those of empty slots, whose ids in
  `state.strategy.proposal` are -1, may be scored or not.

  Raises:
    ValueError: if the strategy sees more than fitness.
  """
  if strategy.sees != 'fitness':
    raise ValueError(
      f'Got a strategy that sees {strategy.sees!r}, which evosax has not; '
      "expected one that sees 'fitness'."
    )
  return _AsEvosax(strategy)


def metrics(
  key: jax.Array,
  population: stack.Population,
  fitness: jax.Array,
  state: CostState,
  params: Any,
) -> dict[str, jax.Array]:
  """Scalars of a generation under evosax's names; no copies of solutions."""
  del key, population, params
  filled = state.strategy.proposal.filled
  return {
    'generation_counter': state.generation_counter,
    'best_fitness_in_generation': jnp.nanmin(
      jnp.where(filled, fitness, jnp.nan)
    ),
    'best_fitness': state.best_fitness,
    'proposed': jnp.sum(filled).astype(jnp.int32),
  }


def check_size(
  population_size: int, genome: Any, *, algorithm: str, **options: Any
) -> None:
  """Refuses genomes that an algorithm cannot hold; warns of large copies.

  Raises:
    ValueError: saying how many numbers they have.
  """
  numbers = sum(leaf.size for leaf in jax.tree.leaves(genome))
  quadratic = algorithm in _QUADRATIC and not options.get('num_latent_dims')
  if quadratic and numbers > MAX_QUADRATIC:
    raise ValueError(
      f'Got genomes of {numbers:,} numbers for {algorithm!r}, refused: it '
      f'holds matrices of their square; expected at most {MAX_QUADRATIC:,}. '
      'Evolve weights of experts instead of models, or take an algorithm of '
      "linear memory such as 'Sep_CMA_ES'."
    )
  if numbers > MAX_FLAT:
    raise ValueError(
      f'Got genomes of {numbers:,} numbers for {algorithm!r}, refused: evosax '
      f"counts to {MAX_FLAT:,}. Take 'genome' or 'genome_plus', which have no "
      'such limit.'
    )
  copy = 4 * numbers * population_size
  if copy >= LARGE_COPY:
    warnings.warn(
      f'{algorithm} ravels its population of {population_size} members of '
      f'{numbers:,} numbers, {copy / 2**30:.1f} GiB in f32, and makes up to '
      "ten copies of it in every generation. 'genome', 'genome_plus', "
      "'model_swarms' and 'low_rank_es' keep it as it is.",
      stacklevel=4,
    )


def _optimizer(name, learning_rate):
  name = name or 'adam'
  if learning_rate is None or not hasattr(optax, name):
    raise ValueError(
      f'Got optimizer {name!r} with learning_rate {learning_rate}; expected '
      "both: a name of optax such as 'sgd' or 'adam', and a number."
    )
  return getattr(optax, name)(learning_rate)


def _number(value):
  """As an array, floats in f32."""
  value = jnp.asarray(value)
  if jnp.issubdtype(value.dtype, jnp.floating):
    return value.astype(jnp.float32)
  return value


def as_f32(tree: Any) -> Any:
  """All leaves in f32, as evosax takes them."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _settled(tree):
  """Strips weak types, which would make the second ask compile anew."""
  return jax.tree.map(
    lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype),
    tree,
  )


def without_failures(cost: jax.Array) -> jax.Array:
  """Costs (M,) with those that are not finite as the worst of the others."""
  finite = jnp.isfinite(cost)
  worst = jnp.max(jnp.where(finite, cost, -jnp.inf))
  worst = jnp.where(jnp.any(finite), worst, 0.0)
  return jnp.where(finite, cost, worst)
