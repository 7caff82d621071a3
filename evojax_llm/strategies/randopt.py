"""Random perturbations, and one model made of the best (RandOpt, CoRP).

n seeds around one centre x are scored, and the best K of them vote (RandOpt,
arXiv 2603.12228). With f the fitness, s the root mean square of each matrix and
E_k the noise of seed k, these K are put together (after CoRP, 2605.31494):

  w_k = max(f_k - f_x, 0) / sum_j max(f_j - f_x, 0)
  y_c = x + 2^c s sum_k w_k sigma_k E_k,  c = 0 .. C - 1

so that seeds no better than the centre are left out. One generation scores the
seeds, and each after it one y. Which of x, seeds and y is the result is for dev
items to say that none of them was scored on (`config.pick_items`). See
experiments/randopt/README.md for departures from the papers.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.genomes import seeded
from evojax_llm.operators import low_rank
from evojax_llm.operators import noise
from evojax_llm.operators import selection
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base

OPERATORS = ('noise', 'gated mean')


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays that a sweep may vary."""

  sigma: jax.Array = option(
    0.1,
    'deviation of the seeds from the centre, a fraction of the root mean '
    'square of each matrix unless relative_sigma is off',
    low=0.0,
  )
  spread: jax.Array = option(
    2.0, 'a third of the seeds has sigma times this, a third over this', low=1.0
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """What is fixed when the strategy is made."""

  members: int | None = option(
    None, 'n; the size of the initial population if unset', low=1, kind=int
  )
  samples: int = option(1, 'generations that draw n seeds each', low=1)
  keep: int = option(50, 'K, seeds that live on, to vote', low=1)
  means: int = option(
    5, 'C, lengths of the gated mean that are tried, a generation each', low=0
  )
  rank: int = option(1, 'r of the noise', low=1)
  relative_sigma: bool = option(
    True, 'whether sigma is relative to each matrix'
  )

  def __post_init__(self):
    options_lib.check(vars(self), Options)


@flax.struct.dataclass
class State(base.State):
  """State of the strategy.

  The population is K seeds around one centre; the memory's personal bests are
  the C means.

  Attributes:
    start_fitness: () f32, of the centre.
    start_id: () i32, likewise.
  """

  start_fitness: jax.Array
  start_id: jax.Array


class RandOpt(base.Strategy):
  """The strategy; an ask has n seeds, or one mean."""

  declared = (Params, Options)
  shares_centre = True
  can_rescore = False

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`.

    The best of the initial population is the centre.
    """
    self.take(options)
    members = self.options.members
    self.members = population_size if members is None else members
    super().__init__(population_size, self.members + 1, OPERATORS)
    self.static = RandOpt, self.options

  @classmethod
  def for_space(
    cls, population_size: int, space: Any, genome: Any, **options: Any
  ) -> 'RandOpt':
    strategy = super().for_space(population_size, space, genome, **options)
    seeded.check_noise(space, strategy.options)
    return strategy

  def check_genome(self, genome: stack.Genome) -> None:
    if not seeded.is_seeded(genome):
      raise ValueError(
        "Got genomes without a seed; expected the space 'seeded', as in "
        '--config.space=seeded.'
      )

  def _start(self, key, state, scores, params):
    del key, scores, params
    memory, count = state.memory, self.options.means
    keep = self.options.keep
    centre = seeded.formed(
      memory.best, self.options.rank, self.options.relative_sigma, self.layers
    )
    slots = jnp.arange(keep)
    none = jax.random.wrap_key_data(
      jnp.zeros((keep, 2), jnp.uint32), impl='threefry2x32'
    )
    population = seeded.around(centre, none, jnp.zeros((keep,), jnp.float32))
    if count:
      blank = seeded.still(stack.stack([centre] * count))
      memory = memory.replace(
        personal=blank,
        personal_fitness=jnp.full((count,), jnp.nan, jnp.float32),
        personal_ids=jnp.full((count,), lineage.NO_MEMBER, jnp.int32),
      )
    state = state.replace(
      population=population,
      fitness=jnp.where(slots == 0, memory.best_fitness, jnp.nan),
      ids=jnp.where(slots == 0, memory.best_id, lineage.NO_MEMBER),
      tasks=None,
      memory=memory,
    )
    return State(
      **vars(state),
      start_fitness=memory.best_fitness,
      start_id=memory.best_id,
    )

  def _propose(self, key, state, params):
    slots = jnp.arange(self.num_proposals, dtype=jnp.int32)
    drawn = keys.keys_for(
      key, state.generation, state.next_id + slots, 'perturbation'
    )
    third = jnp.mod(slots, 3).astype(jnp.float32) - 1.0
    is_seed = slots < self.members
    scale = jnp.where(is_seed, params.sigma * params.spread**third, 0.0)
    draws = state.generation < self.options.samples
    population, gate = state.population, self._gate(state)
    centre = stack.take(population, jnp.int32(0))[seeded.CENTRE]
    centre = jax.lax.cond(
      draws, lambda: centre, lambda: self._mean(state, centre, gate)
    )
    last = self.options.samples + self.options.means
    mean = ~draws & (state.generation < last) & jnp.any(gate > 0.0)
    proposal = lineage.fill(
      jnp.where(is_seed, draws, mean),
      state.next_id,
      jnp.broadcast_to(state.start_id, slots.shape),
      jnp.where(is_seed, 0, 1),
    )
    return seeded.around(centre, drawn, scale), {'proposal': proposal}

  def _gate(self, state):
    """(K,) f32, how much better than the centre, or zero."""
    better = state.fitness - state.start_fitness
    return jnp.where(better > 0.0, better, 0.0)

  def _mean(self, state, centre, gate):
    """The centre moved along the mean of the seeds."""
    total = jnp.sum(gate)
    weights = gate / jnp.where(total > 0.0, total, 1.0)
    seeds = {seeded.SEED: state.population[seeded.SEED]}
    change = low_rank.update(
      jax.vmap(seeded.key_of)(seeds),
      weights * state.population[seeded.SCALE][:, 0],
      centre,
      self.options.rank,
      layers=self.layers,
    )
    tried = state.generation - self.options.samples
    length = jnp.exp2(tried.astype(jnp.float32))

    def move(index, path, x, step):
      del index
      scale = jnp.float32(1.0)
      if self.options.relative_sigma:
        scale = noise.root_mean_square(path, x, self.layers)
      moved = x.astype(jnp.float32) + length * scale * step
      return moved.astype(x.dtype)

    return leaves.map_indexed(move, centre, change)

  def _succeed(self, key, population, scores, state, params):
    del key, params
    memory, proposal = state.memory, state.proposal
    seen, count = scores.fitness[: self.members], self.options.means
    if count:
      slot = state.generation - self.options.samples
      here = (jnp.arange(count) == slot) & proposal.filled[-1]
      made = stack.take(population, self.members)
      memory = memory.replace(
        personal=stack.select(here, made, memory.personal),
        personal_fitness=jnp.where(
          here, scores.fitness[-1], memory.personal_fitness
        ),
        personal_ids=jnp.where(here, proposal.ids[-1], memory.personal_ids),
      )
    # The best K of those that were kept and those that are new. Where an ask
    # was a mean, none is new.
    fitness = jnp.concatenate([state.fitness, seen])
    ids = jnp.concatenate([state.ids, proposal.ids[: self.members]])
    best = selection.ranking(fitness, ids)[: self.options.keep]
    kept = {
      name: jnp.concatenate([state.population[name], population[name][:-1]])
      for name in (seeded.SEED, seeded.SCALE)
    }
    kept = {name: leaf[best] for name, leaf in kept.items()}
    alive = jnp.isfinite(fitness[best])
    return state.replace(
      population={seeded.CENTRE: state.population[seeded.CENTRE], **kept},
      fitness=fitness[best],
      ids=jnp.where(alive, ids[best], lineage.NO_MEMBER),
      memory=memory,
    )
