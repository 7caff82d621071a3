"""An evolution strategy with low-rank noise, after EGGROLL (arXiv 2511.16652).

One centre x moves by the fitness of many members around it. For a matrix

  E_p = A_p B_p / sqrt(r), A_p (in, r) and B_p (r, out) ~ N(0, 1)
  x_p = x + sigma s E_p
  g   = 1 / (M sigma) sum_p w_p E_p
  x  <- x + s lr optimiser(g)

with w the shaped fitness and s the root mean square of the matrix, by which
sigma and the learning rate are relative (or one). E_p follows from the member's
key: nothing of it is kept, and g is one product of the members' factors for
each matrix, in which no member is formed. Vectors have full noise. In the space
of adapters a member's noise is of rank r in each factor A and B. In the space
`seeded` an ask is keys and scales around x, and members are formed as they are
scored; in other spaces they are formed as they are proposed. See
experiments/low_rank_es/README.md for departures from the paper.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from evojax_llm.genomes import seeded
from evojax_llm.operators import low_rank
from evojax_llm.operators import noise
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base

OPERATORS = ('noise', 'mirrored noise', 'centre')
SHAPINGS = ('centered_rank', 'z_score', 'centered', 'sign')
_OPTIMIZERS = {
  'sgd': optax.identity,
  'momentum': lambda: optax.trace(0.9),
  'adam': optax.scale_by_adam,
}


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays that a sweep may vary."""

  sigma: jax.Array = option(
    0.3,
    'deviation of the members from the centre, a fraction of the root mean '
    'square of each matrix unless relative_sigma is off',
    low=0.0,
  )
  sigma_decay: jax.Array = option(
    1.0, 'factor of sigma once a generation', low=0.0
  )
  learning_rate: jax.Array = option(0.1, 'lr, a fraction likewise', low=0.0)
  learning_decay: jax.Array = option(
    1.0, 'factor of lr once a generation', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made."""

  members: int | None = option(
    None, 'M; the size of the initial population if unset', low=2, kind=int
  )
  rank: int = option(1, 'r of the noise', low=1)
  mirrored: bool = option(
    True, 'members come in pairs x + sigma E and x - sigma E'
  )
  shaping: str = option(
    'centered_rank', 'of fitness to weights', choices=SHAPINGS
  )
  centring: str = option(
    'fitness',
    "what is shaped: the 'fitness', or the mean over 'items' of how many "
    'deviations a member is above the mean of all on each',
    choices=('fitness', 'items'),
  )
  optimizer: str = option(
    'adam', 'of optax; the momentum is 0.9', choices=tuple(_OPTIMIZERS)
  )
  relative_sigma: bool = option(
    True, 'whether sigma and lr are relative to each matrix'
  )

  def __post_init__(self):
    super().__post_init__()
    if self.shaping == 'sign' and not self.mirrored:
      raise ValueError(
        "Got shaping 'sign' without mirrored pairs, whose differences it is "
        'of; take mirrored=True or another shaping.'
      )


@flax.struct.dataclass
class State(base.State):
  """State of the strategy.

  The population is one member: the centre as it was last scored.

  Attributes:
    centre: x, one genome in f32.
    centre_moved: () bool, whether x is another than the member of the
      population.
    optimizer: optax's state.
    noise_key: data of the key that the latest members' noise follows from.
  """

  centre: Any
  centre_moved: jax.Array
  optimizer: Any
  noise_key: jax.Array


class LowRankES(base.Strategy):
  """The strategy; an ask has M members and, where it has moved, the centre."""

  declared = (Params, Options)

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`.

    The best of the initial population is the first centre.
    """
    self.take(options)
    members = self.options.members
    self.members = members = population_size if members is None else members
    if members < 2 or (self.options.mirrored and members % 2):
      raise ValueError(
        f'Got {members} members; expected two or more, an even number where '
        'they are mirrored.'
      )
    if self._values.get('sigma', 1.0) <= 0.0:
      raise ValueError(
        f'Got sigma {self._values["sigma"]}; expected more than 0, as the step '
        'is divided by it.'
      )
    if self.options.centring == 'items':
      self.sees = 'items'
    super().__init__(population_size, members + 1, OPERATORS)
    self.static = LowRankES, self.options
    self.optimizer = _OPTIMIZERS[self.options.optimizer]()

  @classmethod
  def for_space(
    cls, population_size: int, space: Any, genome: Any, **options: Any
  ) -> 'LowRankES':
    strategy = super().for_space(population_size, space, genome, **options)
    seeded.check_noise(space, strategy.options)
    return strategy

  def check_genome(self, genome: stack.Genome) -> None:
    self.shares_centre = seeded.is_seeded(genome)

  def _start(self, key, state, scores, params):
    del scores, params
    memory = state.memory
    centre = memory.best
    if self.shares_centre:
      how = self.options.rank, self.options.relative_sigma, self.layers
      centre = seeded.formed(memory.best, *how)
    centre = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), centre)
    with jax.numpy_dtype_promotion('standard'):
      optimizer = self.optimizer.init(centre)
    one = state.replace(
      population=_alone(memory.best),
      fitness=memory.best_fitness[None],
      tasks=None,
      ids=memory.best_id[None],
    )
    return State(
      **vars(one),
      centre=centre,
      centre_moved=jnp.bool_(False),
      optimizer=optimizer,
      noise_key=jax.random.key_data(key),
    )

  def _propose(self, key, state, params):
    noise_key = jax.random.key_data(key)
    sigma = _decayed(params.sigma, params.sigma_decay, state.generation)

    def sample(member_key, sign):
      member = low_rank.perturb(
        member_key,
        state.centre,
        sign * sigma,
        self.options.rank,
        relative=self.options.relative_sigma,
        layers=self.layers,
      )
      return self._as_member(member, state)

    # A mirrored pair has one key and two signs.
    pairs = self._noise_keys(state, noise_key)
    signs = [jnp.ones((len(pairs),), jnp.float32)]
    if self.options.mirrored:
      signs, pairs = [signs[0], -signs[0]], jnp.concatenate([pairs, pairs])
    signs, centre = jnp.concatenate(signs), self._as_member(state.centre, state)
    if self.shares_centre:
      # The centre is the last one, without noise.
      ends = jnp.concatenate([pairs, pairs[:1]]), jnp.append(signs, 0.0)
      members = seeded.around(centre, ends[0], ends[1] * sigma)
    else:
      sampled = jax.vmap(sample)(pairs, signs)
      members = stack.concatenate(sampled, _alone(centre))

    slots = jnp.arange(self.num_proposals)
    operator = jnp.where(slots < self.members, 0, OPERATORS.index('centre'))
    if self.options.mirrored:
      second = (slots >= self.members // 2) & (slots < self.members)
      operator = jnp.where(second, OPERATORS.index('mirrored noise'), operator)
    proposal = lineage.fill(
      (slots < self.members) | state.centre_moved,
      state.next_id,
      jnp.broadcast_to(state.ids[0], slots.shape),
      operator,
    )
    return members, {
      'proposal': proposal,
      'noise_key': noise_key,
    }

  def _succeed(self, key, population, scores, state, params):
    del key
    fitness, mirrored = scores.fitness, self.options.mirrored
    if self.options.centring == 'items':
      fitness = by_item(scores.items[: self.members], fitness[: self.members])
    weights = shaped(fitness[: self.members], self.options.shaping, mirrored)
    if mirrored:
      weights = weights[: self.members // 2] - weights[self.members // 2 :]
    sigma = _decayed(params.sigma, params.sigma_decay, state.generation)
    gradient = low_rank.update(
      self._noise_keys(state, state.noise_key),
      weights / (jnp.float32(self.members) * sigma),
      state.centre,
      self.options.rank,
      layers=self.layers,
    )
    with jax.numpy_dtype_promotion('standard'):
      # optax goes down, and fitness is to go up.
      steps, optimizer = self.optimizer.update(
        jax.tree.map(jnp.negative, gradient), state.optimizer, state.centre
      )
    rate = _decayed(
      params.learning_rate, params.learning_decay, state.generation
    )
    centre = leaves.map_indexed(
      lambda index, path, x, step: x - rate * self._scale(path, x) * step,
      state.centre,
      steps,
    )
    moved = [
      jnp.any(one != two)
      for one, two in zip(
        jax.tree.leaves(centre), jax.tree.leaves(state.centre), strict=True
      )
    ]
    # The centre as it was scored, if it was.
    seen = state.proposal.filled[-1:]
    return state.replace(
      population=stack.select(
        seen, _alone(stack.take(population, self.members)), state.population
      ),
      fitness=jnp.where(seen, scores.fitness[-1:], state.fitness),
      ids=jnp.where(seen, state.proposal.ids[-1:], state.ids),
      centre=centre,
      # Not scored again as long as it stays.
      centre_moved=jnp.any(jnp.stack(moved)),
      optimizer=optimizer,
    )

  def _noise_keys(self, state, data):
    """Keys of the noises of an ask; (M,), or (M / 2,) of mirrored pairs.

    The same before and after its members are scored.
    """
    count = self.members // 2 if self.options.mirrored else self.members
    ids = state.next_id + jnp.arange(count, dtype=jnp.int32)
    return keys.keys_for(
      jax.random.wrap_key_data(data), state.generation, ids, 'low-rank noise'
    )

  def _scale(self, path, leaf):
    if not self.options.relative_sigma:
      return jnp.float32(1.0)
    return noise.root_mean_square(path, leaf, self.layers)

  def _as_member(self, genome, state):
    """In the types of the population."""
    like = state.population
    if self.shares_centre:
      like = like[seeded.CENTRE]
    return jax.tree.map(lambda x, kind: x.astype(kind.dtype), genome, like)


def shaped(fitness: jax.Array, shaping: str, mirrored: bool) -> jax.Array:
  """Weights (M,) f32 of members in the sum over their noise.

  Failed members, and all where all are equal, have none; with `mirrored` a pair
  of which one failed has none either.
  """
  alive = jnp.isfinite(fitness)
  half = fitness.shape[0] // 2
  if mirrored:
    both = alive[:half] & alive[half:]
    alive = jnp.concatenate([both, both])
  count = jnp.sum(alive).astype(jnp.float32)
  known = jnp.where(alive, fitness, 0.0)
  if shaping == 'sign':
    one = jnp.sign(known[:half] - known[half:])
    weights = jnp.concatenate([one, -one]) / 2.0
  elif shaping == 'centered_rank':
    order = jnp.sort(jnp.where(alive, fitness, jnp.inf))
    below = jnp.searchsorted(order, fitness, side='left')
    within = jnp.searchsorted(order, fitness, side='right')
    rank = (below + within - 1).astype(jnp.float32) / 2.0
    weights = rank / jnp.maximum(count - 1.0, 1.0) - 0.5
  else:
    mean = jnp.sum(known) / jnp.maximum(count, 1.0)
    weights = known - mean
    if shaping == 'z_score':
      square = jnp.sum(jnp.where(alive, jnp.square(weights), 0.0))
      spread = jnp.sqrt(square / jnp.maximum(count, 1.0))
      weights = weights / jnp.where(spread > 0.0, spread, 1.0)
  equal = jnp.min(known, where=alive, initial=jnp.inf) == jnp.max(
    known, where=alive, initial=-jnp.inf
  )
  return jnp.where(alive & ~equal, weights, 0.0)


def by_item(items: jax.Array, fitness: jax.Array) -> jax.Array:
  """Returns (M,) f32, the mean over items (M, I) of their z-scores.

  An item on which all members are equal counts for nothing, and neither does an
  item on which a member has no score; a member that failed by its fitness (M,)
  stays so.
  """
  known = jnp.isfinite(items) & jnp.isfinite(fitness)[:, None]
  count = jnp.sum(known, axis=0, keepdims=True, dtype=jnp.float32)
  count = jnp.maximum(count, 1.0)
  mean = jnp.sum(items, axis=0, where=known, keepdims=True) / count
  apart = jnp.where(known, items - mean, 0.0)
  spread = jnp.sqrt(jnp.sum(apart**2, axis=0, keepdims=True) / count)
  z = apart / jnp.where(spread > 0.0, spread, 1.0)
  return jnp.where(jnp.isfinite(fitness), jnp.mean(z, axis=1), jnp.nan)


def _alone(genome):
  return jax.tree.map(lambda leaf: leaf[None], genome)


def _decayed(value, decay, generation):
  return value * decay ** generation.astype(jnp.float32)
