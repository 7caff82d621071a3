"""Recipes as genomes: what they stand for, and that they merge the same."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import merged
from evojax_llm.genomes import merged_groups
from evojax_llm.genomes import space as space_lib
from evojax_llm.models import expression
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import parameters
from evojax_llm.population import leaves
from evojax_llm.population import stack
from tests.genomes import experts

KEY, N = jax.random.key(3), 3


def make(count: int = N, **given):
  return merged.MergedSpace(experts.adapter_set(count), experts.base(), **given)


def factors(space, genome):
  return jax.jit(space.express)(genome).factors


def check_equal(found, expected, **options):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **options), found, expected
  )


def test_a_recipe_is_the_merge_that_it_says():
  space = make(groups='knots:2,class')
  genome = space.sample(KEY)
  adapters = experts.adapter_set(N)
  recipe = json.loads(json.dumps(space.recipe(genome), allow_nan=False))
  by_group = {group['group']: group for group in recipe['groups']}

  def gradient(name, projection, expert):
    return [by_group[f'knot {k}, {projection}'][name][expert] for k in (0, 1)]

  values = {
    name: parameters.PerModel(
      [
        [
          {'filter': p, 'value': gradient(name, p, expert)}
          for p in experts.SHAPES
        ]
        for expert in adapters.names
      ]
    )
    for name in ('weights', 'density')
  }
  tree = jax.tree.map(lambda leaf: leaf[0], adapters.factors)
  merge = functools.partial(lift.genome, recipe['method'])
  merge = functools.partial(merge, layers=leaves.LAYERS, **recipe['options'])
  expected = jax.jit(merge)(
    adapters.factors,
    jax.tree.map(jnp.zeros_like, tree),
    key=jax.random.key(recipe['seed'], impl='threefry2x32'),
    parameters=parameters.resolve(
      recipe['method'], tree, values, layers=leaves.LAYERS
    ),
  )
  found = factors(space, genome)['layers']['self_attn']['q_proj']['a']
  wanted = expected['layers']['self_attn']['q_proj']['a']
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


CHOICES = (
  {},
  {'method': 'slerp', 'evolve': 'weights'},
  {'method': 'dare_linear,linear', 'groups': 'layer', 'evolve_seed': True},
  {'on': 'weights'},
)


@pytest.fixture
def optimised():
  """Programs as users have them; the others round otherwise in loops."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.mark.parametrize('given', CHOICES)
def test_members_are_merged_alike_in_groups_of_any_size(given, optimised):
  space = experts.dense_space(**given) if 'on' in given else make(**given)
  population = jax.vmap(space.sample)(jax.random.split(KEY, 3))
  together = jax.jit(jax.vmap(space.express))(population)
  for n in range(3):
    alone = jax.jit(space.express)(stack.take(population, n))
    jax.tree.map(
      lambda x, y, n=n: np.testing.assert_array_equal(x[n], y), together, alone
    )


def test_genes_that_differ_may_stand_for_one_recipe():
  space = make(method='ties,dare_ties', evolve_seed=True)
  centre = space.initial(('centre',), 1, KEY).population
  genome = stack.take(centre, 0)
  near = {**genome, 'seed': genome['seed'] + 1e-6}
  near['method'] = genome['method'] * 0.5
  np.testing.assert_array_equal(genome['genes']['weights'], 0.5)
  check_equal(space.decoded(near), space.decoded(genome))
  for seed in (0.3, -1.0, 2.0, np.nan):
    decoded = space.decoded({**genome, 'seed': jnp.float32(seed)})
    assert decoded['seed'].dtype == jnp.int32
    assert 0 <= int(decoded['seed']) < 1 << 16


@pytest.mark.parametrize(
  'kept', ['bounds', 'simplex', 'softmax', 'absolute', 'free']
)
def test_weights_are_kept_where_they_belong(kept):
  space = make(weights=kept, evolve='weights', bounds='weights=0:2')
  genome = space.genes.full(0.0)
  genome['genes']['weights'] = jnp.asarray([[-1.0, 0.25, 3.0]], jnp.float32)
  found = space.decoded(genome)['values']['weights'][0]
  expected = {
    'bounds': [0.0, 0.5, 2.0],
    'simplex': [0.0, 0.2, 0.8],
    'softmax': np.exp([-2.0, 0.5, 6.0]) / np.exp([-2.0, 0.5, 6.0]).sum(),
    'absolute': [2.0, 0.5, 6.0],
    'free': [-2.0, 0.5, 6.0],
  }[kept]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  one_hot = jax.vmap(space.decoded)(space.experts())['values']['weights']
  np.testing.assert_allclose(one_hot[:, 0], np.eye(N), atol=1e-6)
  base = space.decoded(space.base())['values']['weights']
  np.testing.assert_array_equal(base, 0.0)


