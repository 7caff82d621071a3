"""Recipes made into folders: beside numpy, refused, stopped, hostile."""

import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.recipes import merge
from evojax_llm.recipes import write
from evojax_llm.recipes.methods import METHODS
from tests.recipes import folders
from tests.recipes import reference
from tests.recipes.making import check
from tests.recipes.making import made
from tests.recipes.making import write_recipe

_WEIGHTS = (
  [0.2, 1.0],
  [{'filter': 'mlp', 'value': [0.9, '1e-1']}, {'value': 0.4}],
)
_COUNTS = {'slerp': 1, 'nuslerp': 2, 'nearswap': 1, 'arcee_fusion': 1}
_GLOBAL = {
  'slerp': {'t': [{'filter': 'mlp', 'value': [0, 1]}, {'value': '3e-1'}]},
  'nearswap': {'t': [{'filter': 'layers', 'value': 0.1}]},
  'passthrough': {'scale': [{'filter': 'down_proj', 'value': [0, 1.5]}]},
  'ties': {'density': [0.3, 0.8], 'lambda': 0.7},
  'breadcrumbs': {'density': 0.6, 'gamma': 0.05, 'normalize': True},
  'breadcrumbs_ties': {'density': 0.6, 'gamma': 0.05},
  'task_arithmetic': {'lambda': [1.0, 0.5], 'int8_mask': True},
}


def _recipes(method, paths):
  """A recipe of all layers, and one of slices that stacks four layers."""
  base, *rest = paths
  count = 1 if method == 'passthrough' else _COUNTS.get(method, 2)
  chosen = rest[:count]
  weights = _WEIGHTS if method in reference.NEEDS_WEIGHT else ({}, {})
  own = [{'parameters': {'weight': w}} if w else {} for w in weights]
  listed = [{'model': m, **o} for m, o in zip(chosen, own, strict=False)]
  common = {'merge_method': method, 'parameters': _GLOBAL.get(method, {})}
  if method not in reference.NO_BASE:
    common['base_model'] = base
  first = {**common, 'models': listed}
  if method not in reference.NO_BASE:
    # A base need not be listed, and the order of the list is free.
    first['models'] = [*listed, {'model': base}]
  slices = []
  for start in (0, 1):
    sources = [
      {**m, 'layer_range': [start, start + 2]} for m in first['models']
    ]
    slices.append({'sources': sources})
  if weights[0]:
    slices[1]['parameters'] = {'weight': 0.5}
  return first, {**common, 'slices': slices}


@pytest.mark.parametrize('method', METHODS)
def test_every_method_is_that_of_numpy(method, models, tmp_path):
  for family, (paths, tensors) in models.items():
    for i, recipe in enumerate(_recipes(method, paths)):
      found = made(tmp_path, recipe, f'{family}{i}')
      check(found, reference.folder(recipe, tensors))


def test_masks_depend_on_seed_tensor_and_model(models, tmp_path):
  (base, one, two, _), tensors = models['qwen2']
  recipe = {
    'merge_method': 'dare_linear',
    'base_model': base,
    'models': [{'model': one}, {'model': two}],
    'parameters': {'weight': 1.0, 'density': 0.5, 'rescale': False},
  }
  first, again, other = (
    made(tmp_path, recipe, name, seed=seed)
    for name, seed in (('a', 1), ('b', 1), ('c', 2))
  )
  check(first, again)
  name, beside = (f'model.layers.{n}.mlp.up_proj.weight' for n in (0, 1))
  deltas = [tensors[m][name] - tensors[base][name] for m in (one, two)]
  change = first[name] - tensors[base][name]
  sums = np.stack([0 * change, *deltas, sum(deltas)])
  kept = np.argmin(np.abs(sums - change), axis=0)
  np.testing.assert_allclose(
    np.take_along_axis(sums, kept[None], 0)[0], change, atol=1e-5
  )
  assert all(5 <= np.sum(kept == i) <= 30 for i in range(4))
  assert not np.allclose(first[name], other[name])
  one_layer = first[beside] - tensors[base][beside] == 0
  assert not np.array_equal(one_layer, change == 0)


def test_what_no_filter_names_comes_back_bit_for_bit(tmp_path):
  base = folders.write(tmp_path / 'base', 0, vision=True, dtype='bfloat16')
  one = folders.write(tmp_path / 'one', 1, like=base, dtype='bfloat16', words=9)
  recipe = {
    'merge_method': 'task_arithmetic',
    'base_model': str(base),
    'models': [
      {
        'model': str(one),
        'parameters': {'weight': [{'filter': 'layers.1.mlp', 'value': 1}]},
      }
    ],
    'dtype': 'float32',
  }
  found = made(tmp_path, recipe, shard_bytes=700)
  shards = sorted((tmp_path / 'out').glob('*.safetensors'))
  assert len(shards) > 2 and all(f.stat().st_size < 3000 for f in shards)
  index = json.loads(
    (tmp_path / 'out/model.safetensors.index.json').read_text()
  )
  start, tuned = folders.load(base), folders.load(one)
  assert set(index['weight_map']) == set(start) == set(found)
  for name, value in start.items():
    if 'layers.1.mlp' in name:
      assert found[name].dtype == np.float32
      np.testing.assert_allclose(
        found[name], tuned[name].astype(np.float32), rtol=1e-5, atol=1e-6
      )
    else:
      assert found[name].dtype == value.dtype
      assert found[name].tobytes() == value.tobytes()
  assert 'pad_token' in (tmp_path / 'out/special_tokens_map.json').read_text()


