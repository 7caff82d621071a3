import jax.numpy as jnp
import numpy as np

from evojax_llm.population import lineage


def test_ids_do_not_depend_on_other_slots():
  parents = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
  operator = jnp.asarray([0, 1, 1, 0], jnp.int32)
  filled = jnp.asarray([True, False, True, True])
  proposal = lineage.fill(filled, jnp.int32(10), parents, operator)
  np.testing.assert_array_equal(proposal.ids, [10, -1, 12, 13])
  np.testing.assert_array_equal(proposal.operator, [0, -1, 1, 0])
  np.testing.assert_array_equal(
    proposal.parents, [[0, 1], [-1, -1], [4, 5], [6, 7]]
  )
  np.testing.assert_array_equal(proposal.filled, filled)


def test_empty_proposal():
  proposal = lineage.empty_proposal(3)
  assert not np.any(proposal.filled)
  np.testing.assert_array_equal(proposal.parents, [[-1, -1]] * 3)
