import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import parameters
from evojax_llm.population import stack
from tests.operators import genomes
from tests.operators import layered

A, B, PLAIN = 'layers/mlp/a', 'layers/mlp/b', 'coefficients'


def test_a_number_is_the_same_everywhere():
  found = layered.resolve('slerp', genomes.member(), {'t': 0.3})['t']
  np.testing.assert_allclose(found[A], [0.3] * genomes.LAYERS)
  assert found[PLAIN].shape == () and found[PLAIN] == np.float32(0.3)


def test_a_gradient_is_interpolated_over_depth():
  found = layered.resolve('slerp', genomes.member(), {'t': [0.0, 0.2, 1.0]})
  np.testing.assert_allclose(found['t'][B], [0.0, 0.2, 1.0])
  assert found['t'][PLAIN] == 0.0
  shorter = layered.resolve('slerp', genomes.member(), {'t': [0.0, 1.0]})
  np.testing.assert_allclose(shorter['t'][A], [0.0, 0.5, 1.0])


def test_one_layer_is_at_the_end_of_a_gradient():
  genome = {'layers': {'kernel': np.zeros((1, 2, 2))}}
  found = layered.resolve('slerp', genome, {'t': [0.0, 1.0]})['t']
  np.testing.assert_allclose(found['layers/kernel'], [1.0])


def test_the_first_filter_that_matches_counts():
  value = [
    {'filter': 'mlp/a', 'value': [0.0, 1.0]},
    {'filter': 'mlp', 'value': 0.25},
    {'value': 0.75},
  ]
  found = layered.resolve('slerp', genomes.member(), {'t': value})['t']
  np.testing.assert_allclose(found[A], [0.0, 0.5, 1.0])
  np.testing.assert_allclose(found[B], [0.25] * 3)
  assert found[PLAIN] == 0.75


def test_parents_have_values_each():
  value = parameters.PerModel([0.5, [0.0, 1.0]])
  found = layered.resolve('ties', genomes.member(), {'density': value})
  np.testing.assert_allclose(
    found['density'][A], [[0.5, 0.0], [0.5, 0.5], [0.5, 1.0]]
  )
  assert found['density'][PLAIN].shape == (2,)


def test_every_layer_is_merged_with_its_own_values():
  parents = genomes.population(2)
  values = layered.resolve(
    'slerp',
    genomes.member(),
    {'t': [{'filter': 'a', 'value': [0.0, 1.0]}, {'value': 0.5}]},
  )
  child = jax.jit(lambda v: layered.genome('slerp', parents, parameters=v))(
    values
  )
  a = parents['layers']['mlp']['a']
  made = child['layers']['mlp']['a']
  np.testing.assert_allclose(made[0], a[0, 0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(made[2], a[1, 2], rtol=1e-5, atol=1e-6)
  alone = layered.genome(
    'slerp', {'x': a[:, 1]}, parameters={'t': jnp.float32(0.5)}
  )
  np.testing.assert_allclose(made[1], alone['x'], rtol=1e-5, atol=1e-6)


def test_values_by_leaf_may_differ_by_member():
  pool = genomes.population(3)
  one, two = (
    layered.resolve('slerp', genomes.member(), {'t': t})
    for t in (0.0, [1.0, 0.5])
  )
  values = jax.tree.map(lambda *x: jnp.stack(x), one, two)
  rows = jnp.asarray([[0, 1], [1, 2]])
  children = layered.population('slerp', pool, rows, parameters=values)
  for place, value in enumerate((one, two)):
    alone = layered.genome(
      'slerp', stack.take(pool, rows[place]), parameters=value
    )
    jax.tree.map(
      lambda x, y, place=place: np.testing.assert_allclose(
        x[place], y, rtol=1e-5, atol=1e-6
      ),
      children,
      alone,
    )


@pytest.mark.parametrize(
  'method, values, word',
  [
    ('slerp', {'density': 0.5}, 'unknown parameter'),
    ('nothing', {}, 'expected one of'),
    ('slerp', {'t': []}, 'expected a number'),
    ('slerp', {'t': 'a'}, 'expected a number'),
    ('slerp', {'t': [{'filter': 'mlp'}]}, 'expected .*value'),
    ('slerp', {'t': [{'filter': 'nowhere', 'value': 1.0}]}, 'matches the leaf'),
    ('slerp', {'t': parameters.PerModel([0.1, 0.2])}, 'one for all'),
    ('ties', {'density': [0.5, 1.5]}, 'density 1.[0-9]+ for ties; .* 0 to 1'),
  ],
)
def test_refuses(method, values, word):
  with pytest.raises(ValueError, match=word):
    layered.resolve(method, genomes.member(), values)
