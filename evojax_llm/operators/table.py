"""One table of all operators, under one signature for each kind.

It is what property tests walk through and what a report can print. Strategies
call the functions themselves.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import selection
from evojax_llm.operators import succession
from evojax_llm.operators.merges import linear
from evojax_llm.operators.merges import weights as merge_weights
from evojax_llm.population import stack


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
  """An operator and what it needs.

  Attributes:
    name: unique.
    kind: 'merge', 'mutation' or 'succession', which make one genome as
      apply(key, *genomes) and are lifted with vmap; or 'selection', which
      sees everybody's fitness as apply(key, fitness, count, ids) and returns
      places.
    arity: genomes read; for selection 0.
    parameters: its parameters, with the values that `apply` binds.
    apply: the function under the kind's signature.
    draws: whether the key matters.
  """

  name: str
  kind: str
  arity: int
  parameters: Mapping[str, Any]
  apply: Callable[..., Any]
  draws: bool = True


def _linear(key, one, two, *, weights):
  del key
  return linear.combine(
    stack.stack([one, two]), jnp.asarray(weights, jnp.float32)
  )


def _fitness_weighted(key, one, two, *, fitness):
  del key
  weights = merge_weights.fitness_weights(jnp.asarray(fitness, jnp.float32))
  return linear.combine(stack.stack([one, two]), weights)


def _extrapolate(key, one, two, *, low, high):
  return linear.combine(
    stack.stack([one, two]), merge_weights.extrapolation_weights(key, low, high)
  )


def _succession(key, speed, position, personal, best, worst, *, phi, length):
  blend = succession.draw_coefficients(key, jnp.asarray(phi, jnp.float32))
  speed = succession.velocity(blend, speed, position, personal, best, worst)
  return succession.step(position, speed, length)


def _truncation(key, fitness, count, ids):
  del key
  return selection.truncation(fitness, count, ids)


def _survivors(key, fitness, count, ids, **parameters):
  eligible = jnp.ones(fitness.shape, bool)
  return selection.survivors(key, fitness, eligible, count, ids, **parameters)


def _operator(name, kind, arity, function, draws=True, **parameters):
  apply = functools.partial(function, **parameters)
  return Operator(name, kind, arity, parameters, apply, draws)


OPERATORS: tuple[Operator, ...] = (
  _operator('linear', 'merge', 2, _linear, False, weights=(0.25, 0.75)),
  _operator(
    'fitness_weighted', 'merge', 2, _fitness_weighted, False, fitness=(0.2, 0.6)
  ),
  _operator('interpolate', 'merge', 2, _extrapolate, low=0.0, high=1.0),
  _operator('extrapolate', 'merge', 2, _extrapolate, low=0.0, high=2.0),
  *(
    _operator(
      f'gaussian_{scale}_{mask}',
      'mutation',
      1,
      mutation.gaussian,
      sigma=0.1,
      gene_rate=0.5,
      relative=scale == 'relative',
      mask=mask,
    )
    for scale, mask in (
      *(('relative', mask) for mask in mutation.MASKS),
      ('absolute', 'element'),
    )
  ),
  _operator('scale', 'mutation', 1, mutation.scale, low=0.8, high=1.8),
  _operator(
    'succession',
    'succession',
    5,
    _succession,
    phi=(0.2, 0.2, 0.2, 0.1),
    length=0.5,
  ),
  _operator('truncation', 'selection', 0, _truncation, False),
  _operator('roulette', 'selection', 0, selection.roulette),
  _operator(
    'roulette_with_replacement',
    'selection',
    0,
    selection.roulette,
    replace=True,
  ),
  _operator('rank', 'selection', 0, selection.rank),
  _operator('tournament', 'selection', 0, selection.tournament, entrants=3),
  *(
    _operator(
      f'survivors_{method}',
      'selection',
      0,
      _survivors,
      draws=method != 'truncation',
      elites=2,
      method=method,
    )
    for method in selection.METHODS
  ),
)
