import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import restarts


def rounds(improved, limit, **options):
  """Rounds in which one particle is restarted; `improved` for each round."""
  patience, fired = restarts.start(1), []
  for number, better in enumerate(improved):
    restarted, patience = restarts.due(patience, limit, **options)
    if bool(restarted[0]):
      fired.append(number)
    patience = restarts.count(patience, jnp.asarray([better]))
  return fired


def test_a_restart_begins_the_count_anew():
  assert rounds([False] * 12, 3) == [3, 6, 9]


def test_there_is_one_restart_in_a_refractory_period():
  assert rounds([False] * 16, 3, refractory=5) == [3, 8, 13]


def test_as_released_a_stale_particle_is_restarted_every_round():
  improved = [False] * 5 + [True] + [False] * 4
  assert rounds(improved, 3, forever=True) == [3, 4, 5, 9]


@pytest.mark.parametrize('forever', (False, True))
def test_a_particle_that_improves_is_not_restarted(forever):
  assert not rounds([False, False, True] * 4, 3, forever=forever)


def test_restarted_particles_stand_at_their_best():
  position, speed, personal = (
    {'x': jnp.full((3, 2), value, jnp.float32)} for value in (1, 2, 3)
  )
  position['x'] = position['x'].at[1].set(jnp.nan)
  restarted = jnp.asarray([False, True, False])
  moved, still = restarts.restart(restarted, position, speed, personal)
  np.testing.assert_array_equal(moved['x'][:, 0], [1, 3, 1])
  np.testing.assert_array_equal(still['x'][:, 0], [2, 0, 2])
