"""What a merge refuses, before anything is compiled."""

import jax
import jax.numpy as jnp
import pytest

from evojax_llm.operators.merges import lift
from tests.operators import genomes

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
    lift.genome(method, genomes.population(members), BASE)


@pytest.mark.parametrize(
  'method, base, given, word',
  [
    ('mean', None, {}, "merge 'mean'; expected one of"),
    ('ties', None, {}, 'got no base'),
    ('slerp', BASE, {}, 'takes no base'),
    ('ties', {'x': 1}, {}, 'differs from the parents in structure'),
    ('dare_ties', BASE, {}, 'got no key'),
    ('slerp', None, {'parameters': {'tt': 0.5}}, "no parameter 'tt'"),
    ('slerp', None, {'parameters': {'t': (0.1, 0.2)}}, r't of shape \(2,\)'),
    ('linear', None, {'parameters': {'weights': (1.0,) * 3}}, 'weights of sha'),
    ('linear', None, {'normalize': 'sum'}, "normalize='sum'"),
    ('linear', None, {'rescale': 'l1'}, "no option 'rescale'"),
    ('karcher', None, {'iterations': 0}, 'positive whole number'),
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
    lift.genome(method, TWO, base, **given)


def test_refuses_a_base_of_another_shape_or_type():
  with pytest.raises(ValueError, match='coefficients: the base is float32'):
    lift.genome('ties', TWO, {**BASE, 'coefficients': jnp.zeros(5)})
  with pytest.raises(ValueError, match='the base is bfloat16'):
    lift.genome('ties', TWO, genomes.member(jnp.bfloat16))


def test_refuses_values_by_leaf_that_do_not_match():
  values = {'t': {'coefficients': jnp.float32(0.5)}}
  with pytest.raises(ValueError, match='one entry for each leaf'):
    lift.genome('slerp', TWO, parameters=values)


def test_refuses_values_by_leaf_over_a_whole_genome():
  values = {'t': {'coefficients': jnp.float32(0.5)}}
  with pytest.raises(ValueError, match='over the whole genome'):
    lift.genome('split_slerp', TWO, parameters=values, span='genome')


def test_refuses_while_tracing():
  with pytest.raises(ValueError, match='expected exactly 2'):
    jax.eval_shape(
      lambda pool: lift.population('slerp', pool, jnp.zeros((4, 3), jnp.int32)),
      TWO,
    )
