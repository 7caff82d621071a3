"""Properties that every merge of the table must have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import registry
from evojax_llm.population import sharding
from evojax_llm.population import stack
from tests.operators import genomes

P = 4
MERGES = list(registry.MERGES.values())
# Values under which a merge does something; the defaults elsewhere.
VALUES = {
  'weights': (0.7, 0.4),
  'density': 0.5,
  'epsilon': 0.2,
  'gamma': 0.2,
  'lambda_': 0.9,
  't': 0.3,
  'select_topk': 0.5,
  'scale': 1.5,
}

merges = pytest.mark.parametrize('merge', MERGES, ids=lambda m: m.name)
drawing = pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.draws], ids=lambda m: m.name
)


def arity(merge):
  return 1 if merge.most == 1 else 2


def parameters(merge, members=None):
  """A little different for every member."""
  found = {}
  for name, parameter in merge.parameters.items():
    value = jnp.asarray(VALUES.get(name, parameter.default), jnp.float32)
    if parameter.per_model:
      value = jnp.broadcast_to(value, (2,))[: arity(merge)]
    if members is not None:
      steps = jnp.linspace(0.9, 1.0, members, dtype=jnp.float32)
      value = steps.reshape((members,) + (1,) * value.ndim) * value
    found[name] = value
  return found


def rows(merge):
  places = jnp.asarray([[0, 1], [2, 0], [4, 3], [1, 4]], jnp.int32)
  return places[:, : arity(merge)]


def member_keys():
  each = jnp.arange(P, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(5), each
  )


def base_for(merge, dtype=jnp.float32):
  return genomes.member(dtype, seed=9) if merge.needs_base else None


@functools.cache
def lifted(merge):
  """One program for all tests of a merge."""
  return jax.jit(functools.partial(lift.population, merge.name))


@functools.cache
def single(merge):
  return jax.jit(functools.partial(lift.genome, merge.name))


@functools.cache
def children(merge, dtype=jnp.float32):
  return lifted(merge)(
    genomes.population(5, dtype),
    rows(merge),
    base_for(merge, dtype),
    keys=member_keys(),
    parameters=parameters(merge, P),
  )


def looped(merge):
  pool, values = genomes.population(5), parameters(merge, P)
  return stack.stack(
    [
      single(merge)(
        stack.take(pool, rows(merge)[i]),
        base_for(merge),
        key=member_keys()[i],
        parameters=jax.tree.map(lambda x, i=i: x[i], values),
      )
      for i in range(P)
    ]
  )


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two, tolerance=2e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.asarray(x, np.float32),
      np.asarray(y, np.float32),
      rtol=tolerance,
      atol=tolerance,
    ),
    one,
    two,
  )


@pytest.mark.parametrize('dtype', genomes.DTYPES, ids=('f32', 'bf16'))
@merges
def test_keeps_shapes_and_types_and_is_finite(merge, dtype):
  made = children(merge, dtype)
  like = genomes.population(P, dtype)
  assert jax.tree.structure(made) == jax.tree.structure(like)
  for new, old in zip(*map(jax.tree.leaves, (made, like)), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert np.all(np.isfinite(np.asarray(new, np.float32)))


@merges
def test_vmap_over_members_is_a_loop(merge):
  assert_close(children(merge), looped(merge))


@merges
def test_jit_is_eager(merge):
  pool = genomes.population(5)
  parents = stack.take(pool, rows(merge)[0])
  values = jax.tree.map(lambda x: x[0], parameters(merge, P))
  eager = lift.genome(
    merge.name,
    parents,
    base_for(merge),
    key=member_keys()[0],
    parameters=values,
  )
  assert_close(eager, stack.take(children(merge), jnp.int32(0)))


@merges
def test_permuting_members_commutes(merge):
  order = jnp.asarray([2, 0, 3, 1])
  permuted = lifted(merge)(
    genomes.population(5),
    rows(merge)[order],
    base_for(merge),
    keys=member_keys()[order],
    parameters=jax.tree.map(lambda x: x[order], parameters(merge, P)),
  )
  assert_same(permuted, stack.take(children(merge), order))


@drawing
def test_chunks_draw_the_same(merge):
  made = jax.jit(functools.partial(lift.population, merge.name, batch=2))(
    genomes.population(5),
    rows(merge),
    base_for(merge),
    keys=member_keys(),
    parameters=parameters(merge, P),
  )
  assert_close(made, children(merge))


@drawing
def test_another_key_gives_another_child(merge):
  made = children(merge)
  others = lifted(merge)(
    genomes.population(5),
    rows(merge),
    base_for(merge),
    keys=jax.vmap(jax.random.fold_in, in_axes=(0, None))(member_keys(), 1),
    parameters=parameters(merge, P),
  )
  assert not jax.tree.all(jax.tree.map(np.array_equal, made, others))


@merges
def test_sharded_is_unsharded(merge):
  mesh = sharding.population_mesh()
  assert mesh.size == P, 'the tests run on four virtual devices'
  place = functools.partial(sharding.place, mesh=mesh)
  made = lifted(merge)(
    genomes.population(5),
    place(rows(merge)),
    base_for(merge),
    keys=place(member_keys()),
    parameters=place(parameters(merge, P)) if merge.parameters else {},
  )
  assert jax.tree.leaves(made)[0].sharding.spec[0] == sharding.POP
  assert_close(made, children(merge))


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.chooses], ids=lambda m: m.name
)
@pytest.mark.parametrize('chosen', (0, 1))
def test_all_weight_on_one_parent_gives_that_parent(merge, chosen):
  pool = genomes.population(2)
  made = single(merge)(
    pool,
    base_for(merge),
    key=jax.random.key(1),
    parameters={'weights': jnp.eye(2, dtype=jnp.float32)[chosen]},
  )
  assert_close(made, stack.take(pool, jnp.int32(chosen)))


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.idempotent], ids=lambda m: m.name
)
def test_equal_parents_give_that_parent(merge):
  one = genomes.member(seed=3)
  made = single(merge)(
    stack.stack([one] * arity(merge)), base_for(merge), key=jax.random.key(1)
  )
  assert_close(made, one)


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.linear_in_parents], ids=lambda m: m.name
)
def test_scaling_parents_and_base_scales_the_child(merge):
  def twice(tree):
    return jax.tree.map(lambda x: 2.0 * x, tree)

  pool, base = genomes.population(arity(merge)), base_for(merge)
  key, values = jax.random.key(1), parameters(merge)
  run = functools.partial(single(merge), key=key, parameters=values)
  assert_close(run(twice(pool), base and twice(base)), twice(run(pool, base)))


def test_the_table_has_the_methods_of_mergekit_and_of_the_papers():
  wanted = (
    'linear slerp nuslerp multislerp karcher task_arithmetic ties dare_linear '
    'dare_ties della della_linear breadcrumbs breadcrumbs_ties model_stock sce '
    'ram ramplus nearswap arcee_fusion passthrough blx uniform_element '
    'uniform_matrix uniform_layer split_slerp extrapolate'
  )
  assert set(wanted.split()) <= set(registry.MERGES)


@merges
def test_the_table_is_complete(merge):
  assert merge.source and merge.least >= 1
  assert merge.base in ('none', 'optional', 'required')
  assert merge.draws in ('', 'tensor', 'matrix', 'layer', 'genome')
  for parameter in merge.parameters.values():
    assert parameter.low <= parameter.default <= parameter.high
    assert parameter.doc
  for choices in merge.options.values():
    assert len(set(choices)) == len(choices) > 1
