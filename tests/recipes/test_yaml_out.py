"""Members written as mergekit recipes, and made again of them."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import yaml

from evojax_llm.genomes import merged_weights
from evojax_llm.genomes import weights
from evojax_llm.genomes.space import make_space
from evojax_llm.models import expression
from evojax_llm.models import hub
from evojax_llm.recipes import merge
from evojax_llm.recipes import yaml_out
from tests import tiny

# Of f32 weights of about one, several times rounded.
_TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def folders(tiny_gemma_folder, tiny_adapter_folders):
  adapters = tiny_adapter_folders(3, modules=tiny.FEW_MODULES)
  return tiny_gemma_folder(), adapters


def mix(space, shares, factor=1.0):
  made = space.mix(np.asarray([shares], float), np.asarray([factor], float))
  return jax.tree.map(lambda leaf: leaf[0], made)


def expressed(space, genome):
  """The parameters of the model that a genome stands for."""
  base, member = space.model(), jax.jit(space.express)(genome)
  if isinstance(member, expression.Weights):
    return member.params
  shared = base.params
  member = expression.as_low_rank(member, shared)
  return expression.fold(hub.load_checkpoint(base.folder)[1], member)


def made_again(folder, recipe, base, adapters, models=()):
  """The parameters of what `merge` makes of a member's recipe."""
  folder.mkdir()
  line = yaml_out.write(folder, recipe, base, adapters, models)
  assert yaml_out.FILE in line
  out = merge.merge(merge.plan(folder / yaml_out.FILE), folder / 'out')
  return hub.load_checkpoint(out)[1]


def check_same(found, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=_TOLERANCE),
    found,
    jax.device_get(expected),
  )


@pytest.mark.parametrize(
  'name, mixed, factor, models',
  [
    ('gates', [0.6, -0.3, 0.0], 1.0, 2),
    ('gates', [0.0, 0.0, 0.0], 1.0, 0),
    ('adapters', [0.0, 1.0, 0.0], 1.0, 1),
    ('adapters', [0.0, 1.0, 0.0], 2.5, 1),
    ('adapters', [1 / 3, 1 / 3, 1 / 3], 0.0, 0),
    ('weights', [0.2, 0.5, -0.1], 1.0, 3),
  ],
)
def test_what_merge_makes_is_the_member(
  name, mixed, factor, models, folders, tmp_path
):
  base, adapters = folders
  space = make_space(name, base, adapters)
  genome = mix(space, mixed, factor)
  recipe = space.recipe(genome)
  found = made_again(tmp_path / 'm', recipe, base, adapters)
  check_same(found, expressed(space, genome))
  said = yaml.safe_load((tmp_path / 'm' / yaml_out.FILE).read_text())
  assert len(said['models']) == models or said['models'] == [
    {'model': str(base)}
  ]


@pytest.mark.parametrize(
  'options, words',
  [
    (
      {
        'method': 'dare_ties',
        'groups': 'layers:1,filters:self_attn/mlp',
        'mask_seed': 7,
      },
      ['slices', 'filter: mlp', 'seed 7'],
    ),
    ({'method': 'ties', 'groups': 'knots:3'}, ['models', 'density:\n']),
    (
      {'method': 'della', 'evolve': 'weights,density,epsilon'},
      ['epsilon', 'seed 0'],
    ),
    (
      {'method': 'slerp', 'evolve': 'weights', 'weights': 'free'},
      ['t: 0.', 'base_model'],
    ),
    (
      {
        'method': 'task_arithmetic',
        'evolve': 'weights,lambda_',
        'groups': 'class',
        'components': 'mlp',
      },
      ['.mlp.up_proj.weight', 'lambda'],
    ),
    (
      {
        'method': 'linear',
        'evolve': 'weights',
        'groups': 'layers:1',
        'on': 'exact',
        'options': 'normalize=weights',
      },
      ['merge_method: linear', 'layer_range'],
    ),
  ],
)
def test_what_merge_makes_is_the_recipe_of_a_search(
  options, words, folders, tmp_path
):
  base, adapters = folders
  space = make_space('merged', base, adapters, **{'on': 'weights', **options})
  genome = space.sample(jax.random.key(3))
  recipe = space.recipe(genome)
  found = made_again(tmp_path / 'm', recipe, base, adapters)
  check_same(found, expressed(space, genome))
  said = (tmp_path / 'm' / yaml_out.FILE).read_text()
  for word in words:
    assert word in said, said


