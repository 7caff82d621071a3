"""What a merge refuses, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import registry
from tests.operators import genomes
from tests.operators import layered

KEY, NAN = jax.random.key(0), float('nan')
TWO = genomes.population(2)
BASE = genomes.member(seed=9)


@pytest.mark.parametrize(
  'method, members, word',
  [
    ('slerp', 1, 'Got 1 parents for slerp; expected exactly 2'),
    ('slerp', 3, 'expected exactly 2'),
    ('model_stock', 1, 'expected at least 2'),
    ('nearswap', 2, 'expected exactly 1'),
  ],
)
def test_refuses_the_wrong_number_of_parents(method, members, word):
  with pytest.raises(ValueError, match=word):
    layered.genome(method, genomes.population(members), BASE)


@pytest.mark.parametrize(
  'method, base, given, word',
  [
    ('mean', None, {}, "merge 'mean'; expected one of"),
    ('ties', None, {}, 'got no base'),
    ('slerp', BASE, {}, 'takes no base'),
    ('ties', {'x': 1}, {}, 'differs from the parents in structure'),
    ('dare_ties', BASE, {}, 'got no key'),
    ('slerp', None, {'layers': 'blocks'}, "no leaf is below 'blocks'"),
    ('exact_linear', None, {}, 'Call evojax_llm.operators.exact_linear'),
    (
      'slerp',
      None,
      {'parameters': {'tt': 0.5}},
      "unknown parameter 'tt' for slerp",
    ),
    ('slerp', None, {'parameters': {'t': (0.1, 0.2)}}, r't of shape \(2,\)'),
    ('linear', None, {'parameters': {'weights': (1.0,) * 3}}, 'weights of sha'),
    (
      'linear',
      None,
      {'normalize': 'sum'},
      "normalize 'sum' for linear; expected one of 'weights'",
    ),
    ('linear', None, {'rescale': 'l1'}, "unknown option 'rescale' for linear"),
    (
      'karcher',
      None,
      {'iterations': 0},
      'iterations 0 for karcher; expected 1 or more',
    ),
    (
      'ties',
      BASE,
      {'parameters': {'density': 1.5}},
      'density 1.5 for ties; expected 0 to 1',
    ),
    (
      'ties',
      BASE,
      {'parameters': {'density': (0.5, -0.1)}},
      'density -0.1 for ties',
    ),
    (
      'ties',
      BASE,
      {'parameters': {'lambda_': NAN}},
      'lambda_ nan for ties; expected a finite',
    ),
    (
      'linear',
      None,
      {'parameters': {'weights': (1.0, NAN)}},
      'weights nan for linear',
    ),
    (
      'karcher',
      None,
      {'parameters': {'tol': -1e-3}},
      'tol -0.001 for karcher; expected 0 or more',
    ),
    (
      'della',
      BASE,
      {'key': KEY, 'parameters': {'epsilon': -0.1}},
      'epsilon -0.1 for della; expected 0 to 0.5',
    ),
  ],
)
def test_refuses(method, base, given, word):
  given = dict(given)
  if 'parameters' in given:
    given['parameters'] = {
      name: jnp.asarray(value, jnp.float32)
      for name, value in given['parameters'].items()
    }
  with pytest.raises(ValueError, match=word):
    layered.genome(method, TWO, base, **given)


@pytest.mark.parametrize('value', [1.5, np.float32([0.5, -1.0]), NAN])
def test_a_direct_call_refuses_values_out_of_range(value):
  pair = np.ones((2, 3), np.float32)
  with pytest.raises(ValueError, match='density'):
    registry.MERGES['ties'](pair, pair[0], density=value)


def test_refuses_a_base_of_another_shape_or_type():
  with pytest.raises(ValueError, match='coefficients: the base is float32'):
    layered.genome('ties', TWO, {**BASE, 'coefficients': jnp.zeros(5)})
  with pytest.raises(ValueError, match='the base is bfloat16'):
    layered.genome('ties', TWO, genomes.member(jnp.bfloat16))


def test_refuses_values_by_leaf_that_do_not_match():
  values = {'t': {'coefficients': jnp.float32(0.5)}}
  with pytest.raises(ValueError, match='one entry for each leaf'):
    layered.genome('slerp', TWO, parameters=values)


def test_refuses_values_by_leaf_over_a_whole_genome():
  values = {'t': {'coefficients': jnp.float32(0.5)}}
  with pytest.raises(ValueError, match='over the whole genome'):
    layered.genome('split_slerp', TWO, parameters=values, span='genome')


@pytest.mark.parametrize(
  'key, word',
  [
    (jax.random.key(0, impl='rbg'), 'a key of rbg'),
    (jax.random.split(KEY, 2), r'of shape \(2,\)'),
    (jax.random.PRNGKey(0), 'a key of uint32'),
    (3, 'a key of int'),
  ],
  ids=('generator', 'several', 'old', 'number'),
)
@pytest.mark.parametrize('method', ('dare_ties', 'uniform_matrix'))
def test_refuses_keys_that_do_not_fit(method, key, word):
  base = BASE if registry.MERGES[method].needs_base else None
  with pytest.raises(ValueError, match=f'{word}.*threefry2x32'):
    layered.genome(method, TWO, base, key=key)


@pytest.mark.parametrize(
  'rows, given, word',
  [
    ([0, 1], {}, r'rows of int32\[2\]; expected .*\(M, k\)'),
    ([[0.0, 1.0]], {}, 'rows of float32'),
    ([[0, 1]], {'parameters': {'density': 2.0}}, 'density 2.0 for dare_ties'),
    ([[0, 1]], {'parameters': {'p': 2.0}}, "unknown parameter 'p'"),
    ([[0, 1]], {'keys': jax.random.split(KEY, 3)}, r'\(3,\) for 1 children'),
    ([[0, 1]], {}, 'got no key'),
    (
      [[0, 2]],
      {},
      r'rows with \[2\] for a pool of 2 genomes; expected .* 0 to 1',
    ),
    ([[-1, 0]], {}, r'rows with \[-1\]'),
  ],
)
def test_refuses_children_that_cannot_be(rows, given, word):
  with pytest.raises(ValueError, match=word):
    layered.population('dare_ties', TWO, jnp.asarray(rows), BASE, **given)


@pytest.mark.parametrize(
  'parameter, value, bound', [('density', 1.5, 1.0), ('density', -1.0, 0.0)]
)
def test_what_only_the_program_knows_is_cut(parameter, value, bound):
  @jax.jit
  def run(value):
    given = {parameter: value}
    return layered.genome(
      'magnitude_linear', TWO, BASE, parameters=given, rescale='density'
    )

  jax.tree.map(np.testing.assert_array_equal, run(value), run(bound))


def test_refuses_while_tracing():
  with pytest.raises(ValueError, match='expected exactly 2'):
    jax.eval_shape(
      lambda pool: layered.population(
        'slerp', pool, jnp.zeros((4, 3), jnp.int32)
      ),
      TWO,
    )
