"""A round in which every member of a population moves.

Shared by GENOME+ (arXiv 2503.01155), which puts one in front of each round of
variation, and Model Swarms (arXiv 2410.11163), which has nothing else.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import succession
from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base

DRAWS = (*succession.DRAWS, 'run')
DECAYS = ('before', 'after', 'member')


@flax.struct.dataclass
class Params:
  """Hyperparameters of a step; () f32 arrays that a sweep may vary."""

  inertia: jax.Array = option(0.2, 'phi_v, weight of the velocity', low=0.0)
  cognitive: jax.Array = option(
    0.2, "phi_p, of the pull to a member's own best", low=0.0
  )
  social: jax.Array = option(
    0.2, 'phi_g, of the pull to the best of all', low=0.0
  )
  repel: jax.Array = option(
    0.1, 'phi_w, of the push from the worst of all', low=0.0
  )
  step_length: jax.Array = option(0.5, 'lambda before the first step', low=0.0)
  step_decay: jax.Array = option(
    0.95, 'phi_lambda, the factor of lambda', low=0.0
  )
  step_floor: jax.Array = option(0.0, 'lambda does not fall below it', low=0.0)

  @property
  def blend(self) -> jax.Array:
    """(4,) f32 phi in the order of operators.succession."""
    return jnp.stack([self.inertia, self.cognitive, self.social, self.repel])


@flax.struct.dataclass
class State(base.State):
  """State of a strategy whose members move.

  Attributes:
    velocity: P velocities like the population; None where no member moves.
    step_length: () f32 lambda.
    run_blend: (4,) f32 coefficients drawn once for the run; None otherwise.
  """

  velocity: Any
  step_length: jax.Array
  run_blend: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Options:
  """How a step is made; the defaults are the papers' algorithms."""

  draws: str = option(
    'particle',
    "r ~ U(0, 1) for each 'particle' and step, for each 'tensor' too, once "
    "in the 'run' (GENOME's released code), or 'none': r = 1",
    choices=DRAWS,
  )
  decay: str = option(
    'before',
    "lambda shrinks 'before' the step of a round (GENOME), 'after' it (Model "
    "Swarms), or before the step of each 'member' and without a floor "
    "(GENOME's released code)",
    choices=DECAYS,
  )
  personal: bool = option(
    True,
    "whether a member knows its own best; in GENOME's released code that is "
    'the position itself, and the pull to it zero',
  )
  velocity_start: str = option(
    'random',
    "first velocities are 'random' (towards another member), 'zero', or "
    "towards the 'best'",
    choices=succession.STARTS,
  )
  rescore: bool = option(
    True,
    "whether a moved member is scored; GENOME's released code keeps id and "
    'fitness of before the move',
  )

  def __post_init__(self):
    options_lib.check(vars(self), Options)


def start(
  key: jax.Array,
  generation: jax.Array,
  population: stack.Population,
  ids: jax.Array,
  options: Options,
  best: stack.Genome,
) -> stack.Population:
  """First velocities (P, ...)."""
  return succession.start_velocities(
    keys.key_for(key, generation, lineage.NO_MEMBER, 'partner'),
    population,
    ids,
    start=options.velocity_start,
    best=best,
  )


def begin(
  key: jax.Array,
  population: stack.Population,
  ids: jax.Array,
  memory: succession.Memory,
  params: Params,
  options: Options,
) -> dict[str, Any]:
  """The fields of `State` beside those of `base.State`."""
  blend = None
  if options.draws == 'run':
    draw = keys.key_for(key, 0, lineage.NO_MEMBER, 'run blend')
    blend = succession.draw_coefficients(draw, params.blend)
  return {
    'velocity': start(key, jnp.int32(0), population, ids, options, memory.best),
    'step_length': jnp.copy(params.step_length),
    'run_blend': blend,
  }


def move(
  key: jax.Array,
  state: State,
  params: Params,
  options: Options,
  *,
  restarted: jax.Array | None = None,
) -> tuple[stack.Population, dict[str, Any]]:
  """Every member takes a step.

  `restarted` (P,) bool are those that start over; those that failed by default.

  Returns:
    P moved members, and the state's new velocity and step length.
  """
  if restarted is None:
    restarted = ~jnp.isfinite(state.fitness)
  memory = state.memory
  position, velocity, refuge = depart(state, restarted)
  pull = refuge if options.personal else position

  lengths, length = _lengths(state, params, options)
  velocity = jax.vmap(succession.velocity, in_axes=(0, 0, 0, 0, None, None))(
    _blends(key, state, params, options),
    velocity,
    position,
    pull,
    memory.best,
    memory.worst,
  )
  moved = jax.vmap(succession.step)(position, velocity, lengths)
  return moved, {'velocity': velocity, 'step_length': length}


