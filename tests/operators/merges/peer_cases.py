"""Random tensors and merges of them, for us and for mergekit alike.

Matrices are (out, in), as mergekit sees them; ours get the same orientation,
and `test_mergekit` turns them to check the other one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import registry
from evojax_llm.operators.merges import sparsify

SHAPES = {'matrix': (6, 10), 'vector': (7,), 'one': (1,), 'flat': (1, 5)}
OURS = {'ramplus_tl': 'ramplus'}
_RENAMED = {'weight': 'weights', 'lambda': 'lambda_'}
_KEY = 11


def tensors() -> dict[str, np.ndarray]:
  """Base and four models of every shape; x4 is like the base in places."""
  found = {}
  for number, (kind, shape) in enumerate(SHAPES.items()):
    rng = np.random.default_rng(number)
    base = rng.normal(size=shape).astype(np.float32)
    found[f'{kind}_base'] = base
    for model in range(1, 5):
      change = 0.3 * rng.normal(size=shape).astype(np.float32)
      if model == 4:
        change *= rng.random(shape) < 0.5
      found[f'{kind}_x{model}'] = base + change
  return found


def _case(kind, method, models, parameters, base=True, masks=()):
  return {
    'method': method,
    'models': [f'{kind}_x{model}' for model in models],
    'base': f'{kind}_base' if base else None,
    'parameters': parameters,
    'masks': list(masks),
  }


_W3 = [0.5, 0.3, 0.4]
_SIGNED = [0.7, -0.4, 0.2]


def _matrix_cases():
  for normalize in (True, False):
    options = {'weight': _W3, 'normalize': normalize}
    yield _case('matrix', 'linear', (1, 2, 3), options, base=False)
    for method in (
      'task_arithmetic',
      'ties',
      'breadcrumbs',
      'breadcrumbs_ties',
    ):
      for weight, rescale in ((_W3, False), (_SIGNED, True)):
        more = {'weight': weight, 'lambda': 0.8, 'normalize': normalize}
        if method != 'task_arithmetic':
          more |= {'density': [0.5, 0.3, 0.77], 'rescale': rescale}
        if method.startswith('bread'):
          more |= {'gamma': 0.05}
        yield _case('matrix', method, (1, 2, 4), more)
  for t in (0.0, 0.3, 1.0):
    yield _case('matrix', 'slerp', (1,), {'t': t})
  for flatten, row_wise in ((True, False), (False, False), (False, True)):
    flags = {'nuslerp_flatten': flatten, 'nuslerp_row_wise': row_wise}
    for base in (True, False):
      more = {'weight': [0.7, 0.4], **flags}
      yield _case('matrix', 'nuslerp', (1, 2), more, base)
  for base in (True, False):
    yield _case('matrix', 'multislerp', (1, 2, 3), {'weight': _W3}, base)
  for models in ((1, 2), (1, 2, 3, 4)):
    yield _case('matrix', 'karcher', models, {}, base=False)
  for share in (1.0, 0.4):
    yield _case('matrix', 'sce', (1, 2, 4), {'select_topk': share})
  for method in ('ram', 'ramplus_tl'):
    yield _case('matrix', method, (1, 4), {'epsilon': 0.02})
  for filter_wise in (False, True):
    yield _case(
      'matrix', 'model_stock', (1, 2, 3), {'filter_wise': filter_wise}
    )
  yield _case('matrix', 'nearswap', (1,), {'t': 0.1})
  yield _case('matrix', 'arcee_fusion', (1,), {})
  yield _case('matrix', 'passthrough', (1,), {'scale': 1.5}, base=False)


def _small_cases():
  for kind in ('vector', 'one', 'flat'):
    yield _case(kind, 'linear', (1, 2), {'weight': [0.2, 0.9]}, base=False)
    yield _case(kind, 'slerp', (1,), {'t': 0.3})
    yield _case(kind, 'multislerp', (1, 2), {'weight': [0.2, 0.9]})
    yield _case(kind, 'ties', (1, 2), {'weight': 1.0, 'density': 0.3})
    yield _case(kind, 'ties', (1, 2), {'weight': 1.0, 'density': 0.0})
    yield _case(kind, 'sce', (1, 2), {'select_topk': 0.3})
    yield _case(kind, 'ram', (1, 2), {})
    yield _case(kind, 'model_stock', (1, 2), {})
    yield _case(kind, 'arcee_fusion', (1,), {})


def _drawn_cases():
  for method in ('dare_linear', 'dare_ties', 'della_linear', 'della'):
    for normalize, rescale in ((False, True), (True, False)):
      more = {'weight': _SIGNED, 'density': [0.5, 0.3, 0.6], 'lambda': 1.2}
      more |= {'normalize': normalize, 'rescale': rescale}
      if method.startswith('della'):
        more |= {'epsilon': [0.15, 0.1, 0.2]}
      masks = [f'mask{i}_{method[:4]}' for i in range(3)]
      yield _case('matrix', method, (1, 2, 4), more, masks=masks)


def cases() -> list[dict]:
  """All merges, with names."""
  found = [*_matrix_cases(), *_small_cases(), *_drawn_cases()]
  return [
    {'name': f'{number:02}_{case["method"]}', **case}
    for number, case in enumerate(found)
  ]


def masks(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What our own draws keep in the drawn cases, f32 of zeros and ones."""
  found = {}
  for method, options in (
    ('dare', {}),
    ('dell', {'epsilon': (0.15, 0.1, 0.2)}),
  ):
    numbers = draws.decisions(key(), SHAPES['matrix'], 3)
    for place, (model, density) in enumerate(
      zip((1, 2, 4), (0.5, 0.3, 0.6), strict=True)
    ):
      chance = jnp.float32(density)
      if options:
        delta = given[f'matrix_x{model}'] - given['matrix_base']
        width = jnp.float32(options['epsilon'][place])
        chance = sparsify.keep_chances(jnp.asarray(delta), chance, width)
      kept = numbers[place] < draws.steps(chance)
      found[f'mask{place}_{method}'] = np.asarray(kept, np.float32)
  return found


