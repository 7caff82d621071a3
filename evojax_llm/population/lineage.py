"""Descent: ids, parents and operators of proposed members."""

import flax.struct
import jax
import jax.numpy as jnp

# Id of an empty slot, or of a parent that does not exist.
NO_MEMBER = -1


@flax.struct.dataclass
class Proposal:
  """Descent of the M members of one ask.

  Attributes:
    ids: (M,) i32, never used before; -1 marks an empty slot, which need not be
      scored and never survives.
    parents: (M, 2) i32 ids, also of members of this proposal; -1 for none.
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
  """Returns a proposal of M empty slots."""
  return Proposal(
    ids=jnp.full((num_slots,), NO_MEMBER, jnp.int32),
    parents=jnp.full((num_slots, 2), NO_MEMBER, jnp.int32),
    operator=jnp.full((num_slots,), NO_MEMBER, jnp.int32),
  )


def fill(
  filled: jax.Array,
  first_id: jax.Array,
  parents: jax.Array | None = None,
  operator: jax.Array | int = 0,
) -> Proposal:
  """Returns a proposal whose slot i, where filled, has the id first_id + i.

  Ids of empty slots stay unused, so that a member's id, and every key made of
  it, does not depend on how many other slots are filled.

  Args:
    filled: (M,) bool.
    first_id: () i32.
    parents: (M, 2) i32, or (M,) of one each; None for none.
    operator: (M,) i32, or that of all.
  """
  slots = jnp.arange(filled.shape[0], dtype=jnp.int32)
  none = jnp.full_like(slots, NO_MEMBER)
  if parents is None:
    parents = none
  if parents.ndim == 1:
    parents = jnp.stack([parents, none], axis=1)
  return Proposal(
    ids=jnp.where(filled, first_id + slots, NO_MEMBER),
    parents=jnp.where(filled[:, None], parents, NO_MEMBER),
    operator=jnp.where(filled, jnp.int32(operator), NO_MEMBER),
  )
