import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.operators import bounded

KEY = jax.random.key(3)
SBX = jax.jit(bounded.sbx)
POLYNOMIAL = jax.jit(bounded.polynomial)
LOW = {'x': jnp.full((2000,), -1.0), 'n': jnp.zeros((2000,), jnp.int32)}
HIGH = {'x': jnp.full((2000,), 3.0), 'n': jnp.full((2000,), 7, jnp.int32)}


def parent(seed):
  x, n = jax.random.split(jax.random.key(seed))
  return {
    'x': jax.random.uniform(x, (2000,), jnp.float32, -1.0, 3.0),
    'n': jax.random.randint(n, (2000,), 0, 8),
  }


def check_within(child):
  assert (child['x'].dtype, child['n'].dtype) == (jnp.float32, jnp.int32)
  for name in child:
    assert np.all(child[name] >= LOW[name]), name
    assert np.all(child[name] <= HIGH[name]), name


def test_a_child_has_the_law_of_sbx():
  one, two = parent(1), parent(2)
  child = SBX(KEY, one, two, LOW, HIGH, 2.0)
  check_within(child)
  x, y, made = (np.asarray(g['x'], np.float64) for g in (one, two, child))
  kept = made == x
  assert 0.45 < kept.mean() < 0.55
  # The bounds of Deb's code: beta^(eta + 1), on the side of the child, is
  # u alpha up to one, and 1 / (2 - u alpha) from there, with u ~ U(0, 1).
  x, y, made = x[~kept], y[~kept], made[~kept]
  first, last = np.minimum(x, y), np.maximum(x, y)
  above = made > (x + y) / 2
  assert 0.45 < above.mean() < 0.55
  beta = np.abs(2 * made - x - y) / (last - first)
  room = np.where(above, 3.0 - last, first + 1.0)
  alpha = 2 - (1 + 2 * room / (last - first)) ** -3.0
  part = np.where(beta <= 1, beta**3, 2 - beta**-3.0)
  u = np.sort(part / alpha)
  np.testing.assert_allclose(u, np.linspace(0, 1, u.size), atol=0.06)


def test_equal_parents_have_no_other_child():
  one = parent(1)
  child = SBX(KEY, one, one, LOW, HIGH, 2.0)
  jax.tree.map(np.testing.assert_array_equal, child, one)


def test_a_mutant_has_the_polynomial_law():
  one = parent(1)
  mutant = POLYNOMIAL(KEY, one, LOW, HIGH, 4.0, 1.0)
  check_within(mutant)
  x, made = (np.asarray(g['x'], np.float64) for g in (one, mutant))
  delta = (made - x) / 4.0
  down, below = delta < 0, (x + 1.0) / 4.0
  left = 1 - np.where(down, below, 1 - below)
  kept = (1 - np.abs(delta)) ** 5
  # 2u + (1 - 2u) left^5 for u < 1/2, and the mirror image above.
  tail = (kept - left**5) / (1 - left**5)
  u = np.sort(np.where(down, tail / 2, 1 - tail / 2))
  np.testing.assert_allclose(u, np.linspace(0, 1, u.size), atol=0.04)
  inner = (one['n'] > 0) & (one['n'] < 7)
  assert np.all((mutant['n'] != one['n'])[inner])


def test_as_many_genes_change_as_are_to():
  one = parent(1)
  mutant = POLYNOMIAL(KEY, one, LOW, HIGH, 4.0, 0.1)
  assert 0.07 < np.mean(mutant['x'] != one['x']) < 0.13
  np.testing.assert_array_equal(
    POLYNOMIAL(KEY, one, LOW, HIGH, 4.0, 0.0)['n'], one['n']
  )


def test_what_is_outside_is_brought_in():
  far = {'x': jnp.full((2000,), 9.0), 'n': jnp.full((2000,), -3, jnp.int32)}
  check_within(SBX(KEY, far, parent(2), LOW, HIGH, 2.0))
  check_within(POLYNOMIAL(KEY, far, LOW, HIGH, 4.0, 1.0))