def test_slices_take_their_types_of_layers_along(tmp_path):
  kinds = ['full_attention', 'sliding_attention', 'full_attention']
  base = folders.write(tmp_path / 'a', 0, tied=True, layer_types=kinds)
  gemma = folders.write(tmp_path / 'b', 0, 'gemma2')
  for path in (base, gemma):
    recipe = {
      'merge_method': 'passthrough',
      'slices': [
        {'sources': [{'model': str(path), 'layer_range': [n, n + 1]}]}
        for n in (1, 1, 2)
      ],
      'out_dtype': 'bfloat16',
    }
    out = f'{path.name}out'
    found = made(tmp_path, recipe, out)
    raw = json.loads((tmp_path / out / 'config.json').read_text())
    assert raw['num_hidden_layers'] == 3 and raw['dtype'] == 'bfloat16'
    if path == base:
      assert raw['layer_types'] == [kinds[1], kinds[1], kinds[2]]
    else:
      assert raw['layer_types'] == [kinds[0], kinds[0], kinds[1]]
    start = folders.load(path)['model.layers.1.mlp.up_proj.weight']
    np.testing.assert_array_equal(
      found['model.layers.0.mlp.up_proj.weight'],
      start.astype(found['model.layers.0.mlp.up_proj.weight'].dtype),
    )


def test_filters_of_a_model_look_for_its_own_names(models, tmp_path):
  (one, two, *_), tensors = models['qwen2']
  weights = [{'filter': 'layers.1.', 'value': 3}, {'value': 1}]
  sources = [
    {'model': one, 'layer_range': [1, 2], 'parameters': {'weight': weights}},
    {'model': two, 'layer_range': [0, 1], 'parameters': {'weight': weights}},
  ]
  recipe = {'merge_method': 'linear', 'slices': [{'sources': sources}]}
  name = 'model.layers.{}.mlp.up_proj.weight'
  np.testing.assert_allclose(
    made(tmp_path, recipe)[name.format(0)],
    (3 * tensors[one][name.format(1)] + tensors[two][name.format(0)]) / 4,
    rtol=1e-5,
  )


def test_a_base_is_one_of_the_models_if_it_has_a_weight(models, tmp_path):
  (base, one, two, _), tensors = models['qwen2']
  own = {'parameters': {'weight': 1}}
  recipe = {'merge_method': 'linear', 'base_model': base}
  for i, (listed, everywhere, merged) in enumerate(
    (
      ([one, two], {}, [one, two]),
      ([one, two], own, [one, two, base]),
      ([base, one], {}, [base, one]),
    )
  ):
    recipe['models'] = [{'model': m, **own} for m in listed]
    found = made(tmp_path, recipe | everywhere, f'out{i}')
    name = 'model.layers.1.mlp.up_proj.weight'
    np.testing.assert_allclose(
      found[name], np.mean([tensors[m][name] for m in merged], 0), rtol=1e-4
    )


def test_a_tied_embedding_is_stored_once(tmp_path):
  tied = folders.write(tmp_path / 'tied', 0, tied=True)
  own = folders.write(tmp_path / 'own', 1, like=tied)
  both = {
    'merge_method': 'linear',
    'models': [
      {'model': str(m), 'parameters': {'weight': 1}} for m in (tied, own)
    ],
  }
  assert 'lm_head.weight' not in made(tmp_path, both)
  twice = folders.write(tmp_path / 'twice', 0, tie_word_embeddings=True)
  assert 'lm_head.weight' in folders.load(twice)
  alone = {'merge_method': 'passthrough', 'models': [{'model': str(twice)}]}
  assert 'lm_head.weight' not in made(tmp_path, alone, 'alone')
  both['models'].reverse()
  found = made(tmp_path, both, 'untied')
  x, y = folders.load(tied), folders.load(own)
  np.testing.assert_allclose(
    found['lm_head.weight'],
    (x['model.embed_tokens.weight'] + y['lm_head.weight']) / 2,
    rtol=1e-5,
  )


