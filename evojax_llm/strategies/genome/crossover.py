"""How two parents make a child: a merge of the registry, and its weights.

A merge that works on what parents change of a base is given the genome of the
base, which is zero for adapters, whose factors then count as the change
themselves (as in PEFT and in GENOME's released code, arXiv 2503.01155), and for
gates. Without it those merges are refused.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators.merges import check
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import linear
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.operators.operator import Merge
from evojax_llm.population import keys
from evojax_llm.population import stack

WEIGHINGS = ('line', 'fitness', 'softmax', 'random', 'equal')
# Weights and position between the parents come from the weighing.
_WEIGHED = ('weights', 't')
_OF_TWO = [m for m in MERGES.values() if m.least <= 2 <= (m.most or 2)]
# What the merges of two parents take, by name, with types.
MERGE_PARAMETERS = {
  name: float for m in _OF_TWO for name in m.parameters if name not in _WEIGHED
}
MERGE_OPTIONS = {
  name: option.kind for m in _OF_TWO for name, option in m.options.items()
}


@dataclasses.dataclass(frozen=True)
class Crossover:
  """What a child is made by: a merge of two parents, their weighing, options.

  A merge with a position t between the parents has it at the second one's
  weight; some take neither.
  """

  method: Merge
  weighing: str
  options: Mapping[str, Any]


def make(merge: str, weighing: str, options: Mapping[str, Any]) -> Crossover:
  """A crossover; options that are None are left as they are."""
  method = check.find(merge)
  if method.least > 2 or (method.most or 2) < 2:
    raise ValueError(
      f'Got merge {merge!r}, which is of {method.most or method.least} '
      'parents; expected one that takes two.'
    )
  if weighing not in WEIGHINGS:
    raise ValueError(f'Got weighing {weighing!r}; expected one of {WEIGHINGS}.')
  chosen = {name: value for name, value in options.items() if value is not None}
  check.check_options(method, chosen)
  if merge == 'linear':
    # Weights are on a line already; dividing by their sum would only round.
    chosen = {'normalize': 'none'} | chosen
  return Crossover(method, weighing, chosen)


def parameters(
  merge: str, values: Mapping[str, float | None]
) -> dict[str, jax.Array]:
  """The hyperparameters of a merge; None leaves the registry's default.

  Raises:
    ValueError: if the merge has no such parameter, or it cannot have such a
      value.
  """
  known = {
    name: parameter
    for name, parameter in check.find(merge).parameters.items()
    if name not in _WEIGHED
  }
  given = {name: value for name, value in values.items() if value is not None}
  for name, value in given.items():
    options_lib.find(name, known, merge, 'parameter').check(value, merge)
  return {name: known[name].default for name in known} | given


def check_base(crossover: Crossover, base: stack.Genome | None) -> None:
  """Refuses a merge that needs a base, where there is none."""
  if crossover.method.needs_base and base is None:
    raise ValueError(
      f'Got merge {crossover.method.name!r}, which works on what parents '
      'change of a base, and no base. Make the strategy for a space, or give '
      "merge_base=space.base(), or take a merge without one, such as 'linear' "
      "or 'slerp'."
    )


def children(
  strategy: Any,
  weighing: str,
  key: jax.Array,
  state: Any,
  params: Any,
  ids: jax.Array,
  pairs: jax.Array,
  draws: jax.Array,
) -> stack.Population:
  """Returns the children (C, ...) of pairs (C, 2) of indices into the state.

  Ids (C,) address what the merge draws, draws (C, 2) in [0, 1) weigh the
  parents. The strategy has `crossover` and `layers`, its params those of
  `weigh`, `merge` of `parameters`, and `base` for a merge that needs it.
  """
  weights = jax.vmap(
    lambda drawn, fitness: weigh(weighing, drawn, fitness, params)
  )(draws, state.fitness[pairs])
  method, given = strategy.crossover.method, dict(params.merge)
  if 'weights' in method.parameters:
    given['weights'] = weights
  elif 't' in method.parameters:
    given['t'] = weights[:, 1]
  merge_keys = None
  if method.draws:
    merge_keys = keys.keys_for(key, state.generation, ids, 'merge')
  return lift.population(
    method,
    state.population,
    pairs,
    params.base if method.needs_base else None,
    keys=merge_keys,
    parameters=given,
    layers=strategy.layers,
    **strategy.crossover.options,
  )


def weigh(
  weighing: str, draws: jax.Array, fitness: jax.Array, params: Any
) -> jax.Array:
  """Weights of two parents, (2,) f32, of draws (2,) in [0, 1) and fitness (2,).

  'line' has t and 1 - t with t ~ U(cross_low, cross_high); 'fitness' f_a / (f_a
  + f_b), as in GENOME's released code; 'softmax' that of fitness over
  `temperature`; 'random' u and 1 - u with u = U1 / (U1 + U2).
  """
  if weighing == 'line':
    reach = params.cross_high - params.cross_low
    t = params.cross_low + reach * draws[0]
    return jnp.stack([t, 1.0 - t])
  if weighing == 'fitness':
    return linear.fitness_weights(fitness)
  if weighing == 'softmax':
    alive = jnp.isfinite(fitness)
    alive = alive | ~jnp.any(alive)
    known = jnp.where(jnp.isfinite(fitness), fitness, 0.0)
    scaled = known / jnp.maximum(params.temperature, 1e-6)
    return jax.nn.softmax(jnp.where(alive, scaled, -jnp.inf))
  if weighing == 'random':
    positive = draws + 1e-12
    return positive / jnp.sum(positive)
  return jnp.full((2,), 0.5, jnp.float32)
