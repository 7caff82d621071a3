"""Random recipes of every method, made by mergekit and by us.

They need the python of an environment with mergekit in EVOJAX_LLM_MERGEKIT
(third_party/mergekit/README.md). EVOJAX_LLM_MERGEKIT_RECIPES is how many are
drawn.
"""

import json
import os
import pathlib
import random
import subprocess

import ml_dtypes
import numpy as np
import pytest

from evojax_llm.recipes.methods import METHODS
from tests.recipes import folders
from tests.recipes import reference
from tests.recipes.making import made
from tests.recipes.making import write_recipe

PYTHON = os.environ.get('EVOJAX_LLM_MERGEKIT')
PROGRAM = (
  pathlib.Path(__file__).resolve().parents[2] / 'third_party/mergekit'
) / 'recipes.py'
COUNT = int(os.environ.get('EVOJAX_LLM_MERGEKIT_RECIPES', '40'))
pytestmark = pytest.mark.skipif(
  not PYTHON,
  reason='set EVOJAX_LLM_MERGEKIT to the python of an environment made by '
  'third_party/mergekit/install.py',
)

LAYERS, MATRIX, VECTOR = 4, (6, 10), (10,)
MATRICES = [f'self_attn.{x}_proj' for x in 'qkvo']
MATRICES += [f'mlp.{x}_proj' for x in ('gate', 'up', 'down')]
NORMS = ['input_layernorm', 'post_attention_layernorm']
FAMILIES = {
  'Qwen2ForCausalLM': (NORMS, [f'self_attn.{x}_proj.bias' for x in 'qkv']),
  'Gemma2ForCausalLM': (
    [*NORMS, 'pre_feedforward_layernorm', 'post_feedforward_layernorm'],
    [],
  ),
}
COUNTS = {
  'slerp': (1, 1),
  'nearswap': (1, 1),
  'arcee_fusion': (1, 1),
  'passthrough': (1, 1),
  'nuslerp': (2, 2),
  'multislerp': (2, 3),
  'model_stock': (2, 3),
}
DRAWN, DENSITY = ('dare_linear', 'dare_ties', 'della_linear', 'della'), 0.4
# Of f32 alone: of equal sizes mergekit keeps any.
TRIMMED = ('ties', 'breadcrumbs', 'breadcrumbs_ties', 'sce', 'arcee_fusion')
FILTERS = ('mlp', 'self_attn', 'layers.1.', 'norm', 'down_proj.weight', 'embed')


def write_model(folder, seed, family, dtype):
  norms, biases = FAMILIES[family]
  shapes = {'model.embed_tokens.weight': MATRIX, 'model.norm.weight': VECTOR}
  if family.startswith('Qwen'):
    shapes['lm_head.weight'] = MATRIX
  for n in range(LAYERS):
    own = {f'{name}.weight': MATRIX for name in MATRICES}
    own |= {f'{name}.weight': VECTOR for name in norms}
    own |= dict.fromkeys(biases, VECTOR)
    shapes |= {f'model.layers.{n}.{k}': v for k, v in own.items()}
  base, change = (np.random.default_rng([x, len(biases)]) for x in (0, seed))
  tensors = {}
  for name, shape in shapes.items():
    value = base.normal(size=shape)
    value += 0.3 * change.normal(size=shape) * (seed > 0)
    tensors[name] = value.astype(dtype)
  folder.mkdir(parents=True)
  folders.save(folder, tensors, shards=2)
  config = {
    'architectures': [family],
    'model_type': family.removesuffix('ForCausalLM').lower(),
    'num_hidden_layers': LAYERS,
    'tie_word_embeddings': family.startswith('Gemma'),
  }
  (folder / 'config.json').write_text(json.dumps(config))
  return str(folder)


