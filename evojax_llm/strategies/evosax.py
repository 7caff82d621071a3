"""evosax's own algorithms under this package's interface."""

import inspect
from typing import Any

from evosax import algorithms
from evosax.algorithms.population_based import base as evosax_base
import flax.struct
import jax
import jax.numpy as jnp
import optax

from evojax_llm.operators import succession
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.evosax_options import STOCK_OPTIONS


@flax.struct.dataclass
class State(base.State):
  """State of a wrapped algorithm.

  Attributes:
    inner: evosax's own state, of flat f32 vectors.
  """

  inner: Any


class Stock(base.Strategy):
  """One of evosax's algorithms.

  It keeps flat f32 vectors; genomes go out in their own types. An algorithm
  that starts from a mean starts from the best initial member; one that keeps
  a population, from all of them. The population of the state is what the last
  ask proposed.

  A failed member counts as the worst of its generation, as not every algorithm
  bears NaN.
  """

  def __init__(
    self,
    name: str,
    population_size: int,
    genome: stack.Genome,
    sigma: float | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    **options: Any,
  ):
    """Makes the strategy; `registry.make_strategy` checks the name first.

    Args:
      name: key of `evosax.algorithms.algorithms`.
      population_size: P.
      genome: one genome, for structure, shapes and types.
      sigma: first standard deviation.
      optimizer: name of an optimiser of optax; evosax's own by default.
      learning_rate: of that optimiser, or of Adam.
      **options: arguments of evosax's constructor and hyperparameters; those
        that are None are left as evosax has them. See
        stock_options.STOCK_OPTIONS.

    Raises:
      ValueError: if the algorithm has no such option, or cannot work with such
        a population.
    """
    made = algorithms.algorithms[name]
    arguments = inspect.signature(made).parameters
    given = {k: v for k, v in options.items() if v is not None}
    known = STOCK_OPTIONS[name]
    asked = {
      'sigma': sigma,
      'optimizer': optimizer,
      'learning_rate': learning_rate,
    }
    wanted = {*given, *(k for k, v in asked.items() if v is not None)}
    unknown = sorted(wanted - set(known) - set(arguments))
    if unknown:
      raise ValueError(
        f'Got unknown options {unknown} of {name}; expected some of '
        f'{sorted(known)}.'
      )
    constructed = {k: given.pop(k) for k in arguments if k in given}
    if optimizer is not None or learning_rate is not None:
      constructed['optimizer'] = _optimizer(optimizer, learning_rate)
    if sigma is not None and 'std_schedule' in arguments:
      constructed['std_schedule'] = optax.constant_schedule(float(sigma))
    self._kinds = jax.tree.map(lambda leaf: leaf.dtype, genome)
    with jax.numpy_dtype_promotion('standard'):
      # evosax mixes integers and floats.
      try:
        self.inner = made(
          population_size=population_size,
          # Only its shapes matter, and shapes alone may be what is given.
          solution=jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.float32), genome
          ),
          metrics_fn=_no_metrics,
          **constructed,
        )
      except (AssertionError, ZeroDivisionError) as error:
        raise ValueError(
          f'Got a population of {population_size} for {name!r}, which evosax '
          f'refuses: {error}'
        ) from error
      params = self.inner.default_params
    if sigma is not None and hasattr(params, 'std_init'):
      given['std_init'] = sigma
    self._params = params.replace(
      **{
        field: jnp.full_like(_number(getattr(params, field)), value)
        for field, value in given.items()
      }
    )
    super().__init__(population_size, population_size, (name,))

  @property
  def _default_params(self) -> Any:
    return self._params

  def _start(self, key, population, fitness, params, objectives):
    del objectives
    ids = jnp.arange(self.population_size, dtype=jnp.int32)
    memory = succession.start_memory(population, fitness, ids, personal=False)
    cost = _without_failures(base.negate(fitness))
    key = keys.key_for(key, 0, lineage.NO_MEMBER, 'stock')
    with jax.numpy_dtype_promotion('standard'):
      if isinstance(self.inner, evosax_base.PopulationBasedAlgorithm):
        inner = self.inner.init(key, _as_f32(population), cost, params)
      else:
        inner = self.inner.init(key, _as_f32(memory.best), params)
    return State(
      population=population,
      fitness=fitness,
      objectives=None,
      ids=ids,
      next_id=jnp.int32(self.population_size),
      generation=jnp.int32(0),
      memory=memory,
      proposal=lineage.empty_proposal(self.num_proposals),
      inner=_settled(inner),
    )

  def _propose(self, key, state, params):
    key = keys.key_for(key, state.generation, lineage.NO_MEMBER, 'ask')
    with jax.numpy_dtype_promotion('standard'):
      proposals, inner = self.inner.ask(key, state.inner, params)
    proposals = jax.tree.map(
      lambda leaf, kind: leaf.astype(kind), proposals, self._kinds
    )
    slots = self.num_proposals
    proposal = lineage.fill(
      jnp.ones((slots,), bool),
      state.next_id,
      jnp.full((slots, 2), lineage.NO_MEMBER, jnp.int32),
      jnp.zeros((slots,), jnp.int32),
    )
    return proposals, {'inner': _settled(inner), 'proposal': proposal}

  def _succeed(self, key, population, fitness, state, params, objectives):
    del objectives
    key = keys.key_for(key, state.generation, lineage.NO_MEMBER, 'tell')
    cost = _without_failures(base.negate(fitness))
    with jax.numpy_dtype_promotion('standard'):
      inner, _ = self.inner.tell(
        key, _as_f32(population), cost, state.inner, params
      )
    ids = state.proposal.ids
    return state.replace(
      population=population,
      fitness=fitness,
      ids=ids,
      next_id=state.next_id + self.num_proposals,
      memory=succession.remember_extremes(
        state.memory, population, fitness, ids
      ),
      inner=_settled(inner),
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


def _as_f32(tree):
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _settled(tree):
  """Strips weak types, which would make the second ask compile anew."""
  return jax.tree.map(
    lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype),
    tree,
  )


def _without_failures(cost):
  finite = jnp.isfinite(cost)
  worst = jnp.max(jnp.where(finite, cost, -jnp.inf))
  worst = jnp.where(jnp.any(finite), worst, 0.0)
  return jnp.where(finite, cost, worst)


def _no_metrics(key, population, fitness, state, params):
  """evosax would copy whole solutions."""
  del key, population, fitness, state, params
  return {}
