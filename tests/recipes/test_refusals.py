"""Recipes that are refused: by name, and whatever they try."""

import os

import pytest

from evojax_llm.files import FileError
from evojax_llm.models.errors import ModelError
from evojax_llm.recipes import merge
from evojax_llm.recipes import recipe as recipe_lib
from tests.recipes import folders
from tests.recipes.making import write_recipe


def _refused(models, path):
  """(what is changed of a good recipe, parts of the message)."""
  base, one, two, three = models
  weights = {'parameters': {'weight': 1}}
  pair = [{'model': one, **weights}, {'model': two, **weights}]
  ties = {'merge_method': 'ties', 'base_model': base}
  opposite = [
    {'model': one, 'parameters': {'weight': 1}},
    {'model': two, 'parameters': {'weight': -1}},
  ]
  more = folders.write(path / 'four', 0, layers=4)
  wide = folders.write(path / 'wide', 0, words=11)
  return [
    ({'merge_method': 'dare-ties'}, ["'dare-ties'", "mean 'dare_ties'"]),
    ({'merge_method': None}, ['merge_method: missing']),
    ({'models': opposite}, ['sum to 0', 'normalize']),
    ({'models': [*pair, {'model': str(more), **weights}]}, ['four 4', 'x1 3']),
    (
      {'models': [*pair, {'model': str(wide), **weights}]},
      ['vocabularies differ', 'wide [11, 8]', '[8, 8]', 'filter: layers'],
    ),
    ({'models': [{'model': one}, pair[1]]}, ['models[0]', 'weight: missing']),
    ({'models': [{'modle': one}]}, ['modle: not known', "mean 'model'"]),
    ({'models': []}, ['models: a list; expected a list of one or more']),
    ({'models': [{'model': {'path': one}}]}, ['FOLDER+ADAPTER']),
    ({'models': [{'model': '/gone'}]}, ['/gone: does not exist']),
    ({'slices': []}, ['both are given']),
    ({'modules': {}}, ['modules: not supported']),
    ({'architecture': 'x'}, ['architecture: not supported']),
    ({'normalize': True}, ["under 'parameters:'"]),
    ({'dtype': 'bf16'}, ["dtype: 'bf16'", 'bfloat16']),
    ({'parameters': {'wieght': 1}}, ['wieght', "mean 'weight'"]),
    ({'parameters': {'weight': [1, 'x']}}, ["'x'", 'expected a number']),
    ({'parameters': {'weight': True}}, ['True; expected a number']),
    ({'parameters': {'normalize': 3}}, ['3; expected true or false']),
    ({'parameters': {'weight': [{'fliter': 1, 'value': 1}]}}, ['fliter']),
    (
      {'models': [{'model': one, 'parameters': {'normalize': True}}]},
      ['of the whole merge'],
    ),
    ({**ties, 'parameters': {'density': 1.5}}, ['density 1.5', '0 to 1']),
    ({'merge_method': 'ties'}, ['base_model: missing; ties needs one']),
    (
      {
        'merge_method': 'slerp',
        'base_model': base,
        'models': [{'model': one}, {'model': two}],
      },
      ['3 models for slerp'],
    ),
    (
      {'merge_method': 'slerp', 'base_model': base, 'models': [{'model': one}]},
      ['t: missing'],
    ),
    ({'tokenizer': {'tokens': {}}}, ['tokenizer.tokens: not supported']),
    (
      {'tokenizer_source': str(wide)},
      ['vocabularies differ', '11 tokens', '8, and'],
    ),
    ({'chat_template': 'alpaca'}, ["'alpaca'", "'chatml'"]),
  ]


def test_what_cannot_be_done_is_refused_by_name(models, tmp_path):
  paths, _ = models['qwen2']
  good = {
    'merge_method': 'linear',
    'models': [{'model': m, 'parameters': {'weight': 1}} for m in paths[1:3]],
  }
  for change, parts in _refused(paths, tmp_path):
    recipe = {k: v for k, v in {**good, **change}.items() if v is not None}
    path = write_recipe(tmp_path / 'r.yaml', recipe)
    with pytest.raises((FileError, ModelError)) as error:
      merge.plan(path)
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, (change, str(error.value))


def test_ranges_of_layers_are_checked(models, tmp_path):
  one = models['qwen2'][0][1]
  for given, part in (
    ([0, 4], 'has 3 layers'),
    ([2, 2], 'expected [first, end]'),
    (['a', 2], 'expected [first, end]'),
    (10**9, 'expected [first, end]'),
  ):
    source = {'model': one, 'layer_range': given}
    recipe = {'merge_method': 'passthrough', 'slices': [{'sources': [source]}]}
    with pytest.raises(recipe_lib.RecipeError) as error:
      merge.plan(write_recipe(tmp_path / 'r.yaml', recipe))
    assert part in str(error.value)


def _laughs():
  lines = ['a0: &a0 [x, x]']
  lines += [f'a{i}: &a{i} [*a{i - 1}, *a{i - 1}]' for i in range(1, 60)]
  return '\n'.join(lines)


@pytest.mark.parametrize(
  'text, part',
  [
    ('', 'null'),
    ('[1, 2]', 'a list'),
    ('a: [', "'<stream end>' in line 1, column 5"),
    ('[' * 30_000, 'nested more than'),
    ('a: ' + '[' * 40 + ']' * 40, 'nested more than'),
    (_laughs(), 'more than 50000 values'),
    ('a: &a [*a]', 'nested more than'),
    ('a: &a {b: 1}\nc: {<<: *a}', "'<<' is not supported"),
    ('merge_method: linear\nmerge_method: ties', 'stands twice'),
    ('a: !!python/object/apply:os.system [ls]', 'not valid YAML'),
    ('a: !!set {b}', 'a set at a'),
    ('a: 2020-01-01', 'a date at a'),
    ('a: 2020-13-41', 'not valid YAML'),
    ('a: .nan', 'nan at a'),
    ('a: 9' + '9' * 400, 'a number beyond'),
    ('1: 2', 'the key 1'),
    ('? [a, b]\n: 1', 'not valid YAML'),
    ('a: 1\n---\nb: 2', 'not valid YAML'),
    ('a: "\\0"\nmerge_method: linear', 'a: not known'),
    ('merge_method: linear\nmodels: 3', 'models: a int; expected a list'),
    ('#' * 300_000, 'more than 262144 bytes'),
  ],
)
def test_hostile_texts_are_refused(text, part, tmp_path):
  path = write_recipe(tmp_path / 'r.yaml', text)
  with pytest.raises(recipe_lib.RecipeError) as error:
    merge.plan(path)
  assert part in str(error.value)


def test_hostile_files_are_refused(models, tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  with pytest.raises(recipe_lib.RecipeError, match='FIFO'):
    merge.plan(tmp_path / 'fifo')
  loop = tmp_path / 'loop'
  loop.symlink_to(loop)
  broken = folders.write(tmp_path / 'broken', 0)
  (broken / 'model.safetensors').unlink()
  os.mkfifo(broken / 'model.safetensors')
  for model, part in ((loop, 'loop'), (broken, 'is a FIFO')):
    recipe = {'merge_method': 'passthrough', 'models': [{'model': str(model)}]}
    with pytest.raises(ModelError, match=part):
      merge.plan(write_recipe(tmp_path / 'r.yaml', recipe))
