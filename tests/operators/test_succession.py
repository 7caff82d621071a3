import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import succession
from tests.operators import genomes

NAN = np.nan


def f32(*values):
  return jnp.asarray(values, jnp.float32)


def ids(*values):
  return jnp.asarray(values, jnp.int32)


def points(*values):
  """A population of one number each."""
  return {'x': f32(*values)[:, None]}


def test_coefficients_sum_to_one():
  phi = f32(0.2, 0.2, 0.2, 0.1)
  keys = jax.random.split(jax.random.key(0), 200)
  blends = jax.vmap(succession.draw_coefficients, (0, None))(keys, phi)
  np.testing.assert_allclose(blends.sum(axis=1), 1.0, rtol=1e-5)
  assert np.std(blends[:, 0]) > 0.05, 'drawn anew for every particle'


def test_coefficients_without_randomness_are_the_normalised_weights():
  blend = succession.draw_coefficients(
    jax.random.key(0), f32(4, 3, 3, 0), draws='none'
  )
  np.testing.assert_allclose(blend, [0.4, 0.3, 0.3, 0.0])


def test_coefficients_of_nothing_are_zero():
  blend = succession.draw_coefficients(jax.random.key(0), jnp.zeros(4))
  np.testing.assert_array_equal(blend, np.zeros(4))


def test_coefficients_may_stay_as_they_are():
  blend = succession.draw_coefficients(
    jax.random.key(0), f32(0.4, 0.3, 0.3, 0.1), draws='none', normalise=False
  )
  np.testing.assert_allclose(blend, [0.4, 0.3, 0.3, 0.1])


def test_each_tensor_may_have_coefficients_of_its_own():
  phi = f32(0.2, 0.2, 0.2, 0.1)
  blend = succession.draw_coefficients(
    jax.random.key(0), phi, draws='tensor', num_tensors=3
  )
  assert blend.shape == (3, 4) and len(np.unique(blend)) == 12
  np.testing.assert_allclose(blend.sum(axis=1), 1.0, rtol=1e-5)
  five = [genomes.member(seed=seed) for seed in range(5)]
  together = jax.tree.leaves(succession.velocity(blend, *five))
  assert len(together) == 3
  for index, leaf in enumerate(together):
    alone = jax.tree.leaves(succession.velocity(blend[index], *five))[index]
    np.testing.assert_array_equal(leaf, alone)


def test_first_velocities():
  population, names = points(1, 2, 5), ids(4, 9, 2)
  key = jax.random.key(1)

  def begin(**options):
    made = succession.start_velocities(key, population, names, **options)
    return np.asarray(made['x'][:, 0])

  np.testing.assert_array_equal(begin(start='zero'), [0, 0, 0])
  best = {'x': f32(5)}
  np.testing.assert_array_equal(begin(start='best', best=best), [4, 3, 0])
  targets = np.asarray([1, 2, 5]) + begin()
  assert set(targets) <= {1, 2, 5} and np.all(targets != [1, 2, 5])


def test_wrong_requests_are_refused():
  key, phi = jax.random.key(0), f32(1, 1, 1, 1)
  with pytest.raises(ValueError, match="'leaf'"):
    succession.draw_coefficients(key, phi, draws='leaf')
  with pytest.raises(ValueError, match='num_tensors'):
    succession.draw_coefficients(key, phi, draws='tensor')
  with pytest.raises(ValueError, match="'worst'"):
    succession.start_velocities(key, points(1), ids(0), start='worst')
  with pytest.raises(ValueError, match='pass the best genome'):
    succession.start_velocities(key, points(1), ids(0), start='best')


def test_velocity_and_step_are_the_published_formula():
  blend = np.asarray([0.1, 0.2, 0.3, 0.4], np.float32)
  v, x, p, g, w = (genomes.member(seed=seed) for seed in range(5))
  new = jax.jit(succession.velocity)(jnp.asarray(blend), v, x, p, g, w)
  moved = jax.jit(succession.step)(x, new, 0.5)

  def check(v, x, p, g, w, new, moved):
    v, x, p, g, w = (np.asarray(z, np.float64) for z in (v, x, p, g, w))
    expected = 0.1 * v + 0.2 * (p - x) + 0.3 * (g - x) - 0.4 * (w - x)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved, x + 0.5 * expected, rtol=1e-5, atol=1e-6)

  jax.tree.map(check, v, x, p, g, w, new, moved)


