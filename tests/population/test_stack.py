import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import stack


def genome(value, dtype=jnp.bfloat16):
  return {'w': jnp.full((2, 3), value, dtype), 'n': jnp.full((), value, 'f4')}


def population(*values):
  return stack.stack([genome(v) for v in values])


def test_stack_take_and_size():
  three = population(1, 2, 3)
  assert stack.size(three) == 3
  assert three['w'].shape == (3, 2, 3) and three['w'].dtype == jnp.bfloat16
  jax.tree.map(np.testing.assert_array_equal, stack.take(three, 1), genome(2))
  some = stack.take(three, jnp.asarray([2, 2, 0]))
  np.testing.assert_array_equal(some['n'], [3, 3, 1])


def test_select_by_member_even_from_one_genome():
  mask = jnp.asarray([True, False, True])
  chosen = stack.select(mask, population(1, 2, 3), population(4, 5, 6))
  np.testing.assert_array_equal(chosen['n'], [1, 5, 3])
  chosen = stack.select(mask, population(1, 2, 3), genome(9))
  np.testing.assert_array_equal(chosen['w'][:, 0, 0].astype('f4'), [1, 9, 3])


def test_select_is_not_poisoned_by_the_other_side():
  mask = jnp.asarray([True, False])
  chosen = stack.select(mask, population(1, 2), population(np.nan, 5))
  np.testing.assert_array_equal(chosen['n'], [1, 5])


def test_concatenate_and_pad():
  joined = stack.pad(stack.concatenate(population(1), population(2, 3)), 5)
  np.testing.assert_array_equal(joined['n'], [1, 2, 3, 0, 0])
  assert joined['w'].dtype == jnp.bfloat16


def test_what_is_taken_of_two_is_as_of_both_joined(monkeypatch):
  first, second = population(1, 2, 3), population(4, 5)
  for above in (0, 1 << 24):
    monkeypatch.setattr(stack, '_PARTS_ABOVE', above)
    for index in ([4, 1, 0, 3, 3], [2, 4, 1]):
      index = jnp.asarray(index)
      joined = stack.take(stack.concatenate(first, second), index)
      taken = stack.take_of_both(first, second, index)
      jax.tree.map(np.testing.assert_array_equal, taken, joined)
  none = jax.tree.map(lambda leaf: leaf[:0], second)
  taken = stack.take_of_both(first, none, jnp.asarray([2, 0]))
  np.testing.assert_array_equal(taken['n'], [3, 1])


def test_a_population_that_is_given_up_is_written_over(monkeypatch):
  monkeypatch.setattr(stack, '_PARTS_ABOVE', 0)
  first, second = (
    {'x': jax.ShapeDtypeStruct((n, 64, 256), jnp.float32)} for n in (8, 6)
  )
  index = jax.ShapeDtypeStruct((8,), jnp.int32)
  run = jax.jit(stack.take_of_both, donate_argnums=0)
  used = run.lower(first, second, index).compile().memory_analysis()
  assert used.alias_size_in_bytes == first['x'].size * 4
  assert used.temp_size_in_bytes < first['x'].size


def test_what_members_share_is_kept_once():
  three = {'w': jnp.ones((1, 2)), 'n': jnp.arange(3.0)}
  assert stack.size(three) == 3
  one, two = stack.take(three, 1), stack.take(three, jnp.asarray([2, 0]))
  assert one['w'].shape == (2,) and one['n'] == 1
  assert two['w'].shape == (1, 2) and two['n'].tolist() == [2, 0]
  assert stack.pad(three, 4)['w'].shape == (1, 2)
  joined = stack.concatenate(three, {'w': jnp.zeros((1, 2)), 'n': jnp.ones(1)})
  np.testing.assert_array_equal(joined['w'][:, 0], [1, 1, 1, 0])
  found = stack.mapped(lambda genome: genome['w'] + genome['n'], three)
  np.testing.assert_array_equal(found[:, 0], [1, 2, 3])


def test_what_is_no_population_is_refused():
  with pytest.raises(ValueError, match='without leaves'):
    stack.size({})
  with pytest.raises(ValueError, match='common leading axis'):
    stack.size({'a': jnp.ones((2, 3)), 'b': jnp.ones((3, 3))})
  for index in (2, np.array([0, 2]), np.int32(-3)):
    with pytest.raises(ValueError, match='of a population of 2; expected 0 to'):
      stack.take(population(1, 2), index)
  with pytest.raises(ValueError, match='no genomes'):
    stack.stack([])
  with pytest.raises(ValueError, match='Genome 1 differs'):
    stack.stack([genome(1), genome(1, jnp.float32)])
