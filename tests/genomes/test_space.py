"""Every space keeps the contract of `space.Space`."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import space as space_lib
from evojax_llm.models import expression
from evojax_llm.models import path_files
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import leaves
from evojax_llm.population import stack
from evojax_llm.runs import evolution
from evojax_llm.strategies import registry
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from tests.fitness.setting import make

N, KEY = 3, jax.random.key(7)
# Those of a space that has options, beside its defaults.
LINEAR = {'method': 'task_arithmetic', 'on': 'exact', 'groups': 'layer'}
LINEAR['evolve'] = 'weights'
# What is merged is not the matter here, and DARE-TIES takes long to compile.
PLAIN = {'method': 'task_arithmetic', 'evolve': 'weights'}
# Paths from any source's first layer to its last.
OWN = {
  'layer_path': {'sources': 'base,expert0,expert1,expert2', 'pinned': False},
  'merged': PLAIN,
}
CASES = (
  *((name, OWN.get(name, {})) for name in space_lib.SPACES),
  ('merged', {**LINEAR, 'evolve': 'weights,lambda_'}),
  ('merged', {**LINEAR, 'rank': 4}),
  ('merged', {**LINEAR, 'on': 'weights', 'stream': 'yes'}),
)


@pytest.fixture(scope='module')
def files(tiny_gemma_folder, tiny_adapter_folders):
  return str(tiny_gemma_folder()), tiny_adapter_folders(N)


@pytest.fixture(
  scope='module',
  params=CASES,
  ids=lambda case: '-'.join([case[0], *map(str, case[1].values())]),
)
def case(request):
  return request.param


@pytest.fixture(scope='module')
def space(case, files):
  name, given = case
  return space_lib.make_space(name, *files, **given)


@pytest.fixture(scope='module')
def engine(files):
  choices = (('A', 'yes'), ('B', 'no'), ('C', 'no way'))
  items = [Item(str(i), f'is it {i}?', 'A', choices) for i in range(4)]
  tasks = [Task('choice', 'multiple_choice', tuple(items))]
  return make(tasks, Tokenizer.from_folder(files[0]), form='folded')


def values(engine, space, population):
  """(P, items, options) log-likelihoods."""
  rows = engine.evaluate(space, population).tasks[0].loglikelihoods
  return np.array([[list(v.values()) for v in row] for row in rows])


@pytest.fixture(scope='module')
def alone(files, engine):
  """Log-likelihoods of each expert in a space of its own, and of the base."""
  base, adapters = files
  found = []
  for folder in adapters:
    own = space_lib.make_space('adapters', base, [folder])
    found.append(values(engine, own, own.experts())[0])
  return np.stack(found), values(engine, own, one(own.base()))


def one(genome):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], genome)


def check_equal(found, expected, **options):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **options), found, expected
  )


def test_experts_and_base_score_as_they_do_alone(space, engine, alone):
  experts, base = alone
  found = values(engine, space, space.experts())
  assert len(found) == len(space.names) >= N
  np.testing.assert_allclose(found[:N], experts, atol=2e-4)
  np.testing.assert_allclose(
    values(engine, space, one(space.base())), base, atol=2e-4
  )
  assert np.abs(found - base).max() > 1e-2


def test_draws_are_genomes_within_bounds(space):
  keys = jax.random.split(KEY, 8)
  drawn = jax.jit(jax.vmap(space.sample))(keys)
  like = jax.tree.map(lambda leaf: leaf[:1], space.experts())
  kinds = jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), like)
  assert jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), drawn) == kinds
  check_equal(stack.take(drawn, 3), space.sample(keys[3]), atol=1e-5)
  rows = [np.asarray(leaf).reshape(8, -1) for leaf in jax.tree.leaves(drawn)]
  assert len(np.unique(np.concatenate(rows, axis=1), axis=0)) == 8
  if space.bounds() is not None:
    low, high = space.bounds()
    jax.tree.map(
      lambda leaf, low, high: np.testing.assert_array_equal(
        (leaf >= low) & (leaf <= high), True
      ),
      drawn,
      low,
      high,
    )


def test_a_first_deviation_is_within_what_tells_experts_apart(space):
  members = jax.tree.leaves(space.experts()) + jax.tree.leaves(space.base())
  largest = max(float(np.abs(np.asarray(leaf)).max()) for leaf in members)
  assert 0.0 < space.deviation() < largest


def test_mixes(space):
  n = len(space.names)
  weights = np.concatenate([np.eye(n), np.full((1, n), 1 / n)])
  mixed = space.mix(weights, np.append(np.ones(n), 0.0))
  check_equal(jax.tree.map(lambda leaf: leaf[:n], mixed), space.experts())
  model = space.model()
  if space.exports == 'model':
    check_equal(stack.take(mixed, n), space.base(), atol=1e-5)
  assert model.config.num_layers


def test_members_are_expressed_alike_alone_and_together(space):
  population = space.initial(('experts', 'pairs'), 5, KEY).population
  express = jax.jit(space.express)
  together = jax.jit(jax.vmap(space.express))(population)
  for n in range(5):
    alone = express(jax.tree.map(lambda leaf, n=n: leaf[n], population))
    assert type(alone) is type(together)
    check_equal(
      jax.tree.map(lambda leaf, n=n: leaf[n], together),
      alone,
      rtol=1e-5,
      atol=1e-7,
    )


def test_genomes_of_another_shape_are_refused(space, tmp_path):
  population, genome = space.experts(), stack.take(space.experts(), 0)
  space_lib.check_genome(space, genome)
  space_lib.check_genome(space, population, population=True)
  wider = jax.tree.map(lambda leaf: np.stack([leaf, leaf], -2), genome)
  for wrong, of, message in (
    (genome, True, r'leaf .* shape .*; expected \(P, .*stack\('),
    (population, False, r'leaf .* has the shape .*take\('),
    (wider, False, 'has the shape'),
    ({'x': np.zeros(3)}, False, 'Got a genome .*leaf .*; expected'),
  ):
    with pytest.raises(ValueError, match=message):
      space_lib.check_genome(space, wrong, population=of)
  with pytest.raises(ValueError, match='has the shape'):
    space.export(population, tmp_path / 'out')
  broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), genome)
  with pytest.raises(ValueError, match='NaN or infinite.*Nothing is written'):
    space.export(broken, tmp_path / 'out')
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='the folder cannot be made: file exi'):
    space.export(genome, tmp_path / 'file' / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_rank_of_factors_is_free(files):
  space = space_lib.make_space('adapters', *files)
  wide = jax.tree.map_with_path(
    lambda path, leaf: jnp.repeat(
      leaf, 2, -2 if leaves.is_second_factor(path) else -1
    ),
    space.experts(),
  )
  space_lib.check_genome(space, wide, population=True)
  with pytest.raises(ValueError, match='Got adapters .*; expected a list'):
    space_lib.make_space('adapters', files[0], files[1][0])


def test_an_exported_member_scores_the_same(space, engine, files, tmp_path):
  base, _ = files
  genome = space.sample(KEY)
  folder = space.export(genome, tmp_path / 'out')
  expected = values(engine, space, one(genome))
  if space.exports == 'path':
    model, path = path_files.load_path(folder)
    found = values(engine, space_lib.Expressed(model), one(path))
    np.testing.assert_array_equal(found, expected)
    folder = space.export_model(genome, tmp_path / 'plain')
    model = space_lib.load_base(folder)
    plain = expression.Weights(one(model.params))
    found = values(engine, space_lib.Expressed(model), plain)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    return
  if space.exports == 'model':
    back = space_lib.make_space('weights', base, models=[folder])
  else:
    back = space_lib.make_space('adapters', base, [folder])
  found = values(engine, back, back.experts())
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_recipe_says_what_a_member_is(space):
  weights, base = (
    {
      name: expert if isinstance(expert, float) else expert['weight']
      for name, expert in recipe.get('weights', recipe.get('experts')).items()
    }
    for recipe in (
      json.loads(json.dumps(space.recipe(genome), allow_nan=False))
      for genome in (stack.take(space.experts(), 1), space.base())
    )
  )
  assert tuple(weights) == tuple(base) == space.names
  expected = np.eye(len(space.names))[1]
  np.testing.assert_allclose(list(weights.values()), expected, atol=1e-4)
  np.testing.assert_allclose(list(base.values()), 0.0, atol=1e-6)
  failed = jax.tree.map(lambda leaf: leaf + np.nan, space.sample(KEY))
  json.dumps(space.recipe(failed), allow_nan=False)


def test_a_recipe_measures_what_is_no_mix_of_the_experts(files):
  space = space_lib.make_space('adapters', *files)
  member = jax.tree.map(lambda leaf: leaf[0], space.experts())
  factors = jax.device_get(space.express(member).factors)
  change = np.concatenate(
    [
      np.matmul(pair['a'], pair['b']).ravel()
      for pair in jax.tree.leaves(factors, is_leaf=leaves.is_factors)
    ]
  )
  recipe = space.recipe(member)
  np.testing.assert_allclose(
    recipe['change'], np.linalg.norm(change), rtol=1e-4
  )
  assert recipe['unexplained'] < 1e-3 and recipe['rank'] == space.rank
  assert recipe['experts'][space.names[0]]['distance'] < 1e-3
  other = jax.tree.map(
    lambda leaf: jax.random.normal(KEY, leaf.shape) * 0.1, member
  )
  assert space.recipe(other)['unexplained'] > 0.9


def test_a_space_without_parameters_exports(case, space, files, tmp_path):
  name, given = case
  bare = space_lib.make_space(name, *files, dtype=None, **given)
  assert space.bare == (bare.model().params is None)
  genome = space.sample(KEY)
  ours, theirs = (
    s.export(genome, tmp_path / n) for s, n in ((space, 'a'), (bare, 'b'))
  )
  for file in ours.iterdir():
    assert file.read_bytes() == (theirs / file.name).read_bytes()


def test_the_space_of_plain_mixes_is_over_the_same_base(space):
  plain = space.plain
  assert plain.names == space.names[:N] and plain.plain is plain
  ours, theirs = space.model().params, plain.model().params
  assert ours['embedder']['embedding'] is theirs['embedder']['embedding']


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('coefficients', {}, "Did you mean 'gates'"),
    ('gate', {}, "Did you mean 'gates'"),
    ('gates', {'models': ['a']}, "that are models for the space 'gates'"),
  ],
)
def test_what_cannot_be_made_is_refused(files, name, options, message):
  with pytest.raises(ValueError, match=message):
    space_lib.make_space(name, files[0], **options)


def test_a_space_of_the_user(files):
  name = 'evojax_llm.genomes.adapters:AdapterSpace'
  space = space_lib.make_space(name, *files)
  assert space.names == space_lib.make_space('gates', *files).names


def test_members_of_one_recipe_are_scored_once(engine, files):
  space = space_lib.make_space('merged', *files, **PLAIN)
  strategy = registry.make_strategy('cma_es', 5, space)
  made = space.initial(('centre',), 5, KEY).population
  before = engine.ledger.members
  search = evolution.evolve(
    strategy,
    space,
    functools.partial(engine.evaluate, space),
    population=made,
    evaluations=4,
  )
  spent = [int(state.evaluations) for state, _ in search]
  assert spent == [1, 4] and engine.ledger.members - before == 4