class Grammar:
  """Draws recipes that mergekit takes."""

  def __init__(self, seed, models):
    self._draw = random.Random(seed)
    self._models = models

  def recipe(self, method):
    draw = self._draw
    family = draw.choice(list(FAMILIES))
    dtype = 'float32' if method in TRIMMED else draw.choice(['float32', 'bf16'])
    base, *rest = self._models[family, dtype]
    chosen = draw.sample(rest, draw.randint(*COUNTS.get(method, (1, 3))))
    recipe = {'merge_method': method, 'parameters': self._overall(method)}
    if dtype == 'bf16' or draw.random() < 0.2:
      recipe['dtype'] = 'float32'
    if draw.random() < 0.3:
      recipe['out_dtype'] = draw.choice(['bfloat16', 'float32'])
    has_base = METHODS[method].base in ('first', 'required')
    if METHODS[method].base != 'model' and draw.random() < 0.5:
      has_base = True
    slices, listed = draw.random() < 0.6, list(chosen)
    if has_base:
      recipe['base_model'] = base
      if slices or method == 'slerp' or draw.random() < 0.5:
        listed.insert(draw.randrange(len(listed) + 1), base)
    elif METHODS[method].base == 'model' and method != 'passthrough':
      if draw.random() < 0.3:  # one of the models, listed or not
        recipe['base_model'] = draw.choice([base, chosen[0]])
        if method == 'linear':
          recipe['parameters']['weight'] = self._value()
    sources = [
      {'model': m, 'parameters': self._own(method)}
      if m != base
      else {'model': m}
      for m in listed
    ]
    if not slices:
      return {**recipe, 'models': sources}
    recipe['slices'] = []
    for _ in range(draw.randint(1, 3)):
      size = draw.randint(1, 3)
      ranges = [draw.randint(0, LAYERS - size) for _ in sources]
      if draw.random() < 0.5:
        ranges = ranges[:1] * len(sources)
      part = {
        'sources': [
          {**s, 'layer_range': [start, start + size]}
          for s, start in zip(sources, ranges, strict=True)
        ]
      }
      if draw.random() < 0.4:
        part['parameters'] = self._of_slice(method)
      recipe['slices'].append(part)
    return recipe

  def _own(self, method):
    """Parameters of one model."""
    draw, found = self._draw, {}
    if method in reference.NEEDS_WEIGHT:
      found['weight'] = self._value()
    if method in ('ties', 'breadcrumbs', 'breadcrumbs_ties'):
      found |= {'density': self._value()} if draw.random() < 0.7 else {}
    if method.startswith('bread') and draw.random() < 0.5:
      found['gamma'] = self._value(low=0.0, high=0.2)
    if method == 'passthrough' and draw.random() < 0.7:
      found['scale'] = self._value()
    return found

  def _of_slice(self, method):
    """Parameters of a slice."""
    known = METHODS[method].known
    if method == 'slerp' or method == 'nearswap':
      return {'t': self._value(low=0.0)}
    if 'lambda' in known:
      return {'lambda': self._value()}
    return {}

  def _overall(self, method):
    """Parameters of the whole merge."""
    draw, found = self._draw, self._of_slice(method)
    known = METHODS[method]
    for name in known.switches:
      if draw.random() < 0.5:
        found[name] = draw.choice([True, False])
    if 'int8_mask' in known.unused and 'density' in known.known:
      if draw.random() < 0.3:
        found['int8_mask'] = True
    if method == 'sce' and draw.random() < 0.7:
      found['select_topk'] = self._value()
    if method.startswith('ram'):
      found['epsilon'] = self._value(low=0.01, high=0.3)
    if method == 'ramplus_tl' and draw.random() < 0.5:
      found |= {'r': self._value(), 'alpha': self._value()}
    if method == 'karcher' and draw.random() < 0.5:
      found |= {'max_iter': draw.randint(1, 20), 'tol': '1e-6'}
    return found

  def _value(self, low=0.1, high=1.0):
    """A number, a gradient, or filters of which one matches."""
    draw, kind = self._draw, self._draw.randrange(4)
    if kind == 0:
      return self._gradient(low, high)
    if kind == 1:
      return [
        *(
          {
            'filter': draw.choice(FILTERS),
            'value': draw.choice(
              [self._number(low, high), self._gradient(low, high)]
            ),
          }
          for _ in range(draw.randint(1, 2))
        ),
        draw.choice([{}, {'filter': '*'}]) | {'value': self._number(low, high)},
      ]
    return self._number(low, high)

  def _gradient(self, low, high):
    return [self._number(low, high) for _ in range(self._draw.randint(1, 4))]

  def _number(self, low, high):
    number = round(self._draw.uniform(low, high), 3)
    return self._draw.choice([number, str(number)])


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  root = tmp_path_factory.mktemp('models')
  types = {'float32': np.float32, 'bf16': ml_dtypes.bfloat16}
  return {
    (family, name): [
      write_model(root / family / name / str(seed), seed, family, dtype)
      for seed in range(4)
    ]
    for family in FAMILIES
    for name, dtype in types.items()
  }


