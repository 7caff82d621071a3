"""Properties that every operator of the table must have.

Those of merges are seen in merges/test_properties.py, through the registry
that the table takes them from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import operator
from evojax_llm.operators import registry
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.population import sharding
from evojax_llm.population import stack
from experiments.benchmarks import operator_cases
from experiments.benchmarks import operator_costs
from tests.operators import facts
from tests.operators import genomes

P = 4
CASES = operator_cases.cases(registry.OPERATORS)
ALL_MAKERS = [case for case in CASES if case.operator.kind != 'selection']
MAKERS = [case for case in ALL_MAKERS if case.operator.name not in MERGES]
SELECTIONS = [case for case in CASES if case.operator.kind == 'selection']
FITNESS = jnp.asarray([0.3, jnp.nan, 0.0, 0.9, 0.3, 0.5, 0.0, 0.7], jnp.float32)
IDS = jnp.asarray([4, 9, 2, 17, 30, 11, 8, 25], jnp.int32)
MEMBERS = len(IDS)


def over(cases):
  return pytest.mark.parametrize('case', cases, ids=lambda case: case.name)


def parents(case, dtype=jnp.float32):
  """Genomes of P members, then those that all of them share."""
  own = [genomes.population(P, dtype, seed) for seed in range(case.own)]
  return own, [genomes.member(dtype, 50 + seed) for seed in range(case.shared)]


@functools.cache
def lifted(case):
  """One program over members that are spread over devices."""
  mapped = [0] * (1 + case.own) + [None] * case.shared
  return jax.jit(jax.vmap(case.apply, in_axes=tuple(mapped)))


def run_lifted(case, order=tuple(range(P))):
  own, shared = parents(case)
  order = np.asarray(order)
  mesh = sharding.population_mesh()
  assert mesh.size == P, 'the tests run on four virtual devices'
  placed = jax.device_put(
    (keys()[order], *(stack.take(p, order) for p in own)),
    sharding.population_sharding(mesh),
  )
  return lifted(case)(*placed, *shared)


@functools.cache
def single(case):
  return jax.jit(case.apply)


@functools.cache
def made(case):
  """What P members make of their parents, on which the properties are seen."""
  return run_lifted(case)


def one(case, place=0):
  own, shared = parents(case)
  return [*(stack.take(p, place) for p in own), *shared]


def keys():
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(5), jnp.arange(P, dtype=jnp.uint32)
  )


def results(case, found):
  return found if case.results > 1 else (found,)


def assert_same(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close(first, second, tolerance):
  def check(x, y):
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

  jax.tree.map(check, first, second)


def test_names_are_unique_and_all_merges_are_there():
  names = [op.name for op in registry.OPERATORS]
  assert len(set(names)) == len(names)
  assert set(MERGES) <= set(names)
  assert len({case.name for case in CASES}) == len(CASES)


def test_entries_say_what_is_true():
  for op in registry.OPERATORS:
    assert op.kind in operator.KINDS and op.doc, op.name
    for option in op.takes:
      assert option.text, (op.name, option.name)
      option.check(option.default)
      known = op.signature.get(option.name)
      if known and known.default is not known.empty:
        assert known.default == option.default, (op.name, option.name)
    for parameter in op.parameters.values():
      low, high = parameter.span
      assert parameter.low <= low <= parameter.default <= high, op.name
      assert high <= parameter.high, op.name
    for case in operator_cases.cases([op]):
      assert set(case.chosen) <= {option.name for option in op.takes}, op.name
    cost = operator_costs.cost(op)
    if cost.group == 'random':
      assert op.draws and cost.words, op.name


@pytest.mark.parametrize(
  ('case', 'dtype'),
  [
    pytest.param(case, dtype, id=f'{case.name}-{dtype.__name__}')
    for case in ALL_MAKERS
    for dtype in genomes.DTYPES
    # Merges in f32 are seen in merges/test_properties.py.
    if case.operator.name not in MERGES or dtype == jnp.bfloat16
  ],
)
def test_keeps_structure_shapes_and_types(case, dtype):
  own, shared = parents(case, dtype)
  shapes = jax.eval_shape(lifted(case), keys(), *own, *shared)
  found = results(case, shapes)
  assert len(found) == case.results
  for genome in found:
    assert jax.tree.structure(genome) == jax.tree.structure(own[0])
    for new, old in zip(*map(jax.tree.leaves, (genome, own[0])), strict=True):
      assert (new.shape, new.dtype) == (old.shape, old.dtype)


@over(MAKERS)
def test_values_are_finite_and_move(case):
  own, _ = parents(case)
  found = results(case, made(case))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
  assert not jax.tree.all(jax.tree.map(np.array_equal, found[-1], own[0]))


@over(MAKERS)
def test_jit_is_eager(case):
  # One leaf: without jit, every operation on every shape is a program.
  key, given = keys()[0], one(case)
  if case.operator.name != 'exact_linear':
    given = [{'layers': {'b': g['layers']['mlp']['b']}} for g in given]
  assert_close(
    jax.jit(case.apply)(key, *given),
    case.apply(key, *given),
    facts.tolerance(case.operator),
  )


@over(MAKERS)
def test_members_over_devices_are_a_loop(case):
  """What is drawn differs by far more, and would in chunks of any size."""
  looped = [single(case)(keys()[i], *one(case, i)) for i in range(P)]
  together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
  assert_close(made(case), together, facts.tolerance(case.operator))
  for leaf in jax.tree.leaves(made(case)):
    assert leaf.sharding.spec[0] == sharding.POPULATION


@over(MAKERS)
def test_permuting_members_commutes(case):
  order = np.asarray([3, 1, 0, 2])
  assert_same(run_lifted(case, order), stack.take(made(case), order))


@over(MAKERS)
def test_another_key_matters_only_to_those_that_draw(case):
  first, second = (
    single(case)(jax.random.key(seed), *one(case)) for seed in (1, 2)
  )
  equal = jax.tree.all(jax.tree.map(np.array_equal, first, second))
  assert equal != case.operator.draws


def seen(case, fitness):
  """What a selection sees, made of one number a member."""
  if case.sees == 'fitness':
    return fitness
  if case.sees == 'objectives':
    return jnp.stack([fitness, -fitness, jnp.zeros_like(fitness)], axis=1)
  columns = jnp.linspace(0.0, 1.0, 6)
  return jnp.where(
    jnp.isfinite(fitness)[:, None],
    (fitness[:, None] >= columns).astype(jnp.float32),
    jnp.nan,
  )


def wanted(case, count=MEMBERS - 1):
  """So many that one who failed is chosen unless it comes last."""
  return min(count, case.most or count)


@functools.cache
def choosing(case, count):
  return jax.jit(
    lambda key, fitness, ids: case.choose(key, fitness, count, ids)
  )


def choose(case, key, fitness, ids=IDS, count=MEMBERS - 1):
  run = choosing(case, wanted(case, count))
  return np.asarray(run(key, seen(case, fitness), ids))


@over(SELECTIONS)
def test_selection_is_total(case):
  hostile = {
    'zeros': jnp.zeros(MEMBERS),
    'equal': jnp.full(MEMBERS, 0.4),
    'negative': jnp.linspace(-3.0, -1.0, MEMBERS),
    'mixed signs': jnp.linspace(-1.0, 1.0, MEMBERS),
    'far apart': jnp.asarray([1e-30, 1e30, 1.0, 0, 1e-38, 3, 1e20, 2]),
    'one lives': jnp.full(MEMBERS, jnp.nan).at[3].set(0.5),
    'all failed': jnp.full(MEMBERS, jnp.nan),
    'infinite': jnp.linspace(0.0, 1.0, MEMBERS).at[0].set(jnp.inf),
  }
  for name, fitness in hostile.items():
    for seed in range(5):
      places = choose(case, jax.random.key(seed), fitness.astype(jnp.float32))
      assert places.shape == (wanted(case),), name
      assert places.dtype == jnp.int32, name
      assert np.all((0 <= places) & (places < MEMBERS)), name
      if not case.chosen.get('replace'):
        assert len(set(places.tolist())) == wanted(case), name
      elif name == 'one lives' and case.operator.name != 'tournament':
        assert np.all(places == 3)


@over(SELECTIONS)
def test_selection_takes_failed_members_last(case):
  if case.operator.name == 'tournament':
    pytest.skip('three failed entrants of a tournament have a winner too')
  for seed in range(20):
    places = choose(case, jax.random.key(seed), FITNESS)
    assert 1 not in places


@over(SELECTIONS)
def test_selection_jit_is_eager(case):
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    choose(case, key, FITNESS),
    case.choose(key, seen(case, FITNESS), wanted(case), IDS),
  )


@over(SELECTIONS)
def test_selection_follows_members_not_places(case):
  order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
  for seed in range(5):
    key = jax.random.key(seed)
    chosen = IDS[choose(case, key, FITNESS)]
    reordered = IDS[order][choose(case, key, FITNESS[order], IDS[order])]
    np.testing.assert_array_equal(chosen, reordered)


@over(SELECTIONS)
def test_selection_draws_if_it_says_so(case):
  if case.chosen.get('method') == 'truncation':
    pytest.skip('elites and truncation leave nothing to be drawn')
  drawn = {
    tuple(choose(case, jax.random.key(seed), FITNESS, count=4).tolist())
    for seed in range(12)
  }
  assert (len(drawn) > 1) == case.draws


@over(SELECTIONS)
def test_selection_of_sharded_fitness(case):
  mesh = sharding.population_mesh()
  key, fitness = jax.random.key(3), seen(case, FITNESS)
  run = choosing(case, wanted(case))
  np.testing.assert_array_equal(
    run(
      key,
      jax.device_put(fitness, sharding.population_sharding(mesh)),
      jax.device_put(IDS, sharding.population_sharding(mesh)),
    ),
    run(key, fitness, IDS),
  )
