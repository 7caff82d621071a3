import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import gates
from evojax_llm.genomes import sparsified_gates
from evojax_llm.models.expression import as_low_rank
from evojax_llm.population import leaves
from evojax_llm.population import stack
from tests.genomes import experts


def genome(*values):
  return {gates.GATES: jnp.asarray(values, jnp.float32)}


def low_rank(space, genome):
  return as_low_rank(space.express(genome), space.model().params)


def test_a_member_is_the_exact_linear_merge_of_the_changes():
  adapters = experts.adapter_set(3)
  space = gates.GateSpace(adapters, experts.base())
  assert space.rank == 3 * experts.RANK
  member = jax.jit(low_rank, static_argnums=0)(space, genome(0.5, -1.0, 2.0))
  for name in experts.SHAPES:
    parts = [experts.expert_delta(adapters, n, name) for n in range(3)]
    np.testing.assert_allclose(
      experts.delta(member, name),
      0.5 * parts[0] - parts[1] + 2.0 * parts[2],
      rtol=1e-4,
      atol=1e-5,
    )


def test_a_population_shares_every_matrix():
  space = gates.GateSpace(experts.adapter_set(3), experts.base())
  members = jax.vmap(space.express)(space.experts())
  assert {leaf.shape for leaf in jax.tree.leaves(members)} == {
    (3, experts.LAYERS, 3 * experts.RANK)
  }
  q_proj = space.model().params['layers']['self_attn']['q_proj']
  assert q_proj['a'].shape == (experts.LAYERS, 6, 3 * experts.RANK)
  assert q_proj['b'].shape == (experts.LAYERS, 3 * experts.RANK, 5)


def test_mass_of_initial_members_is_in_their_gates():
  space = gates.GateSpace(experts.adapter_set(4), experts.base())
  made = space.initial(
    ('experts', 'zero', 'average', ('scaled_average', {'factor': 3.0})),
    7,
    jax.random.key(0),
  )
  rows = made.population[gates.GATES]
  np.testing.assert_array_equal(rows[:4], np.eye(4))
  np.testing.assert_array_equal(rows[4], np.zeros(4))
  np.testing.assert_allclose(rows[5], np.full(4, 0.25))
  np.testing.assert_allclose(rows[6], np.full(4, 0.75))
  zero = low_rank(space, stack.take(made.population, 4))
  assert not np.any(experts.delta(zero))


def test_sparsified_copies_are_dare_of_b():
  adapters = experts.adapter_set(3)
  both = sparsified_gates.with_sparsified(adapters)
  assert both.names[3:] == tuple(
    f'{name}_sparsified' for name in both.names[:3]
  )
  again = sparsified_gates.with_sparsified(adapters)
  kept = total = 0
  for (path, leaf), old, same in zip(
    jax.tree.leaves_with_path(both.factors),
    jax.tree.leaves(adapters.factors),
    jax.tree.leaves(again.factors),
    strict=True,
  ):
    np.testing.assert_array_equal(leaf, same)
    np.testing.assert_array_equal(leaf[:3], old)
    if not leaves.is_second_factor(path):
      np.testing.assert_array_equal(leaf[3:], old)
      continue
    chosen = leaf[3:] != 0
    np.testing.assert_allclose(leaf[3:][chosen], old[chosen] / 0.2, rtol=1e-6)
    assert not np.array_equal(chosen[0], chosen[1])
    kept, total = kept + chosen.sum(), total + chosen.size
  assert 0.1 < kept / total < 0.3
