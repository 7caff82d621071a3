import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import noise
from evojax_llm.operators.merges import draws
from tests.operators import layered

KEY = jax.random.key(3)
MANY = (512, 1024)


def test_blocks_are_the_published_ones():
  """Known answers of the generator's authors (Random123, threefry2x32_20)."""
  for key, counter, expected in (
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x13198A2E, 0x03707344),
      (0x243F6A88, 0x85A308D3),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ):
    key = jax.random.wrap_key_data(jnp.asarray(key, jnp.uint32))
    made = draws.threefry(key, *map(jnp.uint32, counter))
    assert tuple(map(int, made)) == expected


def test_words_are_addressed_by_key_stream_and_element():
  one = np.stack(noise.words(KEY, 0, (4, 6)))
  flat = np.stack(noise.words(KEY, 0, (24,)))
  np.testing.assert_array_equal(one.reshape(2, 24), flat)
  np.testing.assert_array_equal(
    np.stack(noise.words(KEY, 0, (5,))), flat[:, :5]
  )
  others = [
    np.stack(noise.words(KEY, 1, (24,))),
    np.stack(noise.words(jax.random.key(4), 0, (24,))),
  ]
  drawn = np.concatenate([flat.ravel(), *(x.ravel() for x in others)])
  assert len(set(drawn.tolist())) == drawn.size


def test_normal_numbers_have_the_moments_and_tails_of_the_normal_law():
  word, _ = noise.words(KEY, 0, MANY)
  drawn = np.asarray(noise.normal(word), np.float64)
  for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
    assert np.mean(drawn**power) == pytest.approx(moment, abs=0.04)
  assert np.mean(np.abs(drawn) > 1.959964) == pytest.approx(0.05, abs=0.002)
  assert 4.0 < np.abs(drawn).max() < 5.5


def test_extreme_words_give_finite_numbers():
  word = jnp.asarray([0, 1, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
  assert np.all(np.isfinite(noise.normal(word)))


@pytest.mark.parametrize('rate', (0.001, 0.3, 1.0))
def test_what_counts_is_normal_at_any_rate(rate):
  word, _ = noise.words(KEY, 0, MANY)
  drawn, chosen = map(np.asarray, noise.masked_normal(word, rate))
  assert chosen.mean() == pytest.approx(rate, rel=0.15)
  counted = drawn[chosen]
  tolerance = 5 / np.sqrt(counted.size)
  assert counted.mean() == pytest.approx(0.0, abs=tolerance)
  assert counted.std() == pytest.approx(1.0, abs=tolerance)
  np.testing.assert_array_equal(chosen, noise.bernoulli(word, rate))


@pytest.mark.parametrize(
  'rate, expected', [(0.0, 0.0), (-1.0, 0.0), (1.5, 1.0)]
)
def test_rates_at_and_beyond_the_ends(rate, expected):
  assert (
    noise.bernoulli(noise.words(KEY, 0, (999,))[0], rate).mean() == expected
  )


def test_the_two_words_of_an_element_are_unrelated():
  one, two = (np.asarray(w, np.float64) for w in noise.words(KEY, 0, MANY))
  assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.01


def test_stochastic_rounding_is_unbiased_and_goes_to_neighbours():
  # Steps of bf16 between 1 and 2 are 2^-7.
  value = jnp.full(MANY, 1.0 + 0.3 * 2.0**-7, jnp.float32)
  word = noise.words(KEY, 0, MANY)[1]
  made = noise.cast(value, jnp.bfloat16, word, 'stochastic')
  assert made.dtype == jnp.bfloat16
  steps = (np.asarray(made, np.float64) - 1.0) * 2**7
  assert set(np.unique(steps)) == {0.0, 1.0}
  assert steps.mean() == pytest.approx(0.3, abs=0.005)
  nearest = noise.cast(value, jnp.bfloat16, word, 'nearest')
  assert np.all(np.asarray(nearest, np.float32) == 1.0)


def test_stochastic_rounding_keeps_what_needs_no_rounding():
  exact = jnp.asarray([0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
  word = jnp.full((5,), 0xFFFF, jnp.uint32)
  made = noise.cast(exact, jnp.bfloat16, word, 'stochastic')
  np.testing.assert_array_equal(np.asarray(made, np.float32), exact)
  third = jnp.float32(1 / 3)
  assert noise.cast(third, jnp.float32, word[0], 'stochastic') == third


def test_wrong_requests_are_refused():
  with pytest.raises(ValueError, match='rbg.*threefry2x32'):
    noise.words(jax.random.key(0, impl='rbg'), 0, (3,))
  with pytest.raises(ValueError, match='Split the leaf'):
    noise.words(KEY, 0, (2**17, 2**16))
  value = jnp.ones(3, jnp.float32)
  word = jnp.zeros(3, jnp.uint32)
  with pytest.raises(ValueError, match="'up'"):
    noise.cast(value, jnp.bfloat16, word, 'up')
  with pytest.raises(ValueError, match='float16'):
    noise.cast(value, jnp.float16, word, 'stochastic')


def test_root_mean_square_is_of_each_matrix():
  genome = {
    'layers': {'a': jnp.full((2, 4, 3), 2.0).at[1].set(5.0)},
    'x': jnp.asarray(-3.0),
  }
  flat = jax.tree_util.tree_flatten_with_path(genome)[0]
  (path, leaf), (scalar_path, scalar) = flat
  rms = layered.root_mean_square(path, leaf.astype(jnp.bfloat16))
  assert rms.shape == (2, 1, 1) and rms.dtype == jnp.float32
  np.testing.assert_allclose(rms.ravel(), [2.0, 5.0])
  assert float(layered.root_mean_square(scalar_path, scalar)) == 3.0
