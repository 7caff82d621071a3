"""How merges of one tensor become merges of genomes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import low_rank
from evojax_llm.operators import mutation
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import registry
from evojax_llm.operators.merges import split
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter
from evojax_llm.options import Option
from evojax_llm.population import leaves
from tests.operators import genomes
from tests.operators import layered

KEY = jax.random.key(2)


def test_every_layer_is_a_tensor_of_its_own():
  parents = genomes.population(2)
  child = layered.genome('slerp', parents)['layers']['mlp']['a']
  for layer in range(genomes.LAYERS):
    alone = registry.MERGES['slerp'].function(
      parents['layers']['mlp']['a'][:, layer], t=jnp.float32(0.5)
    )
    np.testing.assert_allclose(child[layer], alone, rtol=1e-6)


def test_rows_follow_the_orientation_of_the_leaf():
  shape = (2, 4, 6)
  x = jax.random.normal(KEY, shape, jnp.float32)
  tree = {'kernel': x, 'embedding': x, 'scale': x[:, 0]}
  child = layered.genome('nuslerp', tree, span='row')
  function = registry.MERGES['nuslerp'].function
  w = jnp.float32(1.0)
  for name, axis in (('kernel', -2), ('embedding', -1), ('scale', -1)):
    alone = function(tree[name], weights=w, span='row', axis=axis)
    np.testing.assert_allclose(child[name], alone, rtol=1e-6)
  assert not np.allclose(child['kernel'], child['embedding'])


@pytest.mark.parametrize(
  'keys, rank, axis',
  [
    (('layers', 'mlp', 'up_proj', 'kernel'), 2, -2),
    (('layers', 'mlp', 'up_proj', 'a'), 2, -2),
    (('layers', 'norm', 'scale'), 1, -1),
    (('embedder', 'embedding'), 2, -1),
    (('kernel',), 1, -1),
  ],
)
def test_row_axis(keys, rank, axis):
  path = tuple(map(jax.tree_util.DictKey, keys))
  assert leaves.row_axis(path, rank) == axis
  assert leaves.name(path) == '/'.join(keys)


def chosen(method):
  """Which of three parents each matrix of a genome comes from."""
  parents = {
    'layers': {
      m: {
        f: jnp.broadcast_to(
          jnp.arange(3, dtype=jnp.float32)[:, None, None, None], (3, 20, 2, 2)
        )
        for f in 'ab'
      }
      for m in ('up', 'down')
    }
  }
  child = layered.genome(method, parents, key=KEY)['layers']
  for module in child.values():
    for leaf in module.values():
      assert np.all(leaf == leaf[:, :1, :1])
  return {(m, f): np.asarray(child[m][f][:, 0, 0]) for m in child for f in 'ab'}


def test_both_factors_come_from_the_same_parent():
  found = chosen('uniform_matrix')
  np.testing.assert_array_equal(found['up', 'a'], found['up', 'b'])
  assert np.any(found['up', 'a'] != found['down', 'a'])
  assert set(found['up', 'a']) == {0.0, 1.0, 2.0}


def test_a_layer_comes_from_one_parent():
  found = chosen('uniform_layer')
  for layers in found.values():
    np.testing.assert_array_equal(layers, found['up', 'a'])
  assert set(found['up', 'a']) == {0.0, 1.0, 2.0}


def test_one_point_of_the_line_for_the_whole_genome():
  parents = jax.tree.map(
    lambda x: jnp.stack([jnp.ones_like(x), jnp.zeros_like(x)]),
    genomes.member(),
  )
  child = layered.genome('extrapolate', parents, key=KEY)
  values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(child)])
  assert len(set(values.tolist())) == 1 and 0.0 <= values[0] < 2.0


def test_split_of_a_whole_genome_has_one_angle_and_one_place():
  parents = genomes.population(2)
  child = layered.genome(
    'split_slerp',
    parents,
    parameters={'t': jnp.float32(0.3), 'split': jnp.float32(0.4)},
    span='genome',
  )
  x, y = (
    np.concatenate([np.ravel(leaf[i]) for leaf in jax.tree.leaves(parents)])
    for i in (0, 1)
  )
  angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
  near, far = np.sin(0.7 * angle), np.sin(0.3 * angle)
  before = np.arange(x.size) < np.float32(0.4) * x.size
  expected = np.where(before, near * x + far * y, far * x + near * y)
  made = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(child)])
  np.testing.assert_allclose(
    made, expected / np.sin(angle), rtol=2e-5, atol=1e-6
  )


def test_split_at_the_end_is_slerp():
  parents = genomes.population(2)['coefficients']
  t, one = jnp.float32(0.3), jnp.float32(1.0)
  np.testing.assert_allclose(
    split.split_slerp(parents, t=t, split=one),
    registry.MERGES['slerp'].function(parents, t=t),
    rtol=1e-5,
  )


@pytest.mark.parametrize('method', ('nuslerp', 'multislerp'))
def test_with_a_base_deltas_are_merged_and_without_one_parents(method):
  deltas, base = genomes.population(2), genomes.member(seed=9)
  parents = jax.tree.map(lambda x, b: x + b, deltas, base)
  values = {'weights': jnp.asarray([0.7, 0.4])}

  @jax.jit
  def run(parents, base):
    return layered.genome(method, parents, base, parameters=values)

  jax.tree.map(
    lambda moved, b, still: np.testing.assert_allclose(
      moved, b + still, rtol=1e-5, atol=1e-5
    ),
    run(parents, base),
    base,
    run(deltas, None),
  )


def test_arrays_of_the_host_are_taken_as_well():
  pool = genomes.population(3)
  rows = np.asarray([[0, 1], [2, 0]], np.int32)
  made, same = (
    layered.population('linear', members, rows)
    for members in (jax.tree.map(np.asarray, pool), pool)
  )
  jax.tree.map(np.testing.assert_array_equal, made, same)


@pytest.mark.parametrize('method', ('linear', 'ties'))
def test_the_pool_may_be_given_up_to_the_children(method):
  base = genomes.member(seed=9) if method == 'ties' else None
  rows = jnp.asarray([[0, 1], [2, 0], [1, 2]])
  run = jax.jit(
    lambda pool: layered.population(method, pool, rows, base), donate_argnums=0
  )
  kept = jax.jit(lambda pool: layered.population(method, pool, rows, base))
  pool = genomes.population(3)
  expected = kept(pool)
  jax.tree.map(np.testing.assert_array_equal, run(pool), expected)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(pool))


def test_a_sweep_does_not_recompile():
  parents, base = genomes.population(2), genomes.member(seed=9)
  traced = []

  @jax.jit
  def run(values):
    traced.append(None)
    return layered.genome('ties', parents, base, parameters=values)

  for density in (0.2, 0.5, 1.0):
    run({'density': jnp.float32(density), 'weights': jnp.ones(2)})
  assert len(traced) == 1


def test_a_number_counts_for_all_children_and_an_array_for_each():
  pool, base = genomes.population(4), genomes.population(1)
  base = jax.tree.map(lambda leaf: leaf[0], base)
  rows = jnp.asarray([[0, 1], [2, 3], [1, 2]])
  lambdas = jnp.asarray([1.0, 0.5, 2.0])

  def children(**parameters):
    return layered.population(
      'task_arithmetic', pool, rows, base, parameters=parameters
    )

  one, each = children(lambda_=0.5), children(lambda_=lambdas)
  for alone, together in zip(
    jax.tree.leaves(one), jax.tree.leaves(each), strict=True
  ):
    np.testing.assert_allclose(alone[1], together[1], rtol=1e-6)
    assert not np.allclose(alone[0], together[0])
  with pytest.raises(ValueError, match='3 children'):
    children(weights=jnp.ones(2))


def test_a_list_of_genomes_is_as_good_as_a_stack():
  one, two = genomes.member(), genomes.member(seed=1)
  jax.tree.map(
    np.testing.assert_array_equal,
    layered.genome('slerp', [one, two]),
    layered.genome('slerp', jax.tree.map(lambda *x: jnp.stack(x), one, two)),
  )


def test_layers_are_where_the_argument_says():
  x = jax.random.normal(KEY, (2, 3, 4), jnp.float32)
  slerp = registry.MERGES['slerp'].function
  whole = slerp(x, t=jnp.float32(0.5))
  each = jax.vmap(lambda x: slerp(x, t=jnp.float32(0.5)), 1)(x)
  for tree, layers, expected in (
    ({'layers': {'x': x}}, 'layers', each),
    ({'layers': {'x': x}}, None, whole),
    ({'blocks': {'x': x}}, 'blocks', each),
    ({'blocks': {'x': x}}, 'layers', whole),
  ):
    (child,) = jax.tree.leaves(lift.genome('slerp', tree, layers=layers))
    np.testing.assert_allclose(child, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'operator',
  (
    functools.partial(lift.genome, 'ties', parameters={'density': 0.5}),
    functools.partial(
      lift.population, 'slerp', rows=jnp.asarray([[0, 1]], jnp.int32)
    ),
    functools.partial(mutation.gaussian, KEY, mask='matrix', gene_rate=0.5),
    functools.partial(low_rank.perturb, KEY),
  ),
)
def test_no_name_is_taken_for_an_axis(operator):
  leaf = jax.random.normal(KEY, (2, 3, 4), jnp.float32)
  given = {'base': leaf[0] * 0.1} if operator.args[:1] == ('ties',) else {}
  made = [
    operator({name: leaf}, **{k: {name: v} for k, v in given.items()})
    for name in ('layers', 'other')
  ]
  nested = operator(
    {'layers': {'x': leaf}},
    **{k: {'layers': {'x': v}} for k, v in given.items()},
  )
  for tree in (made[0], nested):
    np.testing.assert_array_equal(*map(jax.tree.leaves, (tree, made[1])))


def pull(parents, *, t, side):
  end = parents[1] if side == 'two' else -parents[1]
  return parents[0] + t * (end - parents[0])


PULL = Merge(
  'pull',
  pull,
  'these tests',
  (
    Parameter('t', 0.5, 'how far', 0.0, 1.0),
    Option('side', 'two', 'where to', choices=('two', 'other')),
  ),
  parents=(2, 2),
)


@pytest.mark.parametrize('method', (PULL, f'{__name__}:PULL'))
def test_a_merge_of_a_user_is_taken_by_its_name(method):
  parents = genomes.population(2)
  x, y = parents['coefficients']
  child = layered.genome(method, parents, parameters={'t': 0.25}, side='other')
  np.testing.assert_allclose(
    child['coefficients'], 0.75 * x - 0.25 * y, rtol=1e-6
  )
  rows = jnp.asarray([[0, 1]])
  (halfway,) = layered.population(method, parents, rows)['coefficients']
  np.testing.assert_allclose(halfway, 0.5 * x + 0.5 * y, rtol=1e-6)
  with pytest.raises(ValueError, match='Got t 2.0 for pull; expected 0 to 1'):
    layered.genome(method, parents, parameters={'t': 2.0})


def test_what_is_no_merge_is_refused():
  with pytest.raises(ValueError, match='is a function; expected a Merge'):
    layered.genome(f'{__name__}:pull', genomes.population(2))
  with pytest.raises(ValueError, match="'tt'.* declared for pull; .*'t'"):
    Merge('pull', pull, '', (Parameter('tt', 0.5, 'how far'),))


def test_all_small_tensors_are_searched_in_one_loop():
  draw = np.random.default_rng(3).normal
  shapes = {'layers': {'a': (3, 6, 5), 'b': (3, 40, 9)}, 'scale': (7,)}

  def tree(*lead):
    return jax.tree.map(
      # In halves, so that many are equal.
      lambda shape: np.float32(np.round(2 * draw(size=(*lead, *shape))) / 2),
      shapes,
      is_leaf=lambda node: isinstance(node, tuple),
    )

  parents, base = tree(2), tree()
  density = {
    'layers/a': np.float32([0.2, 0.5, 0.9]),
    'layers/b': np.float32([[0.1, 0.3], [0.0, 1.0], [0.5, 0.7]]),
    'scale': np.float32([0.4, 0.6]),
  }
  merged = functools.partial(
    lift.genome, 'ties', parameters={'density': density}, layers='layers'
  )
  assert str(jax.make_jaxpr(merged)(parents, base)).count(' while[') == 2
  child = jax.jit(merged)(parents, base)
  alone = jax.jit(registry.MERGES['ties'])
  ours, theirs, start = child['scale'], parents['scale'], base['scale']
  tensors = [(ours, theirs, start, density['scale'])]
  for name in shapes['layers']:
    ours, theirs, start = (t['layers'][name] for t in (child, parents, base))
    own = density[f'layers/{name}']
    tensors += zip(ours, theirs.swapaxes(0, 1), start, own, strict=True)
  for found, theirs, start, own in tensors:
    np.testing.assert_array_equal(found, alone(theirs, start, density=own))
