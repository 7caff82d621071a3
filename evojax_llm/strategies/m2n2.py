"""M2N2: competition, attraction and split points, arXiv 2508.16204.

An archive of P members is scored item by item. Members compete for the items,
so that what few can do counts more (operators.niching). In every round the
first parent of a child is drawn by its shared fitness and the second by what it
can do and the first cannot; the child is spherical between them, the sides of a
random split swapped (operators.merges.split). Then members and children compete
anew, and the least fit go. With alpha = 0 and without the matchmaker this is a
plain genetic algorithm.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import niching
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges.split import SPLIT_SLERP
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base

OPERATORS = ('warm_up', 'crossover')


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays that a sweep may vary.

  Attributes:
    capacities: (I,) f32 what members compete for on each item, times that of
      the option `capacity`; None for one each.
  """

  alpha: jax.Array = option(
    1.0, 'how strongly members compete; 0: fitness is not shared', low=0.0
  )
  sigma: jax.Array = option(
    0.01, 'deviation of the noise on every child, with mutate', low=0.0
  )
  capacities: Any = None


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made."""

  archive: int | None = option(
    None,
    'P, slots for members; as many as at first if unset. Merges of members '
    'drawn evenly fill them',
    low=1,
    kind=int,
  )
  children: int = option(1, 'children of a round', low=1)
  matchmaker: bool = option(
    True,
    'whether the second parent is drawn by attraction; else by shared fitness, '
    'as the first',
  )
  split: bool = option(
    True, 'whether the sides of a random split are swapped; else plain slerp'
  )
  span: str = option(
    'genome',
    "what is one vector, with one angle and one split: the 'genome', or each "
    "'tensor' (with splits at the same share)",
    choices=('genome', 'tensor'),
  )
  capacity: str = option(
    'one',
    "what members compete for on an item: 'one', or the 'best' score that any "
    'has on it',
    choices=('one', 'best'),
  )
  mutate: bool = option(
    False, 'whether noise is added to every number of a child'
  )
  relative_sigma: bool = option(
    False, 'whether sigma is relative to each matrix'
  )


@flax.struct.dataclass
class State(base.State):
  """State of an archive; `items` (P, I) f32 as `Scores.items`."""

  items: jax.Array


class M2N2(base.Strategy):
  """An archive of members that compete for items; steady state."""

  declared = (Params, Options)
  sees = 'items'

  def __init__(
    self,
    population_size: int,
    *,
    capacities: Any = None,
    **options: Any,
  ):
    """Makes the strategy; options are the fields of `Params` and `Options`.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    self.take(options)
    self._capacities = capacities
    slots = self.options.archive or population_size
    super().__init__(population_size, self.options.children, OPERATORS, slots)
    self.static = M2N2, self.options

  @property
  def default_params(self) -> Params:
    capacities = self._capacities
    if capacities is not None:
      capacities = jnp.asarray(capacities, jnp.float32)
    return base.make_params(Params, self._values, capacities=capacities)

  def rescored(self, state: State, scores: base.Scores) -> State:
    """See base.Strategy."""
    members = state.ids >= 0
    items = jnp.asarray(scores.items[: self.capacity], jnp.float32)
    items = jnp.where(members[:, None], items, jnp.nan)
    return super().rescored(state, scores).replace(items=items)

  def monitors(self, state: State) -> dict[str, jax.Array]:
    """Returns the mean over items of the best score in the archive."""
    known = jnp.where(jnp.isfinite(state.items), state.items, -jnp.inf)
    return {'best_of_each_item': jnp.mean(jnp.max(known, axis=0))}

  def _start(self, key, state, scores, params):
    del key, params
    return State(**vars(state), items=scores.items)

  def _propose(self, key, state, params):
    count, members = self.options.children, state.ids >= 0
    # As many as there are to fill draw their parents evenly.
    filling = ~jnp.all(members)
    items, capacity = self._competition(state.items, params)
    items = jnp.where(filling, 0.0 * items, items)
    ids = state.next_id + jnp.arange(count, dtype=jnp.int32)

    def draw(key):
      return niching.mates(
        key,
        items,
        state.ids,
        params.alpha,
        capacity,
        attract=self.options.matchmaker,
        eligible=members,
      )

    def of_child(what):
      return keys.keys_for(key, state.generation, ids, what)

    pairs = jax.vmap(draw)(of_child('parents'))
    t, split = jax.vmap(lambda k: jax.random.uniform(k, (2,), jnp.float32))(
      of_child('child')
    ).T
    children = lift.population(
      SPLIT_SLERP,
      state.population,
      pairs,
      parameters={
        't': t,
        'split': split if self.options.split else jnp.ones_like(split),
      },
      # One child at a time: its parents are copied out of the archive.
      batch=1,
      layers=self.layers,
      span=self.options.span,
    )
    if self.options.mutate:
      children = jax.vmap(
        lambda key, child: mutation.gaussian(
          key,
          child,
          params.sigma,
          relative=self.options.relative_sigma,
          layers=self.layers,
        )
      )(of_child('mutation'), children)
    empty = self.num_proposals - count
    proposal = lineage.fill(
      jnp.arange(self.num_proposals) < count,
      state.next_id,
      jnp.pad(state.ids[pairs], ((0, empty), (0, 0))),
      jnp.where(filling, 0, 1),
    )
    if empty:
      children = stack.pad(children, self.num_proposals)
    return children, {'proposal': proposal}

  def _competition(self, items, params):
    """Scores that are not negative, and the capacity of each item."""
    items = niching.not_negative(items)
    capacity = jnp.float32(1.0)
    if self.options.capacity == 'best':
      known = jnp.where(jnp.isfinite(items), items, 0.0)
      capacity = jnp.max(known, axis=0)
    if params.capacities is not None:
      capacity = capacity * params.capacities
    return items, capacity

  def _succeed(self, key, population, scores, state, params):
    del key
    slots = self.capacity
    ids = jnp.concatenate([state.ids, state.proposal.ids])
    items = jnp.concatenate([state.items, scores.items])
    items, capacity = self._competition(items, params)
    alive = niching.survivors(items, ids, slots, params.alpha, capacity)
    kept, born = alive[:slots], alive[slots:]
    # Each child that lives takes a slot that is free, so that the archive is
    # written in place.
    free = jnp.argsort(kept)
    slot = jnp.where(born, free[jnp.cumsum(born) - 1], slots)

    def put(old, new):
      return old.at[slot].set(new, mode='drop')

    names = 'population', 'ids', 'fitness', 'items', 'tasks'
    old = {name: getattr(state, name) for name in names}
    old['ids'] = jnp.where(kept, state.ids, lineage.NO_MEMBER)
    new = population, state.proposal.ids, scores.fitness, scores.items
    new = dict(zip(names, (*new, scores.tasks), strict=True))
    return state.replace(**jax.tree.map(put, old, new))