@pytest.fixture(scope='module')
def recipes(models):
  grammar, names = Grammar(0, models), list(METHODS)
  found = {
    f'{i:03}_{names[i % len(names)]}': grammar.recipe(names[i % len(names)])
    for i in range(COUNT)
  }
  base, one, *_ = models['Qwen2ForCausalLM', 'float32']
  for name in DRAWN:
    found[name] = {
      'merge_method': name,
      'base_model': base,
      'models': [{'model': one}],
      'parameters': {'weight': 1, 'density': DENSITY, 'rescale': False},
    }
  return found


@pytest.fixture(scope='module')
def by_mergekit(recipes, tmp_path_factory):
  """Folders that mergekit makes of the recipes, or why it does not."""
  folder = tmp_path_factory.mktemp('mergekit')
  for name, recipe in recipes.items():
    write_recipe(folder / f'{name}.yaml', recipe)
  done = subprocess.run(
    [PYTHON, PROGRAM, folder],
    capture_output=True,
    text=True,
    env={**os.environ, 'HF_HUB_OFFLINE': '1'},
  )
  assert not done.returncode, done.stderr[-3000:]
  failed = json.loads((folder / 'failed.json').read_text())
  return {name: failed.get(name, folder / name) for name in recipes}


def test_random_recipes_are_those_of_mergekit(recipes, by_mergekit, tmp_path):
  wrong = []
  for name, recipe in recipes.items():
    if name in DRAWN:
      continue
    theirs = by_mergekit[name]
    try:
      assert isinstance(theirs, pathlib.Path), theirs
      compare(made(tmp_path, recipe, name), folders.load(theirs))
    except (AssertionError, ValueError) as error:
      wrong.append(f'{name}: {error}\n{json.dumps(recipe)}')
  assert not wrong, f'{len(wrong)} of {COUNT}\n\n' + '\n\n'.join(wrong)


@pytest.mark.parametrize('name', DRAWN)
def test_what_is_drawn_is_kept_as_often(
  name, recipes, by_mergekit, models, tmp_path
):
  base, one = (
    folders.load(pathlib.Path(path))
    for path in models['Qwen2ForCausalLM', 'float32'][:2]
  )
  for found in (made(tmp_path, recipes[name]), folders.load(by_mergekit[name])):
    kept = []
    for key, start in base.items():
      # Each element is the one's or the base's.
      near_one = np.abs(found[key] - one[key]) < 1e-5
      near_base = np.abs(found[key] - start) < 1e-5
      assert np.all(near_one | near_base), key
      kept.append((near_one & ~near_base).ravel())
    kept = np.concatenate(kept)
    assert abs(kept.mean() - DENSITY) < 5 * np.sqrt(0.24 / kept.size)


def compare(found, theirs):
  assert found.keys() == theirs.keys()
  for name, value in theirs.items():
    assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
    rounding = {'rtol': 2e-4, 'atol': 2e-5}
    if value.dtype == ml_dtypes.bfloat16:  # to the next number
      rounding = {'rtol': 2**-7, 'atol': 2e-5}
    np.testing.assert_allclose(
      found[name].astype(np.float32),
      value.astype(np.float32),
      err_msg=name,
      **rounding,
    )
