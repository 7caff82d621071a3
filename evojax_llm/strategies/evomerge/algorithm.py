"""EvoMerge: models that are merged, chosen and tuned, arXiv 2402.00070.

In every generation the best members stay, and each free slot draws two parents.
Two different ones make a child by spherical interpolation, along curves over
depth; twice the same one passes as it is, or, where it is there already, is a
clone that must mutate. Others mutate by chance. A mutation is a few steps of
gradient descent, left to `refine` of `runs.evolution.evolve`, or noise.

The defaults are the corrected algorithm; experiments/evomerge/README.md says
what the released code does.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import mutation
from evojax_llm.operators import selection
from evojax_llm.operators.merges import lift
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.evomerge import curves

OPERATORS = ('slerp', 'slerp+mutation', 'mutation')
PARENTS = ('rank', 'roulette', 'tournament')
MUTATIONS = ('gradient', 'gaussian')


@flax.struct.dataclass
class Params:
  """Hyperparameters; all but the sizes () f32 arrays that a sweep may vary.

  Attributes:
    sizes: (G,) i32, members after each generation; the last for what follows.
  """

  rest: jax.Array = option(
    0.45,
    'position between the parents of tensors that are neither of attention nor '
    'of an MLP',
    low=0.0,
    high=1.0,
  )
  mutate_count: jax.Array = option(
    2.0, 'members of a generation that mutate, clones among them', low=0.0
  )
  floor_fitness: jax.Array = option(
    1e-6, 'what a fitness below `floor` counts as when parents are drawn'
  )
  sigma: jax.Array = option(
    0.05,
    "deviation of 'gaussian', a fraction of each matrix's root mean square",
    low=0.0,
  )
  sizes: Any = None


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made."""

  keep_top_k: int = option(2, 'best members that stay as they are', low=1)
  curve: str = option(
    'cosine',
    "over depth: 'cosine' with a shift and a number of cycles drawn for "
    "attention and for MLPs, or the one of 'default'",
    choices=curves.CURVES,
  )
  parents: str = option('rank', 'how they are drawn', choices=PARENTS)
  entrants: int = option(3, 'members of a tournament', low=1)
  floor: float | None = option(
    None, 'fitness below which members count alike as parents'
  )
  clones: str = option(
    'models',
    "what must mutate: of equal 'models' all but one, or, as released, only "
    "those that are a 'parent' as it was",
    choices=('models', 'parent'),
  )
  mutation: str = option(
    'gradient',
    "steps of config.refine, or 'gaussian' noise",
    choices=MUTATIONS,
  )
  max_population: int | None = option(
    None, 'n_max of the schedule; as many as at first if unset', low=1, kind=int
  )
  min_population: int | None = option(
    None, 'n_min of the schedule; keep_top_k if unset', low=1, kind=int
  )
  expand_steps: int = option(0, 'E, generations in which it grows', low=0)
  target_generations: int | None = option(
    None,
    'G, when it has shrunk to n_min; n_max after E generations if unset',
    low=1,
    kind=int,
  )


@flax.struct.dataclass
class State(base.State):
  """State of EvoMerge; of the members of the latest ask (M, ...).

  Attributes:
    kept: (P,) bool, members that live on as they are.
    mutated: (M,) bool.
    forced: (M,) bool, those of them that are clones.
    curves: (M, 2) i32, which curves made a child; see `curves.DRAWN`.
  """

  kept: jax.Array
  mutated: jax.Array
  forced: jax.Array
  curves: jax.Array


def schedule(
  first: int, most: int, least: int, expand: int, target: int | None
) -> list[int]:
  """Returns n after each generation: growth and decay along cosines.

  floor(n_0 + (n_max - n_0) (1 - cos(pi (g + 1) / E)) / 2) for g < E, then
  n_min + floor((n_max - n_min) (1 + cos(pi (g - E) / (G - E))) / 2) for g < G.
  """
  sizes = [
    math.floor(
      first + (most - first) * (1 - math.cos(math.pi * (g + 1) / expand)) / 2
    )
    for g in range(expand)
  ]
  if target is None:
    return [*sizes, most]
  for g in range(target - expand):
    share = (1 + math.cos(math.pi * g / (target - expand))) / 2
    sizes.append(least + math.floor((most - least) * share))
  return [min(most, max(least, size)) for size in sizes[:target]]