def test_partners_are_other_members_drawn_evenly():
  names = ids(5, 2, 9, 30)
  keys = jax.random.split(jax.random.key(0), 2000)
  partners = np.asarray(
    jax.jit(jax.vmap(succession.partners, (0, None)))(keys, names)
  )
  for place in range(4):
    counts = np.bincount(partners[:, place], minlength=4) / 2000
    assert counts[place] == 0
    np.testing.assert_allclose(np.delete(counts, place), 1 / 3, atol=0.05)


def test_partners_follow_members_not_places():
  names, order = ids(5, 2, 9, 30), jnp.asarray([2, 0, 3, 1])
  key = jax.random.key(4)
  straight = names[succession.partners(key, names)]
  shuffled = names[order][succession.partners(key, names[order])]
  np.testing.assert_array_equal(straight[order], shuffled)


def test_a_single_member_is_its_own_partner():
  np.testing.assert_array_equal(
    succession.partners(jax.random.key(0), ids(3)), [0]
  )


@pytest.mark.parametrize(
  'new, old, expected',
  [
    (2.0, 1.0, True),
    (1.0, 1.0, False),
    (0.5, 1.0, False),
    (NAN, 1.0, False),
    (NAN, NAN, False),
    (-5.0, NAN, True),
  ],
)
def test_improves(new, old, expected):
  assert bool(succession.improves(f32(new), f32(old))[0]) is expected


def test_memory_starts_with_the_extremes_and_ignores_failures():
  memory = succession.start_memory(
    points(1, 2, 3, 4), f32(0.2, NAN, 0.9, 0.1), ids(0, 1, 2, 3)
  )
  assert float(memory.best['x'][0]) == 3 and int(memory.best_id) == 2
  assert float(memory.worst['x'][0]) == 4 and int(memory.worst_id) == 3
  np.testing.assert_array_equal(memory.personal['x'][:, 0], [1, 2, 3, 4])


def test_personal_best_stays_behind_after_a_bad_move():
  population = points(1, 2, 3)
  memory = succession.start_memory(population, f32(0.5, 0.5, NAN), ids(0, 1, 2))
  moved = points(10, 20, 30)
  memory = succession.remember_personal(
    memory, moved, f32(0.4, 0.6, NAN), ids(3, 4, 5)
  )
  np.testing.assert_array_equal(memory.personal['x'][:, 0], [1, 20, 3])
  np.testing.assert_array_equal(memory.personal_ids, [0, 4, 2])
  np.testing.assert_array_equal(memory.personal_fitness, f32(0.5, 0.6, NAN))
  # An equal score is no improvement; the first one after failures is.
  memory = succession.remember_personal(
    memory, points(100, 200, 300), f32(0.5, 0.6, 0.0), ids(6, 7, 8)
  )
  np.testing.assert_array_equal(memory.personal['x'][:, 0], [1, 20, 300])


def test_extremes_change_on_strict_improvement_only():
  memory = succession.start_memory(points(1, 2), f32(0.2, 0.8), ids(0, 1))
  same = succession.remember_extremes(
    memory, points(10, 20), f32(0.2, 0.8), ids(2, 3)
  )
  assert (int(same.best_id), int(same.worst_id)) == (1, 0)
  memory = succession.remember_extremes(
    memory, points(10, 20, 30), f32(0.9, 0.1, NAN), ids(2, 3, 4)
  )
  assert (int(memory.best_id), int(memory.worst_id)) == (2, 3)
  assert float(memory.best['x'][0]) == 10
  assert float(memory.worst['x'][0]) == 20


def test_memory_of_failures_alone_gives_way_to_the_first_success():
  failed = f32(NAN, NAN)
  memory = succession.start_memory(points(1, 2), failed, ids(0, 1))
  assert np.isnan(memory.best_fitness) and np.isnan(memory.worst_fitness)
  memory = succession.remember_extremes(
    memory, points(3, 4), f32(NAN, -7.0), ids(2, 3)
  )
  assert int(memory.best_id) == int(memory.worst_id) == 3


def test_memory_copies_its_genomes():
  population = points(1, 2)
  memory = jax.jit(succession.start_memory)(
    population, f32(0.1, 0.2), ids(0, 1)
  )
  population['x'].delete()
  np.testing.assert_array_equal(memory.personal['x'][:, 0], [1, 2])
  assert float(memory.best['x'][0]) == 2