def test_genes_on_a_log_scale_are_even_in_ratios():
  space = make(evolve='density', bounds='density=0.01:1:log')
  genome = space.genes.full(0.0)
  genome['genes']['density'] = jnp.asarray([[0.0, 0.5, 1.0]], jnp.float32)
  found = space.decoded(genome)['values']['density'][0]
  np.testing.assert_allclose(found, [0.01, 0.1, 1.0], rtol=1e-5)
  back = space.genes.genome({'density': [0.0, 0.1, 1.0]})['genes']['density']
  np.testing.assert_allclose(back[0], [0.0, 0.5, 1.0], atol=1e-6)


def test_a_merge_of_two_gets_the_largest_weights_of_the_group():
  space = make(method='slerp', evolve='weights', groups='layer')
  genome = space.sample(KEY)
  weights = np.asarray([[0.9, 0.1, 0.4], [0.2, 0.3, 0.8], [0.5, 0.6, 0.1]])
  genome['genes']['weights'] = jnp.asarray(weights, jnp.float32)
  recipe = space.recipe(genome)
  pairs = [group['experts'] for group in recipe['groups']]
  assert pairs == [
    ['expert0', 'expert2'],
    ['expert2', 'expert1'],
    ['expert1', 'expert0'],
  ]
  found = factors(space, genome)['layers']['self_attn']['q_proj']['a']
  given = experts.adapter_set(N).factors['layers']['self_attn']['q_proj']['a']
  for layer, (one, two) in enumerate([(0, 2), (2, 1), (1, 0)]):
    pair = np.exp(weights[layer, [one, two]])
    t = pair[1] / pair.sum()
    np.testing.assert_allclose(recipe['groups'][layer]['t'], t, rtol=1e-5)
    tree = {'a': given[[one, two]][:, layer]}
    wanted = lift.genome('slerp', tree, parameters={'t': np.float32(t)})
    np.testing.assert_allclose(found[layer], wanted['a'], rtol=1e-4, atol=1e-5)


def test_what_is_no_component_stays_the_bases():
  space = make(components='q_proj')
  found = factors(space, space.sample(KEY))['layers']['self_attn']
  assert np.any(found['q_proj']['b']) and not np.any(found['o_proj']['b'])


def test_a_method_without_weights_has_a_base():
  space = make(method='sce', evolve='select_topk')
  found = factors(space, space.base())
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
  made = space.initial((('centre', {'members': 1}), 'random'), 3, KEY)
  genes = made.population['genes']['select_topk']
  assert genes[0] == 0.5 and len(np.unique(genes)) == 3
  assert made.operators == ('centre', 'random', 'random')
  with pytest.raises(ValueError, match="no weights; expected 'centre'"):
    space.initial(('experts',), 3, KEY)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'method': 'tie'}, "Got merge 'tie'.*Did you mean 'ties'"),
    ({'on': 'factor'}, "Did you mean 'factors'"),
    ({'methods': 'ties'}, "Got unknown option 'methods' for merged"),
    ({'method': 'ties,ties'}, 'expected each one once'),
    ({'evolve': 'gamma'}, "unknown parameter of dare_ties 'gamma'"),
    ({'evolve': ''}, 'nothing that evolves'),
    ({'values': 'density=0.5'}, "'density', which evolves"),
    ({'values': 'lambda_'}, 'expected NAME=VALUE'),
    ({'values': 'lambda_=x'}, 'expected a finite number'),
    ({'options': 'normalise=none'}, "Did you mean 'normalize'"),
    ({'options': 'normalize=sum'}, "Got normalize 'sum'"),
    ({'bounds': 'weights=1:0'}, 'expected the lower one first'),
    ({'stream': 'yes'}, "with on='factors'; expected on='weights'"),
    ({'bounds': 'density=0:1:log'}, 'more than 0 on a log scale'),
    ({'bounds': 'weights=0.1:1:log'}, "weights='softmax', whose genes are log"),
    ({'bounds': 'density=0:2'}, 'density 2.0 for bounds; expected 0 to 1'),
    ({'bounds': 'gamma=0:1'}, "bounds for 'gamma'"),
    ({'groups': 'block'}, "Got the group 'block'"),
    ({'groups': 'layer,layers:1'}, 'expected one of depth'),
    ({'groups': 'layers:2'}, '3 layers; expected a block size .*: 1, 3'),
    ({'groups': 'layers:0'}, 'whole number from 1 on'),
    ({'groups': 'knots:1'}, 'whole number from 2 on'),
    ({'groups': 'filters:mlp'}, "first to match 'mlp'"),
    ({'components': 'vision'}, "'vision', which is in the name of no tensor"),
    ({'method': 'slerp', 'evolve': 't'}, '3 experts for slerp, which merges 2'),
    (
      {'method': 'split_slerp', 'evolve': 't', 'options': 'span=genome'},
      "Got span='genome'",
    ),
  ],
)
def test_recipes_that_cannot_be_are_refused(given, message):
  with pytest.raises(ValueError, match=message):
    make(**given)