@pytest.fixture(scope='module')
def one_matrix(tiny_gemma_folder, tiny_adapter_folders):
  """A base and adapters of one module, and the space of their weights."""
  base = tiny_gemma_folder()
  adapters = tiny_adapter_folders(3, modules=('q_proj',))
  plain = weights.WeightSpace.from_files(base, adapters)
  return base, adapters, plain


@pytest.mark.parametrize(
  'method, evolve',
  [
    ('nuslerp', 'weights'),
    ('multislerp', 'weights'),
    ('karcher', 'tol'),
    ('dare_linear', 'weights,density'),
    ('della_linear', 'weights,density,epsilon'),
    ('breadcrumbs', 'weights,density,gamma'),
    ('breadcrumbs_ties', 'weights,density,gamma'),
    ('sce', 'select_topk'),
    ('ram', 'epsilon'),
    ('ramplus', 'r,alpha'),
    ('model_stock', ''),
    ('nearswap', 'weights,t'),
    ('arcee_fusion', 'weights'),
    ('passthrough', 'weights'),
  ],
)
def test_every_method_is_said_and_made_again(
  method, evolve, one_matrix, tmp_path
):
  base, adapters, plain = one_matrix
  given = {'method': method, 'evolve': evolve, 'on': 'weights'}
  space = merged_weights.MergedWeightSpace(
    plain, **given, evolve_seed=not evolve
  )
  genome = space.sample(jax.random.key(3))
  path = tmp_path / yaml_out.FILE
  path.write_text(yaml_out.member(space.recipe(genome), base, adapters))
  plan = merge.plan(path)
  outputs = tuple(o for o in plan.outputs if 'q_proj' in o.name)
  out = merge.merge(
    dataclasses.replace(plan, outputs=outputs), tmp_path / 'out'
  )
  found = safetensors.load_file(out / 'model.safetensors')
  expected = space.express(genome).params['layers']['self_attn']['q_proj']
  assert len(found) == len(outputs) == len(expected['kernel'])
  for layer, kernel in enumerate(expected['kernel']):
    name = f'model.layers.{layer}.self_attn.q_proj.weight'
    np.testing.assert_allclose(found[name].T, kernel, atol=_TOLERANCE)


def test_what_cannot_be_said_says_why(folders, tmp_path):
  base, adapters = folders
  space = make_space('adapters', base, adapters)
  mixed = space.recipe(mix(space, [0.5, 0.5, 0.0]))
  merged = make_space('merged', base, adapters, method='ties')
  merged = merged.recipe(merged.base())
  for recipe, own, part in (
    (mixed, base, 'no weighted sum of the experts, and 0.'),
    (merged, base, 'mergekit merges whole matrices'),
    ({**merged, 'method': 'blx', 'on': 'weights'}, base, 'blx is none of'),
    (
      {**merged, 'on': 'weights', 'options': {'rescale': 'density'}},
      base,
      'ties has no rescale=density',
    ),
    (
      {**merged, 'on': 'weights', 'method': 'nuslerp', 'components': 'mlp'}
      | {'options': {'normalize': 'none', 'span': 'tensor'}},
      base,
      'nuslerp merges all tensors, and it merges some',
    ),
    ({}, base, 'no words'),
    ({'numbers': 3}, base, 'no words'),
    ({'weights': {'expert0': None}}, base, 'not finite'),
    ({'weights': {'other': 1.0}}, base, 'other is in no folder'),
    ({'weights': {'expert0': 1.0}}, tmp_path / 'a+b', "'+' in"),
  ):
    line = yaml_out.write(tmp_path, recipe, own, adapters)
    assert part in line and line.startswith('No recipe of mergekit')
    assert not (tmp_path / yaml_out.FILE).exists()
