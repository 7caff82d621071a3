import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm import operators
from evojax_llm.operators import registry

KEY = jax.random.key(0)
FITNESS = [0.1, 0.2, 0.3]
GENOME = {'x': jnp.ones((2, 3), jnp.float32)}


def test_public_names_are_there():
  for name in operators.__all__:
    assert getattr(operators, name), name


def test_what_is_on_the_page_can_be_imported_by_its_name():
  for op in registry.OPERATORS:
    found = getattr(operators, op.name)
    assert found is (op if op.kind == 'merge' else op.function), op.name


def test_defaults_are_those_of_the_page():
  for op in registry.OPERATORS:
    if op.kind != 'merge':
      for option in op.takes:
        given = op.signature[option.name].default
        assert given == option.default, (op.name, option.name)


def test_nothing_is_imported_before_it_is_asked_for():
  program = (
    'import sys, evojax_llm.operators as o\n'
    "assert 'jax' not in sys.modules\n"
    "o.merge\nassert 'jax' in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_help_on_a_merge_is_its_own():
  for op in registry.OPERATORS:
    if op.kind == 'merge':
      assert op.__doc__.startswith(op.doc), op.name
      for option in op.takes:
        assert f'{option.name}: ' in op.__doc__, (op.name, option.name)


@pytest.mark.parametrize(
  'call, word',
  [
    (
      lambda: operators.truncation(FITNESS, -1),
      'Got -1 members to draw out of 3; expected 0 to 3',
    ),
    (lambda: operators.universal(KEY, FITNESS, -1), 'expected 0 or more'),
    (
      lambda: operators.truncation([FITNESS], 1),
      r'fitness of shape \(1, 3\); expected \(P,\)',
    ),
    (
      lambda: operators.ranking(FITNESS),
      r'objectives of shape \(3,\); expected \(P, K\)',
    ),
    (lambda: operators.shared_fitness(FITNESS), r'expected \(P, items\)'),
    (lambda: operators.shared_fitness([FITNESS], -1.0), 'alpha -1.0'),
    (
      lambda: operators.survivors(KEY, FITNESS, [True] * 3, 1, [0, 1, 2], -1),
      'elites -1.0 for survivors; expected 0 or more',
    ),
    (
      lambda: operators.gaussian(KEY, GENOME, -0.1),
      'sigma -0.1 for gaussian; expected 0 or more',
    ),
    (lambda: operators.gaussian(KEY, GENOME, 0.1, 2.0), 'expected 0 to 1'),
    (
      lambda: operators.gaussian(KEY, GENOME, layers='blocks'),
      "no leaf is below 'blocks'",
    ),
    (lambda: operators.perturb(KEY, GENOME, float('nan')), 'sigma nan'),
    (lambda: operators.scale(KEY, GENOME, 2.0, 1.0), 'low 2.0 above high 1.0'),
  ],
)
def test_what_makes_no_sense_is_refused(call, word):
  with pytest.raises(ValueError, match=word):
    call()


def test_lists_are_as_good_as_arrays():
  fitness = jnp.asarray(FITNESS, jnp.float32)
  one, two = jnp.arange(3.0), jnp.ones(3)
  for listed, array in (
    (
      operators.roulette(KEY, FITNESS, 2, [3, 1, 2]),
      operators.roulette(KEY, fitness, 2, jnp.asarray([3, 1, 2])),
    ),
    (
      operators.slerp([one, two], t=0.5),
      operators.slerp(jnp.stack([one, two]), t=0.5),
    ),
    (
      operators.merge_population('slerp', jnp.stack([one, two]), [[0, 1]])[0],
      operators.slerp(jnp.stack([one, two])),
    ),
  ):
    np.testing.assert_array_equal(listed, array)


def test_adapters_are_merged_exactly_from_a_list():
  one, two = (
    {'a': jnp.full((3, 1), n, jnp.float32), 'b': jnp.ones((1, 2))}
    for n in (1.0, 3.0)
  )
  made = operators.exact_linear([one, two])
  np.testing.assert_allclose(made['a'] @ made['b'], np.full((3, 2), 2.0), 1e-5)


def test_genomes_of_64_bits_are_rounded_to_the_nearest():
  with jax.enable_x64(True):
    genome = {'x': jnp.ones(3, jnp.float64)}
    made = np.asarray(operators.gaussian(KEY, genome)['x'])
  assert made.dtype == np.float64 and np.all(made != 1.0)