def exact(**given):
  given = {'on': 'exact', 'method': 'task_arithmetic', **given}
  kind = merged.MergedSpace.configured(**given)
  return kind(experts.adapter_set(N), experts.base(), **given)


def test_gates_by_group_are_the_changes_formed_by_group():
  space = exact(groups='layer,class', evolve='weights,lambda_')
  genome = space.sample(KEY)
  assert {
    leaf.shape for leaf in jax.tree.leaves(jax.jit(space.express)(genome))
  } == {(experts.LAYERS, N * experts.RANK)}
  member = expression.as_low_rank(space.express(genome), space.model().params)
  groups = {group['group']: group for group in space.recipe(genome)['groups']}
  for name in experts.SHAPES:
    found = experts.delta(member, name)
    parts = [
      experts.expert_delta(experts.adapter_set(N), n, name) for n in range(N)
    ]
    for layer in range(experts.LAYERS):
      group = groups[f'layer {layer}, {name}']
      weights = group['lambda_'] * np.array(list(group['weights'].values()))
      expected = sum(w * p[layer] for w, p in zip(weights, parts, strict=True))
      np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-5)


def test_an_exact_change_brought_to_a_rank_is_the_nearest_and_says_so():
  whole, narrow = (
    exact(evolve='weights', **given) for given in ({}, {'rank': 2})
  )
  genome, errors = whole.sample(KEY), []
  member = expression.as_low_rank(whole.express(genome), whole.model().params)
  for name in experts.SHAPES:
    change = experts.delta(member, name)
    u, values, vt = np.linalg.svd(change, full_matrices=False)
    values[:, 2:] = 0.0
    nearest = np.einsum('lik,lk,lko->lio', u, values, vt)
    found = experts.delta(narrow.express(genome), name)
    np.testing.assert_allclose(found, nearest, atol=1e-4)
    errors += list(
      np.linalg.norm(change - nearest, axis=(1, 2))
      / np.linalg.norm(change, axis=(1, 2))
    )
  recipe = narrow.recipe(genome)
  np.testing.assert_allclose(recipe['lost'], max(errors), rtol=1e-3)
  with pytest.raises(ValueError, match='together have rank 6'):
    exact(evolve='weights', rank=7)
  with pytest.raises(ValueError, match='expected one that is linear'):
    exact(method='dare_ties')


def test_groups_of_blocks_and_modules():
  tree = jax.eval_shape(
    lambda: {
      'embedder': {'embedding': jnp.zeros((5, 2))},
      'final_norm': {'scale': jnp.zeros(2)},
      'layers': {'mlp': {'up_proj': {'kernel': jnp.zeros((4, 2, 2))}}},
    }
  )
  groups = merged_groups.make('layers:2', 4, tree)
  assert groups.names == ('layers 0-1', 'layers 2-3')
  values = groups.spread(jnp.asarray([1.0, 2.0]))
  assert values['embedder/embedding'] == 1 and values['final_norm/scale'] == 2
  np.testing.assert_array_equal(
    values['layers/mlp/up_proj/kernel'], [1, 1, 2, 2]
  )
  curve = merged_groups.make('knots:3', 4, tree).spread(
    jnp.asarray([0.0, 1.0, 5.0])
  )
  expected = np.interp(np.linspace(0, 1, 4), [0, 0.5, 1], [0, 1, 5])
  np.testing.assert_allclose(curve['layers/mlp/up_proj/kernel'], expected, 1e-6)
  assert curve['final_norm/scale'] == 0


def test_options_of_a_space_without_any_are_refused():
  with pytest.raises(ValueError, match="'gates', which has none"):
    space_lib.make_space('gates', 'x', ['y'], method='ties')