def key() -> jax.Array:
  """The key of the drawn cases."""
  return jax.random.key(_KEY)


@functools.cache
def _program(name, options):
  """One program for all cases with these options."""
  return jax.jit(functools.partial(registry.MERGES[name], **dict(options)))


def ours(case: dict, given: dict[str, np.ndarray], turned: bool = False):
  """Our merge of a case, f32; `turned` keeps matrices as (in, out)."""
  merge = registry.MERGES[OURS.get(case['method'], case['method'])]
  parameters = dict(case['parameters'])
  options = _options(merge, parameters)
  drawn = {'key': key()} if merge.draws else {}
  if merge.by_row:
    options['axis'] = -1
  models = case['models']
  if case['method'] == 'slerp':  # Its base is parent one.
    models = [case['base'], *models]
  turn = turned and len(given[models[0]].shape) == 2
  stored = [jnp.asarray(given[name]) for name in models]
  base = given[case['base']] if case['base'] else None
  if turn:
    stored = [x.T for x in stored]
    base = None if base is None else base.T
    if merge.by_row:
      options['axis'] = -2
  bases = ()
  if merge.base != 'none' and base is not None:
    bases = (jnp.asarray(base),)
  for name, parameter in merge.parameters.items():
    parameters.setdefault(name, parameter.default)
  values = {n: jnp.asarray(v, jnp.float32) for n, v in parameters.items()}
  child = _program(merge.name, tuple(options.items()))(
    jnp.stack(stored), *bases, **values, **drawn
  )
  return np.asarray(child.T if turn else child, np.float32)


def _options(merge, parameters):
  """Takes mergekit's switches out of the parameters and gives ours."""
  for theirs, name in _RENAMED.items():
    if theirs in parameters:
      parameters[name] = parameters.pop(theirs)
  options = {}
  if 'normalize' in parameters:
    by_weights = parameters.pop('normalize')
    options['normalize'] = 'weights' if by_weights else 'none'
  if 'rescale' in parameters:
    options['rescale'] = 'l1' if parameters.pop('rescale') else 'none'
  if 'nuslerp_flatten' in parameters:
    row_wise = parameters.pop('nuslerp_row_wise')
    span = 'column' if row_wise else 'row'
    options['span'] = 'tensor' if parameters.pop('nuslerp_flatten') else span
  if 'filter_wise' in parameters:
    options['span'] = 'row' if parameters.pop('filter_wise') else 'tensor'
  return options
