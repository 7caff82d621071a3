"""The members of a round of EvoGM, and which of them won."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators import selection
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies.evogm.training import Pools


@flax.struct.dataclass
class History:
  """All members of a round, P of its beginning and P of each iteration.

  Attributes:
    rows: (C, D) f32 coefficients in the basis of the round.
    members: (C, D) f32 numbers of the genomes, as they were scored.
    fitness: (C,) f32, NaN where a member failed.
    ids: (C,) i32; -1 where there is no member.
  """

  rows: jax.Array
  members: jax.Array
  fitness: jax.Array
  ids: jax.Array

  @property
  def ranking(self) -> jax.Array:
    """(C,) i32, the fittest first, failed ones then, empty slots last."""
    held = self.ids >= 0
    return selection.ranking(
      jnp.where(held, self.fitness, jnp.nan),
      jnp.where(held, self.ids, jnp.iinfo(jnp.int32).max),
    )

  def with_room(self, size: int) -> 'History':
    """Returns the same with empty slots behind, `size` in all."""
    padded = stack.pad(self, size)
    held = jnp.arange(size) < self.ids.shape[0]
    return padded.replace(ids=jnp.where(held, padded.ids, lineage.NO_MEMBER))

  def pools(self, winners: np.ndarray) -> Pools:
    """Returns winners and losers; `winners` is as `counts` returns it."""
    count = jnp.sum(self.ids >= 0)
    best = jnp.asarray(winners)[count]
    position = selection.positions_in(self.ranking)
    return Pools(
      self.rows,
      position < best,
      (position >= best) & (position < count),
      jnp.minimum(best, count - best),
    )


def counts(share: float, size: int, reserved: int) -> tuple[np.ndarray, int]:
  """Returns how many of n members win, and the most pairs that are trained on.

  Winners are floor(share n), but at least one, and a loser is left.

  Args:
    share: rho.
    size: C, slots of a history.
    reserved: of these the ones that are empty whenever there is a training.

  Returns:
    (C + 1,) i32 for n = 0, 1, ..., C, and the smaller number of winners and
    losers for the n at which it is largest.
  """
  members = np.arange(size + 1, dtype=np.int32)
  floor = np.floor(share * members).astype(np.int32)
  winners = np.minimum(np.maximum(floor, 1), np.maximum(members - 1, 1))
  pairs = np.minimum(winners, members - winners)[: size - reserved + 1]
  return winners, max(1, int(pairs.max()))
