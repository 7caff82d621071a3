"""Who descends from whom, and by which operator."""

import flax.struct
import jax
import jax.numpy as jnp

# An id no member has: an empty slot, or a parent that does not exist.
NO_MEMBER = -1


@flax.struct.dataclass
class Proposal:
  """Where the M members of one ask come from.

  Attributes:
    ids: (M,) i32, never used before; -1 marks an empty slot, which need not be
      scored and never survives.
    parents: (M, 2) i32 ids; -1 where there is no such parent. A parent may be
      another member of the same proposal.
    operator: (M,) i32 index into the strategy's `operator_names`; -1 in an
      empty slot.
  """

  ids: jax.Array
  parents: jax.Array
  operator: jax.Array

  @property
  def filled(self) -> jax.Array:
    """(M,) bool, whether the slot holds a member."""
    return self.ids >= 0


def empty_proposal(num_slots: int) -> Proposal:
  """A proposal of M empty slots."""
  return Proposal(
    ids=jnp.full((num_slots,), NO_MEMBER, jnp.int32),
    parents=jnp.full((num_slots, 2), NO_MEMBER, jnp.int32),
    operator=jnp.full((num_slots,), NO_MEMBER, jnp.int32),
  )


def fill(
  filled: jax.Array,
  first_id: jax.Array,
  parents: jax.Array,
  operator: jax.Array,
) -> Proposal:
  """A proposal whose slot i, where filled, has the id first_id + i.

  Ids of empty slots stay unused, so a member's id, and with it every key
  addressed by it, does not depend on how many other slots are filled.

  Args:
    filled: (M,) bool.
    first_id: () i32.
    parents: (M, 2) i32.
    operator: (M,) i32.
  """
  places = jnp.arange(filled.shape[0], dtype=jnp.int32)
  return Proposal(
    ids=jnp.where(filled, first_id + places, NO_MEMBER),
    parents=jnp.where(filled[:, None], parents, NO_MEMBER),
    operator=jnp.where(filled, operator, NO_MEMBER),
  )
