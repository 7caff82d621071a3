import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges.registry import MERGES


def test_threefry_is_the_generator_of_jax():
  key = jax.random.key(42)
  low = jnp.arange(100, dtype=jnp.uint32)
  x, y = draws.threefry(key, jnp.uint32(0), low)
  np.testing.assert_array_equal(x ^ y, jax.random.bits(key, (100,), jnp.uint32))


def test_decisions_do_not_depend_on_how_many_models_there_are():
  key = jax.random.key(1)
  nine = draws.decisions(key, (4, 5), 9)
  for one, other in zip(draws.decisions(key, (4, 5), 2), nine, strict=False):
    np.testing.assert_array_equal(one, other)
  together = np.stack(nine).reshape(9, -1)
  assert len(np.unique(together, axis=0)) == 9


def test_decisions_and_numbers_are_uniform():
  (first, *_) = draws.decisions(jax.random.key(3), (400, 500), 1)
  counts = np.bincount(np.asarray(first).reshape(-1) >> 12, minlength=16)
  assert counts.sum() == 200_000 and np.all(abs(counts - 12_500) < 600)
  numbers = np.asarray(draws.uniform(jax.random.key(4), (400, 500)))
  assert 0.0 <= numbers.min() and numbers.max() < 1.0
  assert abs(numbers.mean() - 0.5) < 0.005


@pytest.mark.parametrize('density', (0.0, 0.1, 0.3333, 0.9, 1.0))
def test_steps_are_within_their_resolution(density):
  steps = int(draws.steps(jnp.float32(density)))
  assert abs(steps / draws.STEPS - density) <= 0.5 / draws.STEPS


def masks_mean(function, density, base, parents, keys, **given):
  """Mean child over many masks."""

  def child(key):
    return function(
      parents,
      base,
      key=key,
      weights=1.0,
      density=density,
      lambda_=1.0,
      rescale='density',
      **given,
    )

  return jnp.mean(jax.jit(jax.vmap(child))(keys), axis=0)


@pytest.mark.parametrize('density', (0.1, 0.5, 0.9))
def test_dare_is_unbiased(density):
  rng = np.random.default_rng(0)
  base = jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)
  parents = base + jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 20_000)
  mean = masks_mean(
    MERGES['dare_linear'], jnp.float32(density), base, parents, keys
  )
  whole = jnp.sum(parents - base, axis=0) + base
  # Deviation of a rescaled element: |delta| sqrt((1 - d) / d).
  spread = np.sqrt((1 - density) / density / len(keys))
  scale = np.sqrt(np.sum(np.square(np.asarray(parents - base)), axis=0))
  assert np.all(np.abs(mean - whole) < 5.0 * spread * scale + 1e-5)


def test_della_by_the_chance_of_each_element_is_unbiased():
  rng = np.random.default_rng(1)
  base = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
  parents = base + jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 20_000)
  half, width = jnp.float32(0.5), jnp.float32(0.3)
  mean = masks_mean(
    MERGES['della_linear'], half, base, parents, keys, epsilon=width
  )
  whole = jnp.sum(parents - base, axis=0) + base
  # The least chance is 0.2, and so no deviation larger than twice the delta.
  scale = np.sqrt(np.sum(np.square(np.asarray(parents - base)), axis=0))
  assert np.all(np.abs(mean - whole) < 5.0 * 2.0 * scale / np.sqrt(len(keys)))


def test_models_are_masked_on_their_own():
  one, two = draws.decisions(jax.random.key(0), (300, 300), 2)
  both = np.mean((np.asarray(one) < 1 << 15) & (np.asarray(two) < 1 << 15))
  assert abs(both - 0.25) < 0.01