class EvoMerge(base.Strategy):
  """EvoMerge; P slots for members, of which those beyond n are empty.

  An ask has n_max - keep_top_k slots. Members that stay or pass keep their ids
  and are not asked for again.
  """

  declared = (Params, Options)

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`.

    Raises:
      ValueError: if an option is unknown or out of range, or sizes contradict
        each other.
    """
    self.take(options)
    own = self.options
    most = own.max_population or population_size
    least = own.min_population or min(own.keep_top_k, most)
    for name, size in (
      ('population_size', population_size),
      ('min_population', least),
    ):
      if size < own.keep_top_k:
        raise ValueError(
          f'Got {name} {size} with keep_top_k {own.keep_top_k}; expected no '
          'fewer members than stay.'
        )
    if most < least:
      raise ValueError(
        f'Got max_population {most} with min_population {least}; expected no '
        'less.'
      )
    target = own.target_generations
    if target is not None and own.expand_steps > target:
      raise ValueError(
        f'Got expand_steps {own.expand_steps} with target_generations '
        f'{target}; expected no more.'
      )
    self.sizes = schedule(
      population_size, most, least, own.expand_steps, target
    )
    slots = max(most, population_size)
    super().__init__(population_size, most - own.keep_top_k, OPERATORS, slots)
    self.static = EvoMerge, own
    self.needs_refine = own.mutation == 'gradient'

  @property
  def default_params(self) -> Params:
    sizes = jnp.asarray(self.sizes, jnp.int32)
    return base.make_params(Params, self._values, sizes=sizes)

  def refines(self, state: State) -> jax.Array:
    return state.mutated & self.needs_refine

  def notes(self, state: State) -> Sequence[dict[str, Any]]:
    known = state.mutated, state.forced, state.curves, state.proposal.operator
    rows = []
    for mutated, forced, drawn, operator in zip(
      *sharding.to_host(known), strict=True
    ):
      note = {}
      if operator >= 0 and not OPERATORS[operator] == 'mutation':
        note = curves.describe(self.options.curve, drawn)
      if mutated:
        note['mutation'] = 'clone' if forced else 'drawn'
      rows.append(note)
    return rows

  def _start(self, key, state, scores, params):
    del key, scores, params
    none = jnp.zeros((self.num_proposals,), bool)
    return State(
      **vars(state),
      kept=state.ids >= 0,
      mutated=none,
      forced=jnp.copy(none),
      curves=jnp.zeros((self.num_proposals, 2), jnp.int32),
    )

  def _propose(self, key, state, params):
    generation, ids = state.generation, state.ids
    slots = jnp.arange(self.num_proposals, dtype=jnp.int32)
    new_ids = state.next_id + slots
    last = params.sizes.shape[0] - 1
    size = params.sizes[jnp.minimum(generation, last)]
    active = slots < size - self.options.keep_top_k
    elite = self._elites(state)
    pairs = self._parents(key, state, params, new_ids)
    drawn = jnp.zeros((self.num_proposals, 2), jnp.int32)
    if self.options.curve == 'cosine':
      drawn = jax.vmap(
        lambda k: jax.random.randint(k, (2,), 0, len(curves.DRAWN), jnp.int32)
      )(keys.keys_for(key, generation, new_ids, 'curves'))

    same = pairs[:, 0] == pairs[:, 1]
    forced = active & self._clones(active, pairs, drawn, same, elite)
    count = params.mutate_count.astype(jnp.int32) - jnp.sum(forced)
    chance = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(
      keys.keys_for(key, generation, new_ids, 'mutates')
    )
    free = active & ~forced
    position = selection.positions_in(jnp.lexsort((chance, ~free)))
    mutated = forced | (free & (position < count))
    passes = active & same & ~mutated
    own = jnp.arange(self.capacity)[:, None]
    kept = elite | jnp.any(passes & (pairs[:, 0] == own), axis=1)
    parents = jnp.where(
      jnp.stack([jnp.zeros_like(same), same], axis=1),
      lineage.NO_MEMBER,
      ids[pairs],
    )
    proposal = lineage.fill(
      active & ~passes,
      state.next_id,
      parents,
      jnp.where(same, OPERATORS.index('mutation'), mutated.astype(jnp.int32)),
    )
    seeds = keys.keys_for(key, generation, new_ids, 'mutation')
    members = self._children(
      state.population, params, (pairs, drawn, same, mutated, seeds)
    )
    return members, {
      'proposal': proposal,
      'kept': kept,
      'mutated': mutated,
      'forced': forced,
      'curves': drawn,
    }

  def _elites(self, state):
    """(P,) bool, the best, failed ones among them for want of others."""
    present = state.ids >= 0
    worse = selection.ranking_key(state.fitness)
    order = jnp.lexsort((state.ids, worse, ~present))
    position = selection.positions_in(order)
    return present & (position < self.options.keep_top_k)

  def _parents(self, key, state, params, new_ids):
    """(M, 2) i32 slots of two parents, drawn apart, with replacement."""
    own, ids, value = self.options, state.ids, state.fitness
    if own.floor is not None:
      value = jnp.where(value < own.floor, params.floor_fitness, value)
    draw, extra = selection.roulette, {}
    if own.parents == 'tournament':
      draw, extra = selection.tournament, {'entrants': own.entrants}
    elif own.parents == 'rank':
      value = selection.rank_chances(value, ids)
    able = jnp.isfinite(value) & (ids >= 0)
    able = jnp.where(jnp.any(able), able, ids >= 0)
    return jax.vmap(
      lambda k: draw(k, value, 2, ids, replace=True, eligible=able, **extra)
    )(keys.keys_for(key, state.generation, new_ids, 'parents'))

  def _clones(self, active, pairs, drawn, same, elite):
    """(M,) bool, slots whose model is one that the next population has."""
    equal = jnp.all(pairs[:, None] == pairs[None], axis=-1)
    if self.options.clones == 'parent':
      equal = equal & same
    else:
      curve = jnp.all(drawn[:, None] == drawn[None], axis=-1)
      equal = equal & (same | curve)
    slots = jnp.arange(active.shape[0])
    before = active & (slots[:, None] > slots)
    return jnp.any(equal & before, axis=1) | (same & elite[pairs[:, 0]])

  def _children(self, population, params, each):
    """The members (M, ...), one after another: a pair of parents at a time."""
    shapes = jax.eval_shape(lambda: stack.take(population, 0))

    def child(one):
      pair, drawn, same, mutated, seed = one
      parents = jax.tree.map(lambda leaf: leaf[pair], population)
      t = curves.positions(
        self.options.curve, shapes, drawn, params.rest, self.layers
      )
      merged = lift.genome(
        'slerp', parents, parameters={'t': t}, layers=self.layers
      )
      merged = jax.tree.map(
        lambda both, own: jnp.where(same, both[0], own), parents, merged
      )
      if self.options.mutation != 'gaussian':
        return merged
      return jax.lax.cond(
        mutated,
        lambda: mutation.gaussian(
          seed, merged, params.sigma, layers=self.layers
        ),
        lambda: merged,
      )

    return jax.lax.map(child, each)

  def _succeed(self, key, population, scores, state, params):
    del key, params
    ids = jnp.concatenate([state.ids, state.proposal.ids])
    alive = jnp.concatenate([state.kept, state.proposal.filled])
    order = jnp.lexsort((ids, ~alive))[: self.capacity]
    alive = alive[order]
    fitness = jnp.concatenate([state.fitness, scores.fitness])[order]
    return state.replace(
      population=stack.take_of_both(
        state.population, population, order, mesh=self.mesh
      ),
      fitness=jnp.where(alive, fitness, jnp.nan),
      ids=jnp.where(alive, ids[order], lineage.NO_MEMBER),
    )
