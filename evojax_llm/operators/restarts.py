"""Restarts of particles that have long not improved.

In Model Swarms (arXiv 2410.11163) a particle without a better position for some
rounds goes back to its own best, at rest. In the released code it stays stale
there, so that it is sent back in every round from then on: `forever`.
Here a restart begins the count anew, and for a refractory period, which begins
with its round, there is no other (the authors' later toolkit counts three).
"""

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.population import stack


@flax.struct.dataclass
class Patience:
  """What restarts need to know of each particle.

  Attributes:
    stale: (P,) i32 rounds scored since it last improved or was restarted.
    rest: (P,) i32 rounds of the refractory period that are left.
  """

  stale: jax.Array
  rest: jax.Array


def start(members: int) -> Patience:
  """Returns the patience of particles that start fresh."""
  return Patience(
    stale=jnp.zeros((members,), jnp.int32),
    rest=jnp.zeros((members,), jnp.int32),
  )


def count(patience: Patience, improved: jax.Array) -> Patience:
  """Counts a round; `improved` (P,) says which particles did."""
  return Patience(
    stale=jnp.where(improved, 0, patience.stale + 1),
    rest=jnp.maximum(patience.rest - 1, 0),
  )


def due(
  patience: Patience,
  limit: jax.Array | int,
  refractory: jax.Array | int = 0,
  *,
  forever: bool = False,
) -> tuple[jax.Array, Patience]:
  """Tells before a round which particles (P,) bool are restarted.

  Args:
    patience: before.
    limit: () i32, rounds without improvement after which to restart.
    refractory: () i32, rounds from a restart on, its own among them, in which
      there is no other.
    forever: as released: a stale particle is restarted every round until it
      improves.
  """
  stale = patience.stale >= jnp.asarray(limit, jnp.int32)
  if forever:
    return stale, patience
  restarted = stale & (patience.rest == 0)
  return restarted, Patience(
    stale=jnp.where(restarted, 0, patience.stale),
    rest=jnp.where(
      restarted, jnp.asarray(refractory, jnp.int32), patience.rest
    ),
  )


def restart(
  restarted: jax.Array,
  position: stack.Population,
  speed: stack.Population,
  personal: stack.Population,
) -> tuple[stack.Population, stack.Population]:
  """Positions and velocities after restarts (P,): at the own best, at rest."""
  still = jax.tree.map(jnp.zeros_like, speed)
  return (
    stack.select(restarted, personal, position),
    stack.select(restarted, still, speed),
  )
