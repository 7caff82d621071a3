"""A round in which every member of a population moves.

The state needs `velocity` and `step_length` beside what `base.State` has, and
personal bests in its memory; the hyperparameters `blend` (phi), `step_decay`
and `step_floor`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators import succession
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack


def start(
  key: jax.Array,
  generation: jax.Array,
  population: stack.Population,
  ids: jax.Array,
) -> stack.Population:
  """First velocities (P, ...): from each member towards another one."""
  draw = keys.key_for(key, generation, lineage.NOBODY, 'partner')
  return succession.start_velocities(draw, population, ids)


def propose(
  key: jax.Array, state: Any, params: Any, num_proposals: int, operator: int
) -> tuple[stack.Population, dict[str, Any]]:
  """Every member takes a step; the first P of M slots hold the moved ones.

  lambda decays once a round, before the step. A failed member starts over,
  at rest, from its own best or else the best of all: its genome may hold
  values that no step leads back from.

  Returns:
    Members (M, ...), and the state's new velocity, step length and proposal.
  """
  memory = state.memory
  own = jnp.isfinite(memory.personal_fitness)
  known = own | jnp.isfinite(memory.best_fitness)
  refuge = stack.select(own | ~known, memory.personal, memory.best)
  restart = ~jnp.isfinite(state.fitness) & known
  position = stack.select(restart, refuge, state.population)
  at_rest = jax.tree.map(jnp.zeros_like, state.velocity)
  velocity = stack.select(restart, at_rest, state.velocity)

  length = succession.decay(
    state.step_length, params.step_decay, params.step_floor
  )
  blend = jax.vmap(succession.draw_coefficients, in_axes=(0, None))(
    keys.keys_for(key, state.generation, state.ids, 'succession'), params.blend
  )
  velocity = jax.vmap(succession.velocity, in_axes=(0, 0, 0, 0, None, None))(
    blend, velocity, position, refuge, memory.best, memory.worst
  )
  moved = jax.vmap(succession.step, in_axes=(0, 0, None))(
    position, velocity, length
  )

  members = stack.size(state.population)
  parents = jnp.stack(
    [state.ids, jnp.broadcast_to(memory.best_id, (members,))], axis=1
  )
  proposal = lineage.fill(
    jnp.arange(num_proposals) < members,
    state.next_id,
    jnp.pad(parents, ((0, num_proposals - members), (0, 0))),
    jnp.full((num_proposals,), operator, jnp.int32),
  )
  return stack.pad(moved, num_proposals), {
    'velocity': velocity,
    'step_length': length,
    'proposal': proposal,
  }


def replace(
  population: stack.Population, fitness: jax.Array, state: Any
) -> Any:
  """The moved members take the places of those they were."""
  members = stack.size(state.population)
  moved = jax.tree.map(lambda leaf: leaf[:members], population)
  fitness, ids = fitness[:members], state.proposal.ids[:members]
  return state.replace(
    population=moved,
    fitness=fitness,
    ids=ids,
    memory=succession.remember_personal(state.memory, moved, fitness, ids),
  )


def carry(key: jax.Array, state: Any, places: jax.Array) -> Any:
  """After selection, velocity and personal best go along with survivors.

  Members that are new have themselves as personal best, and a first velocity.

  Args:
    key: () typed key.
    state: with the selected population but velocity and memory of before.
    places: (P,) i32 where each came from; P and above for proposals.
  """
  members = stack.size(state.population)
  survived = places < members
  former = jnp.where(survived, places, 0)
  memory = state.memory
  return state.replace(
    velocity=stack.select(
      survived,
      stack.take(state.velocity, former),
      start(key, state.generation, state.population, state.ids),
    ),
    memory=memory.replace(
      personal=stack.select(
        survived, stack.take(memory.personal, former), state.population
      ),
      personal_fitness=jnp.where(
        survived, memory.personal_fitness[former], state.fitness
      ),
      personal_ids=jnp.where(survived, memory.personal_ids[former], state.ids),
    ),
  )
