"""LoraHub (arXiv 2307.13269): weights of experts in a bound, with a price.

The search sees fitness - l1 sum_n |w_n|, with w_n cut to [-bound, bound]. What
is reported, and the best member of all time, are by the fitness itself.
CMA-ES stands in for nevergrad's optimiser; see experiments/lorahub/README.md.
"""

from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import evosax
from evojax_llm.strategies.evosax_options import SEARCHES


class LoraHub(evosax.EvosaxStrategy):
  """CMA-ES that sees fitness less the size of the weights."""

  def __init__(
    self,
    algorithm: str,
    population_size: int,
    genome: stack.Genome,
    *,
    l1: float,
    penalty: str,
    bound: float,
    start: str,
    **options: Any,
  ):
    """Makes the strategy; options are SEARCHES['lorahub']."""
    self._own = l1, penalty, bound, start
    super().__init__(algorithm, population_size, genome, **options)
    self.static = LoraHub, self._own, *self.static

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy.

    Raises:
      ValueError: also if an option is unknown or out of range.
    """
    known = SEARCHES['lorahub']
    options_lib.check_known(options, known)
    defaults = {name: option.default for name, option in known.items()}
    options = {'algorithm': 'CMA_ES', **defaults, **options}
    return super().for_space(population_size, space, genome, **options)

  def _start(self, key, state, scores, params):
    *_, bound, start = self._own
    first = _cut(state.memory.best, bound if start == 'best' else 0.0)
    begun = super()._start(
      key,
      state.replace(memory=state.memory.replace(best=first)),
      self._seen(state.population, scores),
      params,
    )
    return begun.replace(memory=state.memory)

  def _propose(self, key, state, params):
    members, changes = super()._propose(key, state, params)
    return _cut(members, self._own[2]), changes

  def _succeed(self, key, population, scores, state, params):
    seen = self._seen(population, scores)
    state = super()._succeed(key, population, seen, state, params)
    return state.replace(fitness=scores.fitness)

  def _seen(self, population, scores):
    l1, penalty, *_ = self._own
    sizes = [
      jnp.abs(leaf.astype(jnp.float32)).reshape(leaf.shape[0], -1)
      for leaf in jax.tree.leaves(population)
    ]
    over = jnp.sum if penalty == 'sum' else jnp.mean
    price = l1 * over(jnp.concatenate(sizes, axis=1), axis=1)
    return base.Scores(scores.fitness - price)


def _cut(tree: Any, bound: float) -> Any:
  return jax.tree.map(lambda leaf: jnp.clip(leaf, -bound, bound), tree)
