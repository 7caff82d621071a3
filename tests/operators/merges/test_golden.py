"""The numbers that mergekit's released functions gave (merge_golden.json)."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import pairs
from evojax_llm.operators.merges import registry
from evojax_llm.operators.merges import sparsify

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / 'merge_golden.json').read_text()
)
NAMES = {'ramplus_tl': 'ramplus'}
MODELS = {
  'base': np.asarray(GOLDEN['base'], np.float32),
  **{
    f'x{i}': np.asarray(GOLDEN['base'], np.float32)
    + np.asarray(GOLDEN[f'delta{i}'], np.float32)
    for i in (1, 2)
  },
}
SPANS = {
  (True, False): 'tensor',
  (False, False): 'row',
  (False, True): 'column',
}


def arguments(case):
  """A case's parameters and options under the names of the table."""
  merge = registry.MERGES[NAMES.get(case['method'], case['method'])]
  given = dict(case['params'])
  renamed = {'weight': 'weights', 'lambda': 'lambda_'}
  values = {renamed.get(name, name): value for name, value in given.items()}
  options = {}
  for name in ('normalize', 'normalize_weights'):
    if name in values:
      options['normalize'] = 'weights' if values.pop(name) else 'none'
  if 'rescale' in values:
    options['rescale'] = 'l1' if values.pop('rescale') else 'none'
  if 'nuslerp_flatten' in values:
    flags = values.pop('nuslerp_flatten'), values.pop('nuslerp_row_wise')
    options['span'] = SPANS[flags]
  if 'filter_wise' in values:
    options['span'] = 'row' if values.pop('filter_wise') else 'tensor'
  if 'max_iter' in values:
    options['iterations'] = values.pop('max_iter')
  if merge.name == 'nuslerp':
    assert values.pop('t') == values['weights'][1]
  values = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
  return merge, values, options


@pytest.mark.parametrize(
  'case',
  [case for case in GOLDEN['cases'] if case['kind'] == 'merge'],
  ids=lambda case: case['name'],
)
def test_golden_vector(case):
  merge, values, options = arguments(case)
  inputs = case['inputs']
  base = inputs['base'] and jnp.asarray(MODELS[inputs['base']])
  parents = jnp.stack([jnp.asarray(MODELS[name]) for name in inputs['models']])
  bases = () if base is None else (base,)
  child = np.asarray(merge(parents, *bases, **values, **options))
  accepted = [case['expected'], *case.get('also_accepted', [])]
  errors = [np.max(np.abs(child - np.asarray(one))) for one in accepted]
  assert min(errors) <= GOLDEN['tolerance'], child


def test_golden_keep_chances():
  (case,) = [c for c in GOLDEN['cases'] if c['kind'] == 'keep_probabilities']
  delta = jnp.asarray(GOLDEN['delta1'], jnp.float32)
  density, epsilon = (
    jnp.float32(case['params'][name]) for name in ('density', 'epsilon')
  )
  chances = sparsify.keep_chances(delta, density, epsilon)
  np.testing.assert_allclose(chances, case['expected'], atol=1e-6)
  # The same matrix kept as (in, out).
  turned = sparsify.keep_chances(delta.T, density, epsilon, axis=-2)
  np.testing.assert_allclose(turned.T, case['expected'], atol=1e-6)


def test_golden_threshold_of_arcee_fusion():
  (case,) = [c for c in GOLDEN['cases'] if c['name'] == 'arcee_fusion']
  importance = pairs.importance(
    jnp.asarray(MODELS['x1']), jnp.asarray(MODELS['base']), axis=-1
  )
  limit = pairs.outlying(importance)
  assert float(limit) == pytest.approx(
    case['intermediate']['threshold'], abs=1e-5
  )
