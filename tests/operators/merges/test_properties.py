"""Properties that every merge of the table must have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import registry
from evojax_llm.population import sharding
from evojax_llm.population import stack
from tests.operators import facts
from tests.operators import layered

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


def population(members, seed=0):
  """P genomes of a kernel in each layer and a plain vector."""
  shapes = {'layers': {'kernel': (2, 4, 3)}, 'plain': (5,)}
  draw = np.random.default_rng(seed).normal
  return jax.tree.map(
    lambda shape: jnp.asarray(draw(size=(members, *shape)), jnp.float32),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def member(seed=9):
  return stack.take(population(1, seed), 0)


def arity(merge):
  return 1 if merge.most == 1 else 2


def defaults(merge):
  """All parameters, so that all tests of a merge share its programs."""
  return {
    name: jnp.full(
      (arity(merge),) if p.per_model else (), p.default, jnp.float32
    )
    for name, p in merge.parameters.items()
  }


def parameters(merge, members):
  """Values under which a merge does something, different for every member."""
  steps = jnp.linspace(0.9, 1.0, members, dtype=jnp.float32)

  def spread(name, default):
    value = jnp.asarray(VALUES.get(name, default), jnp.float32)
    value = jnp.broadcast_to(value, default.shape)
    return steps.reshape((members,) + (1,) * value.ndim) * value

  return {name: spread(name, d) for name, d in defaults(merge).items()}


def by_leaf(first, second=None):
  """Values for each leaf and layer; of the second layer others, if given.

  All tests of a child alone have such, so that they share its programs.
  """
  second = first if second is None else second
  return {
    name: {
      'layers/kernel': jnp.stack([first[name], second[name]]),
      'plain': second[name],
    }
    for name in first
  }


def rows(merge):
  places = jnp.asarray([[0, 1], [2, 0], [4, 3], [1, 4]], jnp.int32)
  return places[:, : arity(merge)]


def member_keys():
  each = jnp.arange(P, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(5), each
  )


def base_for(merge):
  return member() if merge.needs_base else None


@functools.cache
def lifted(merge):
  """One program over members that are spread over devices."""
  return jax.jit(functools.partial(layered.population, merge.name))


@functools.cache
def single(merge):
  """One program for a child alone."""
  return jax.jit(functools.partial(layered.genome, merge.name))


def run_lifted(merge, order=tuple(range(P)), generation=0):
  mesh = sharding.population_mesh()
  assert mesh.size == P, 'the tests run on four virtual devices'
  keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
    member_keys(), generation
  )
  order = np.asarray(order)
  placed = {
    'rows': rows(merge)[order],
    'keys': keys[order],
    'parameters': jax.tree.map(lambda x: x[order], parameters(merge, P)),
  }
  placed = jax.device_put(placed, sharding.population_sharding(mesh))
  shared = jax.device_put(
    (population(5), base_for(merge)), sharding.replicated(mesh)
  )
  return lifted(merge)(
    shared[0],
    placed['rows'],
    shared[1],
    keys=placed['keys'],
    parameters=placed['parameters'],
  )


@functools.cache
def children(merge):
  return run_lifted(merge)


def one_child(function, merge, index, leaves=lambda tree: tree):
  parents = leaves(stack.take(population(5), rows(merge)[index]))
  values = by_leaf(jax.tree.map(lambda x: x[index], parameters(merge, P)))
  if 'plain' not in parents:
    for of_leaf in values.values():
      del of_leaf['plain']
  return function(
    parents,
    leaves(base_for(merge)),
    key=jax.random.fold_in(member_keys()[index], 0),
    parameters=values,
  )


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


def assert_like(made, like):
  assert jax.tree.structure(made) == jax.tree.structure(like)
  for new, old in zip(*map(jax.tree.leaves, (made, like)), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert np.all(np.isfinite(np.asarray(new, np.float32)))


@merges
def test_keeps_shapes_types_and_sharding(merge):
  assert_like(children(merge), population(P))
  for leaf in jax.tree.leaves(children(merge)):
    assert leaf.sharding.spec[0] == sharding.POPULATION


@merges
def test_bf16_is_f32_rounded_once(merge):
  def rounded(tree, dtype=jnp.bfloat16):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), tree)

  def layers(tree):
    return tree and rounded({'layers': tree['layers']})

  made = one_child(single(merge), merge, 0, layers)
  assert_like(made, layers(member()))
  if merge.name in ('arcee_fusion', 'sce'):
    return  # What they choose turns on the last bit.
  # By the program of the whole genome: its names address the same draws.
  exact = one_child(
    single(merge), merge, 0, lambda tree: tree and rounded(tree, jnp.float32)
  )
  assert_close(made['layers'], exact['layers'], 2.0**-8)


@merges
def test_members_over_devices_are_a_loop(merge):
  looped = [one_child(single(merge), merge, i) for i in range(P)]
  assert_close(children(merge), stack.stack(looped))


@merges
def test_jit_is_eager(merge):
  # One leaf of the genome: its name addresses the same draws.
  compiled = one_child(single(merge), merge, 0)
  eager = one_child(
    functools.partial(layered.genome, merge.name),
    merge,
    0,
    lambda tree: tree and {'layers': tree['layers']},
  )
  assert_close(eager['layers'], compiled['layers'])


@merges
def test_permuting_members_commutes(merge):
  order = np.asarray([2, 0, 3, 1])
  assert_close(
    run_lifted(merge, order),
    jax.tree.map(lambda x: x[order], children(merge)),
    0,
  )


# Keys are addressed by leaf and layer, whatever the merge: one of each scope.
CHUNKED = {m.scope: m for m in MERGES if m.draws}


@pytest.mark.parametrize(
  'merge', [*CHUNKED.values(), registry.MERGES['ties']], ids=lambda m: m.name
)
def test_same_key_same_bits_whatever_the_chunking(merge):
  keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(member_keys(), 0)
  run = jax.jit(functools.partial(layered.population, merge.name, batch=2))
  chunked = run(
    population(5),
    rows(merge),
    base_for(merge),
    keys=keys,
    parameters=parameters(merge, P),
  )
  # What is drawn differs by far more than sums that are rounded otherwise.
  assert_close(chunked, children(merge))


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.parameters], ids=lambda m: m.name
)
def test_every_layer_has_its_own_values(merge):
  one = jax.tree.map(lambda x: x[0], parameters(merge, P))
  two = jax.tree.map(lambda x: 0.6 * x, one)
  run = functools.partial(
    single(merge),
    population(arity(merge)),
    base_for(merge),
    key=member_keys()[0],
  )
  made, first, second = (
    run(parameters=by_leaf(*values)) for values in ((one, two), (one,), (two,))
  )
  assert_close(made['layers']['kernel'][0], first['layers']['kernel'][0])
  assert_close(made['layers']['kernel'][1], second['layers']['kernel'][1])
  assert_close(made['plain'], second['plain'])


def is_shaped(merge, count, shapes, **options):
  """Whether the child of `count` parents in bf16 has their shapes and types."""
  base, parents = (
    jax.tree.map(
      lambda shape, front=front: jax.ShapeDtypeStruct(
        (*front, *shape), jnp.bfloat16
      ),
      shapes,
      is_leaf=lambda node: isinstance(node, tuple),
    )
    for front in ((), (count,))
  )
  made = jax.eval_shape(
    functools.partial(
      layered.genome, merge.name, key=jax.random.key(0), **options
    ),
    parents,
    base if merge.needs_base else None,
  )
  return made == base


@merges
def test_takes_leaves_of_any_size(merge):
  shapes = {'nothing': (0,), 'no rows': (0, 3), 'layers': {'number': (2,)}}
  assert is_shaped(merge, arity(merge), shapes)


@merges
def test_takes_every_option(merge):
  shapes = {'kernel': (4, 3)}
  for name, option in merge.options.items():
    for choice in option.choices or (option.default + 1,):
      assert is_shaped(merge, arity(merge), shapes, **{name: choice})


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.most is None], ids=lambda m: m.name
)
def test_takes_few_and_many_parents(merge):
  for count in (merge.least, 9):
    assert is_shaped(merge, count, {'x': (3, 4)})


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.draws], ids=lambda m: m.name
)
def test_another_key_gives_another_child(merge):
  others = run_lifted(merge, generation=1)
  assert not jax.tree.all(jax.tree.map(np.array_equal, children(merge), others))


@pytest.mark.parametrize(
  'merge', [m for m in MERGES if m.name in facts.CHOOSES], ids=lambda m: m.name
)
@pytest.mark.parametrize('chosen', (0, 1))
def test_all_weight_on_one_parent_gives_that_parent(merge, chosen):
  pool = population(2)
  made = single(merge)(
    pool,
    base_for(merge),
    key=jax.random.key(1),
    parameters=by_leaf(
      defaults(merge) | {'weights': jnp.eye(2, dtype=jnp.float32)[chosen]}
    ),
  )
  assert_close(made, stack.take(pool, jnp.int32(chosen)))


@pytest.mark.parametrize(
  'merge',
  [m for m in MERGES if m.name in facts.IDEMPOTENT],
  ids=lambda m: m.name,
)
def test_equal_parents_give_that_parent(merge):
  one = member(seed=3)
  made = single(merge)(
    stack.stack([one] * arity(merge)),
    base_for(merge),
    key=jax.random.key(1),
    parameters=by_leaf(defaults(merge)),
  )
  assert_close(made, one)


@pytest.mark.parametrize(
  'merge',
  [m for m in MERGES if m.name in facts.LINEAR_IN_PARENTS],
  ids=lambda m: m.name,
)
def test_scaling_parents_and_base_scales_the_child(merge):
  def twice(tree):
    return jax.tree.map(lambda x: 2.0 * x, tree)

  pool, base = population(arity(merge)), base_for(merge)
  key, values = jax.random.key(1), by_leaf(defaults(merge))
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
  assert merge.scope in ('tensor', 'matrix', 'layer', 'genome')
  for option in merge.options.values():
    assert len(set(option.choices)) == len(option.choices) != 1
