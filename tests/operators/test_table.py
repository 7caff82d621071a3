"""Properties that every operator of the table must have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import table
from evojax_llm.population import sharding
from evojax_llm.population import stack
from tests.operators import genomes

P = 8
MAKERS = [op for op in table.OPERATORS if op.kind != 'selection']
SELECTIONS = [op for op in table.OPERATORS if op.kind == 'selection']
FITNESS = jnp.asarray([0.3, jnp.nan, 0.0, 0.9, 0.3, 0.5, 0.0, 0.7], jnp.float32)
IDS = jnp.asarray([4, 9, 2, 17, 30, 11, 8, 25], jnp.int32)

makers = pytest.mark.parametrize('op', MAKERS, ids=lambda op: op.name)
selections = pytest.mark.parametrize('op', SELECTIONS, ids=lambda op: op.name)
dtypes = pytest.mark.parametrize(
  'dtype', genomes.DTYPES, ids=lambda d: jnp.dtype(d).name
)


def parents(op, dtype, members=P):
  return [genomes.population(members, dtype, seed) for seed in range(op.arity)]


@functools.cache
def lifted(op):
  """One program for all tests of an operator."""
  return jax.jit(jax.vmap(op.apply))


def keys(members=P):
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(5), jnp.arange(members, dtype=jnp.uint32)
  )


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two, dtype):
  # Fused and unfused sums may differ in the last bit of the leaf's type.
  rtol = 1e-6 if dtype == jnp.float32 else 1e-2

  def check(x, y):
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)

  jax.tree.map(check, one, two)


def test_names_are_unique():
  names = [op.name for op in table.OPERATORS]
  assert len(set(names)) == len(names)


@dtypes
@makers
def test_keeps_shapes_and_types(op, dtype):
  first, *others = parents(op, dtype)
  made = lifted(op)(keys(), first, *others)
  assert jax.tree.structure(made) == jax.tree.structure(first)
  for new, old in zip(*map(jax.tree.leaves, (made, first)), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)


@dtypes
@makers
def test_jit_is_eager(op, dtype):
  first = [jax.tree.map(lambda x: x[0], p) for p in parents(op, dtype)]
  assert_close(
    jax.jit(op.apply)(keys()[0], *first), op.apply(keys()[0], *first), dtype
  )


@dtypes
@makers
def test_vmap_is_a_loop(op, dtype):
  populations = parents(op, dtype)
  together = lifted(op)(keys(), *populations)
  one = jax.jit(op.apply)
  looped = [
    one(keys()[i], *(stack.take(p, i) for p in populations)) for i in range(P)
  ]
  assert_close(together, stack.stack(looped), dtype)


@dtypes
@makers
def test_permuting_members_commutes(op, dtype):
  populations = parents(op, dtype)
  order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
  after = stack.take(lifted(op)(keys(), *populations), order)
  before = lifted(op)(
    keys()[order], *(stack.take(p, order) for p in populations)
  )
  assert_same(before, after)


@makers
def test_same_key_same_bits_whatever_the_chunking(op):
  populations = parents(op, jnp.float32)
  whole = lifted(op)(keys(), *populations)
  halves = [
    lifted(op)(keys()[part], *(stack.take(p, part) for p in populations))
    for part in (jnp.arange(4), jnp.arange(4, 8))
  ]
  assert_same(whole, stack.concatenate(*halves))


@makers
def test_another_key_matters_only_to_those_that_draw(op):
  first = [jax.tree.map(lambda x: x[0], p) for p in parents(op, jnp.float32)]
  one, two = (op.apply(jax.random.key(seed), *first) for seed in (1, 2))
  equal = jax.tree.all(jax.tree.map(np.array_equal, one, two))
  assert equal != op.draws


@makers
def test_sharded_is_unsharded(op):
  mesh = sharding.population_mesh()
  assert mesh.size == 4, 'the tests run on four virtual devices'
  populations = parents(op, jnp.float32)
  whole = lifted(op)(keys(), *populations)
  placed = [sharding.place(p, mesh) for p in populations]
  split = lifted(op)(sharding.place(keys(), mesh), *placed)
  spec = jax.tree.leaves(split)[0].sharding.spec
  assert spec[0] == sharding.POP
  assert_same(split, whole)


@pytest.mark.parametrize(
  'op', [op for op in MAKERS if op.arity == 2], ids=lambda op: op.name
)
@dtypes
def test_merging_a_genome_with_itself_changes_nothing(op, dtype):
  (one, _) = parents(op, dtype)
  made = lifted(op)(keys(), one, one)
  assert_close(made, one, dtype)


@selections
def test_selection_is_total(op):
  hostile = {
    'zeros': jnp.zeros(P),
    'equal': jnp.full(P, 0.4),
    'negative': jnp.linspace(-3.0, -1.0, P),
    'mixed signs': jnp.linspace(-1.0, 1.0, P),
    'one lives': jnp.full(P, jnp.nan).at[3].set(0.0),
    'nobody lives': jnp.full(P, jnp.nan),
    'infinite': jnp.linspace(0.0, 1.0, P).at[0].set(jnp.inf),
  }
  run = jax.jit(op.apply, static_argnums=2)
  for name, fitness in hostile.items():
    for seed in range(5):
      places = run(jax.random.key(seed), fitness.astype(jnp.float32), 5, IDS)
      assert places.shape == (5,) and places.dtype == jnp.int32, name
      assert np.all((0 <= places) & (places < P)), name
      if op.name != 'roulette_with_replacement':
        assert len(set(np.asarray(places).tolist())) == 5, name
      elif name == 'one lives':
        assert np.all(np.asarray(places) == 3)


@selections
def test_selection_takes_failed_members_last(op):
  if op.name == 'tournament':
    pytest.skip('three failed entrants of a tournament have a winner too')
  run = jax.jit(op.apply, static_argnums=2)
  for seed in range(20):
    places = run(jax.random.key(seed), FITNESS, P - 1, IDS)
    assert 1 not in np.asarray(places)


@selections
def test_selection_jit_is_eager(op):
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    jax.jit(op.apply, static_argnums=2)(key, FITNESS, 5, IDS),
    op.apply(key, FITNESS, 5, IDS),
  )


@selections
def test_selection_follows_members_not_places(op):
  order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
  for seed in range(5):
    key = jax.random.key(seed)
    chosen = IDS[op.apply(key, FITNESS, 5, IDS)]
    reordered = IDS[order][op.apply(key, FITNESS[order], 5, IDS[order])]
    np.testing.assert_array_equal(chosen, reordered)


@selections
def test_selection_draws_if_it_says_so(op):
  drawn = {
    tuple(np.asarray(op.apply(jax.random.key(seed), FITNESS, 4, IDS)))
    for seed in range(12)
  }
  assert (len(drawn) > 1) == op.draws


@selections
def test_selection_of_sharded_fitness(op):
  mesh = sharding.population_mesh()
  run = jax.jit(op.apply, static_argnums=2)
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    run(key, sharding.place(FITNESS, mesh), 5, sharding.place(IDS, mesh)),
    run(key, FITNESS, 5, IDS),
  )