def test_a_stopped_merge_leaves_no_folder(models, tmp_path, monkeypatch):
  base = models['qwen2'][0][0]
  recipe = {'merge_method': 'passthrough', 'models': [{'model': base}]}
  plan = merge.plan(write_recipe(tmp_path / 'r.yaml', recipe))

  def stop(share):
    if share > 0.5:
      raise KeyboardInterrupt(signal.SIGTERM)

  with pytest.raises(KeyboardInterrupt):
    merge.merge(plan, tmp_path / 'out', progress=stop)
  assert [p.name for p in tmp_path.iterdir()] == ['r.yaml']
  merge.merge(plan, tmp_path / 'out')
  with pytest.raises(ModelError, match='--overwrite'):
    merge.merge(plan, tmp_path / 'out')
  with pytest.raises(KeyboardInterrupt):
    merge.merge(plan, tmp_path / 'out', overwrite=True, progress=stop)
  before = (tmp_path / 'out/model.safetensors').stat().st_ino
  merge.merge(plan, tmp_path / 'out', overwrite=True)
  assert (tmp_path / 'out/model.safetensors').stat().st_ino != before
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'r.yaml']
  (tmp_path / 'out/mergekit_config.yml').unlink()
  with pytest.raises(ModelError, match='no merge has written it'):
    merge.merge(plan, tmp_path / 'out', overwrite=True)


def test_layers_share_programs(models, tmp_path):
  paths, _ = models['qwen2']
  recipe = _recipes('linear', paths)[0]
  plan = merge.plan(write_recipe(tmp_path / 'r.yaml', recipe))
  jax.clear_caches()
  merge.merge(plan, tmp_path / 'out')
  assert write._merge._cache_size() == 2  # Matrices and vectors.


@pytest.mark.parametrize('name', ['ties', 'dare_ties'])
def test_rows_do_not_change_a_merge(name):
  drawn = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float32)
  values = {'weights': [0.6, 0.4], 'density': [0.5, 0.3], 'lambda_': 1.0}
  values = {k: np.asarray(v, np.float32) for k, v in values.items()}
  key = np.arange(2, dtype=np.uint32) if name == 'dare_ties' else None
  one, other = (
    write._merge(
      [drawn[1].reshape(shape), drawn[2].reshape(shape)],
      drawn[0].reshape(shape),
      values,
      key,
      merge=name,
      options=(),
      out=np.dtype(np.float32),
    )[0]
    for shape in ((-1,), (-1, 512))
  )
  np.testing.assert_array_equal(one, np.ravel(other))


def test_what_is_not_finite_is_refused(models, tmp_path):
  base = models['qwen2'][0][0]
  large = folders.write(tmp_path / 'large', 0)
  tensors = folders.load(large)
  tensors['model.norm.weight'][2] = 1e6
  folders.save(large, tensors)
  for recipe in (
    {'merge_method': 'passthrough', 'models': [{'model': str(large)}]},
    {
      'merge_method': 'linear',
      'models': [{'model': str(large)}, {'model': base}],
      'parameters': {'weight': 1},
    },
  ):
    with pytest.raises(ModelError, match='model.norm.weight: has NaN, inf'):
      made(tmp_path, {**recipe, 'out_dtype': 'float16'})
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'types, more, stored',
  [
    (('bfloat16', 'bfloat16'), {}, 'BF16'),
    (('bfloat16', 'float16'), {}, 'F32'),
    (('bfloat16', 'float16'), {'dtype': 'float16'}, 'F16'),
    (
      ('float32', 'float32'),
      {'dtype': 'float16', 'out_dtype': 'float64'},
      'F64',
    ),
  ],
)
def test_types_are_those_of_the_recipe_or_of_the_models(
  types, more, stored, tmp_path
):
  models = [
    {'model': str(folders.write(tmp_path / str(i), i, dtype=kind, layers=1))}
    for i, kind in enumerate(types)
  ]
  recipe = {'merge_method': 'linear', 'models': models, **more}
  recipe['parameters'] = {'weight': 1}
  plan = merge.plan(write_recipe(tmp_path / 'r.yaml', recipe))
  assert {output.dtype for output in plan.outputs} == {stored}
  name = 'model.layers.0.mlp.up_proj.weight'
  merge.merge(plan, tmp_path / 'out')
  parts = [folders.load(tmp_path / i)[name] for i in '01']
  parts = [x.astype(np.float32) for x in parts]
  np.testing.assert_allclose(
    folders.load(tmp_path / 'out')[name].astype(np.float32),
    sum(parts) / 2,
    rtol=1e-2,
    atol=1e-2,
  )


_KILLED = """
import os, signal, sys
from evojax_llm.recipes import merge
def kill(share):
  if share > 0.5:
    os.kill(os.getpid(), signal.SIGKILL)
merge.merge(merge.plan(sys.argv[1]), sys.argv[2], progress=kill)
"""


def test_a_killed_merge_leaves_nothing_that_looks_whole(models, tmp_path):
  base = models['qwen2'][0][0]
  recipe = {'merge_method': 'passthrough', 'models': [{'model': base}]}
  path = write_recipe(tmp_path / 'r.yaml', recipe)
  done = subprocess.run([sys.executable, '-c', _KILLED, path, tmp_path / 'out'])
  assert done.returncode == -signal.SIGKILL
  (left,) = set(tmp_path.iterdir()) - {path}
  assert left.name.startswith('.out.') and (left / 'config.json').is_file()
  with pytest.raises(ModelError):
    TensorFiles.of_model(left)
  merge.merge(merge.plan(path), tmp_path / 'out')
  assert (
    folders.load(tmp_path / 'out').keys()
    == folders.load(pathlib.Path(base)).keys()
  )
