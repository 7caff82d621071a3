"""PSO-Merging: a particle swarm over experts, arXiv 2508.19839.

In every round all particles move by inertia, towards their own best and the
best of all, and are scored:

  r_1, r_2 ~ U(0, 1)
  v <- w v + c_1 r_1 (p - x) + c_2 r_2 (g - x)
  x <- x + v

With one r_1 and r_2 for all numbers of a particle, every position is a linear
combination of the first ones, so that gates over these are the same swarm and
no weights need moving; see experiments/pso_merging/README.md.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import succession
from evojax_llm.options import option
from evojax_llm.options import option_of
from evojax_llm.population import keys
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round

OPERATORS = ('step', 'restart+step')


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays that a sweep may vary."""

  inertia: jax.Array = option(0.2, 'w, weight of the velocity', low=0.0)
  cognitive: jax.Array = option(
    2.0, "c_1, of the pull to a particle's own best", low=0.0
  )
  social: jax.Array = option(
    2.0, 'c_2, of the pull to the best of all', low=0.0
  )
  longest_step: jax.Array = option(
    0.0,
    'a longer velocity, by its norm over all numbers of a genome, is scaled '
    'down to it; 0 for no limit',
    low=0.0,
  )


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the swarm is made."""

  draws: str = option(
    'particle',
    "r ~ U(0, 1) for each 'particle' and step, for each 'tensor' too, or "
    "'none': r = 1",
    choices=succession.DRAWS,
  )
  velocity_start: str = option_of(
    succession_round.Options, 'velocity_start', 'zero'
  )


@flax.struct.dataclass
class State(base.State):
  """State of a swarm; `velocity` is P velocities like the population."""

  velocity: Any


class PSOMerging(base.Strategy):
  """A swarm of P particles; every ask moves all of them."""

  declared = (Params, Options)
  personal = True

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`."""
    self.take(options)
    super().__init__(population_size, population_size, OPERATORS)
    self.static = PSOMerging, self.options

  def _start(self, key, state, scores, params):
    del scores, params
    velocity = succession_round.start(
      key,
      state.generation,
      state.population,
      state.ids,
      self.options,
      state.memory.best,
    )
    return State(**vars(state), velocity=velocity)

  def _propose(self, key, state, params):
    failed = ~jnp.isfinite(state.fitness)
    position, velocity, own_best = succession_round.depart(state, failed)
    pulls = jnp.stack([0.0, params.cognitive, params.social, 0.0])

    def move(member_key, position, velocity, own_best):
      blend = succession.draw_coefficients(
        member_key,
        pulls,
        draws=self.options.draws,
        num_tensors=len(jax.tree.leaves(position)),
        normalise=False,
      )
      # Inertia is not drawn; nothing is repelled.
      blend = blend.at[..., 0].set(params.inertia)
      best = state.memory.best
      speed = succession.velocity(
        blend, velocity, position, own_best, best, best
      )
      speed = _limited(speed, params.longest_step)
      return succession.step(position, speed, 1.0), speed

    members, velocity = jax.vmap(move)(
      keys.keys_for(key, state.generation, state.ids, 'succession'),
      position,
      velocity,
      own_best,
    )
    members, proposal = succession_round.propose(
      members,
      state,
      jnp.ones_like(failed),
      failed.astype(jnp.int32),
      self.num_proposals,
    )
    return members, {'velocity': velocity, 'proposal': proposal}

  def _succeed(self, key, population, scores, state, params):
    del key, params
    fitness = scores.fitness
    return succession_round.replace(population, fitness, state, state.fitness)


def _limited(velocity: stack.Genome, longest: jax.Array) -> stack.Genome:
  """One velocity, scaled down to a norm of `longest` () where that is not 0."""
  leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(velocity)]
  norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))
  too_long = (longest > 0) & (norm > longest)
  factor = jnp.where(too_long, longest / norm, 1.0)
  return jax.tree.map(
    lambda leaf: (leaf.astype(jnp.float32) * factor).astype(leaf.dtype),
    velocity,
  )