def depart(
  state: Any, restarted: jax.Array
) -> tuple[stack.Population, stack.Population, stack.Population]:
  """Where P members step from: positions, velocities and their own bests.

  Of those `restarted` (P,) bool, at rest, from the own best, or else the best
  of all: the genome of one that failed may hold values that no step leads back
  from.
  """
  memory = state.memory
  own = jnp.isfinite(memory.personal_fitness)
  known = own | jnp.isfinite(memory.best_fitness)
  refuge = stack.select(own | ~known, memory.personal, memory.best)
  restarted = restarted & known
  position = stack.select(restarted, refuge, state.population)
  at_rest = jax.tree.map(jnp.zeros_like, state.velocity)
  velocity = stack.select(restarted, at_rest, state.velocity)
  return position, velocity, refuge


def _blends(key, state, params, options):
  """(P, 4) coefficients, or (P, leaves, 4)."""
  if options.draws == 'run':
    return jnp.broadcast_to(state.run_blend, (state.ids.shape[0], 4))

  def draw(member_key):
    return succession.draw_coefficients(
      member_key,
      params.blend,
      draws=options.draws,
      num_tensors=len(jax.tree.leaves(state.velocity)),
    )

  return jax.vmap(draw)(
    keys.keys_for(key, state.generation, state.ids, 'succession')
  )


def _lengths(state, params, options):
  """(P,) f32 lambda of each member, and () that of the state from then on."""
  members = state.ids.shape[0]
  if options.decay == 'member':
    # Empty slots come first in this order, and have no turn.
    empty = jnp.sum(state.ids < 0).astype(jnp.float32)
    turn = jnp.argsort(jnp.argsort(state.ids)).astype(jnp.float32) - empty
    shrunk = params.step_decay ** (turn + 1.0)
    after = state.step_length * params.step_decay ** (members - empty)
    return state.step_length * shrunk, after
  after = jnp.maximum(state.step_length * params.step_decay, params.step_floor)
  used = after if options.decay == 'before' else state.step_length
  return jnp.broadcast_to(used, (members,)), after


def propose(
  moved: stack.Population,
  state: State,
  scored: jax.Array,
  operator: jax.Array,
  num_proposals: int,
) -> tuple[stack.Population, lineage.Proposal]:
  """Moved members (P, ...) as the first P of M slots.

  The slot of one that is not `scored` (P,) bool counts as empty.
  """
  members = stack.size(moved)
  empty = num_proposals - members
  parents = jnp.stack(
    [state.ids, jnp.broadcast_to(state.memory.best_id, (members,))], axis=1
  )
  proposal = lineage.fill(
    jnp.pad(scored, (0, empty)),
    state.next_id,
    jnp.pad(parents, ((0, empty), (0, 0))),
    jnp.pad(operator, (0, empty)),
  )
  return stack.pad(moved, num_proposals), proposal


def replace(
  population: stack.Population,
  fitness: jax.Array,
  state: State,
  kept: jax.Array,
) -> State:
  """Puts the moved members (M, ...) in the slots of those that they were.

  `kept` (P,) f32 is the fitness of those that moved without being scored; they
  keep their ids as well.
  """
  members = stack.size(state.population)
  moved = jax.tree.map(lambda leaf: leaf[:members], population)
  proposed = state.proposal.ids[:members]
  scored = proposed >= 0
  fitness, ids = fitness[:members], jnp.where(scored, proposed, state.ids)
  return state.replace(
    population=moved,
    fitness=jnp.where(scored, fitness, kept),
    ids=ids,
    memory=succession.remember_personal(
      state.memory, moved, jnp.where(scored, fitness, jnp.nan), ids
    ),
  )


def carry(
  key: jax.Array, state: State, origin: jax.Array, options: Options
) -> State:
  """After selection, velocity and personal best go along with survivors.

  `origin` (P,) i32 is the slot each came from; P and above for proposals.
  Members that are new have themselves as personal best, and a first velocity.
  """
  members = stack.size(state.population)
  survived = origin < members
  former = jnp.where(survived, origin, 0)
  memory = state.memory
  fresh = start(
    key, state.generation, state.population, state.ids, options, memory.best
  )
  return state.replace(
    velocity=stack.select(survived, stack.take(state.velocity, former), fresh),
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
