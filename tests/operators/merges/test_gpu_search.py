"""Kernels, by the interpreter, find what `small` and `thresholds` do."""

import functools

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from evojax_llm.operators.merges import gpu_search
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges import row_search
from evojax_llm.operators.merges import small
from evojax_llm.operators.merges import thresholds
from tests.operators.merges.test_thresholds import LARGE
from tests.operators.merges.test_thresholds import SMALL
from tests.operators.merges.test_thresholds import expected
from tests.operators.merges.test_thresholds import kept

MERGES = {
  'ties': {'density': (0.5, 0.1, 1.0)},
  'breadcrumbs': {'density': 0.3, 'gamma': 0.05},
  'magnitude_linear': {'density': (0.0, 0.2, 0.7)},
  'sce': {'select_topk': 0.4},
  'arcee_fusion': {},
}


KINDS = ('normal', 'ties of values', 'mostly the base', 'not numbers')


@pytest.fixture
def kernels(monkeypatch):
  """Searches by kernels; rows of over 4096 are long."""
  monkeypatch.setattr(gpu_search, 'runs_here', lambda: True)
  monkeypatch.setattr(gpu_search, '_SAMPLE', 1 << 11)
  monkeypatch.setattr(row_search, 'LONGEST', 1 << 12)
  monkeypatch.setattr(row_search, '_SAMPLED', 2)
  jax.clear_caches()
  yield
  jax.clear_caches()


def normal(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _genomes(kind, dtype):
  """Three parents and a base, of a long and a short leaf of two layers."""
  parents, base = normal(3, 2, 9_000, seed=0), 0.1 * normal(2, 9_000, seed=1)
  if kind == 'ties of values':
    parents, base = np.round(parents, 1), 0.0 * base
  elif kind == 'mostly the base':
    same = np.random.default_rng(2).random(parents.shape) < 0.8
    parents = np.where(same, base, parents)
  elif kind == 'not numbers':
    parents[:, :, ::3], parents[1] = np.nan, base

  def tree(x):
    x = jnp.asarray(x, dtype)
    long, short = x.reshape(*x.shape[:-1], 90, 100), x[..., :3000]
    return {'layers': {'long': long, 'short': short}}

  return tree(parents), tree(base)


@pytest.mark.parametrize(
  'name, dtype', [*((name, 'float32') for name in MERGES), ('ties', 'bfloat16')]
)
def test_kernels_give_the_same_children(name, dtype, request, monkeypatch):
  parameters = {k: jnp.asarray(v) for k, v in MERGES[name].items()}

  def children():
    merge = jax.jit(
      lambda *genomes: lift.genome(
        name, *genomes, parameters=parameters, layers='layers'
      )
    )
    for kind in KINDS:
      parents, base = _genomes(kind, dtype)
      if name == 'arcee_fusion':
        parents = jax.tree.map(lambda leaf: leaf[:1], parents)
      child = merge(parents, base)
      yield jax.tree.map(lambda leaf: leaf.astype(jnp.float32), child)

  plain = list(children())
  request.getfixturevalue('kernels')
  if dtype == 'bfloat16':  # As where all inputs are too many at once.
    monkeypatch.setattr(small, '_TOGETHER', 0)
    monkeypatch.setattr(small, '_LARGE', 1 << 13)
  for kind, *pair in zip(KINDS, children(), plain, strict=True):
    jax.tree.map(
      functools.partial(np.testing.assert_array_equal, err_msg=kind), *pair
    )


def test_a_population_has_searches_of_its_own(request):
  genomes = _genomes('normal', 'float32')
  rows = jnp.asarray([[0, 1], [2, 0], [1, 1]])
  density = {'density': jnp.asarray([[0.1, 0.9], [0.3, 0.3], [1.0, 0.0]])}

  def children():
    merge = jax.jit(
      lambda pool, base: lift.population(
        'ties', pool, rows, base, parameters=density, layers='layers'
      )
    )
    return merge(*genomes)

  plain = children()
  request.getfixturevalue('kernels')
  jax.tree.map(np.testing.assert_array_equal, children(), plain)


MORE = {
  'all equal': np.ones(7000, np.float32),
  'some infinite': np.where(normal(7000, seed=5) > 2.2, np.inf, 1.0),
}


@pytest.mark.parametrize('name', [*LARGE, *MORE, 'huge and tiny'])
def test_keeps_exactly_the_k_largest(name, kernels):
  values = (SMALL | LARGE | MORE)[name].reshape(-1)[:7000]
  values = np.where(np.abs(values) < 1e-37, 0.0, values).astype(np.float32)
  for k in {0, 1, values.size // 90, values.size // 3, values.size}:
    found = kept(jnp.asarray(values), jnp.int32(k))
    np.testing.assert_array_equal(found, expected(values, k), err_msg=str(k))


def test_more_searches_than_a_program_counts(kernels):
  x = normal(5_000, seed=3)
  k = np.array([1, 4_999, *range(500, 4_000, 500)])
  found = jax.jit(lambda x: thresholds.kth_largest(x, list(k)))(x)
  np.testing.assert_array_equal(found, np.sort(np.abs(x))[::-1][k - 1])


def test_nothing_is_found_in_nothing(kernels):
  empty = small.Group(thresholds.itself, [jnp.zeros((1, 0))], [[jnp.int32(0)]])
  (((cut,),),) = small.top([empty])
  assert cut.value.shape == ()


@pytest.mark.skipif(
  tuple(map(int, jaxlib.__version__.split('.'))) > (0, 10, 2),
  reason='lowering for a GPU asks for one',
)
def test_the_kernels_lower_for_a_gpu(monkeypatch):
  monkeypatch.setattr(gpu_search, 'runs_here', lambda: True)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  jax.clear_caches()
  shape = {'w': (1000, 400), 'v': (30, 900)}
  parents = {
    k: jax.ShapeDtypeStruct((2, *v), jnp.bfloat16) for k, v in shape.items()
  }
  base = {k: jax.ShapeDtypeStruct(v, jnp.bfloat16) for k, v in shape.items()}
  merge = jax.jit(
    lambda *genomes: lift.genome(
      'breadcrumbs', *genomes, parameters={'density': jnp.float32(0.3)}
    )
  )
  text = (
    merge.trace(parents, base).lower(lowering_platforms=('cuda',)).as_text()
  )
  assert 'row_search' in text and 'block_counts' in text
  jax.clear_caches()
