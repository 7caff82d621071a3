import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import small
from evojax_llm.operators.merges import thresholds


@jax.jit
def kept(values, k):
  ((cut,),) = thresholds.top(lambda x: [x], [values], [[k]])
  return thresholds.inside(values, cut)


def expected(values, k):
  """The k largest by size, of equals those of lowest index."""
  flat = np.abs(np.asarray(values, np.float32)).reshape(-1)
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:k]] = True
  return mask.reshape(np.shape(values))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SMALL = {
  'normal': normal(30, 7),
  'one': normal(1),
  'scalar': np.float32(-2.0),
  'all equal': np.full((6, 5), -0.25, np.float32),
  'zeros': np.zeros((9,), np.float32),
  'many ties': np.round(normal(20, 10)),
  'tiny': 1e-42 * normal(40),
  'huge and tiny': np.geomspace(1e-38, 1e38, 33, dtype=np.float32),
}


@pytest.mark.parametrize('name', SMALL)
def test_keeps_exactly_the_k_largest(name):
  values = SMALL[name]
  # Denormal numbers are zero to XLA.
  values = np.where(np.abs(values) < 1e-37, 0.0, values).astype(np.float32)
  for k in {0, 1, values.size // 3, values.size - 1, values.size}:
    found = kept(jnp.asarray(values), jnp.int32(k))
    np.testing.assert_array_equal(found, expected(values, k), err_msg=str(k))


LARGE = {
  'normal': normal(200, 500),
  'rounded to bf16': np.asarray(
    jnp.asarray(normal(200, 500), jnp.bfloat16), np.float32
  ),
  'rows of very different size': normal(200, 500)
  * np.geomspace(1e-20, 1e20, 200, dtype=np.float32)[:, None],
  'what the sample does not see': np.where(
    np.arange(100_000).reshape(200, 500) % 13, 1.0 + normal(200, 500), 1e9
  ).astype(np.float32),
  'half zeros': normal(200, 500) * (normal(200, 500, seed=1) > 0),
}


@pytest.mark.parametrize('name', LARGE)
def test_keeps_exactly_the_k_largest_of_a_sampled_tensor(name):
  values = LARGE[name]
  for k in (0, 1, 70, 50_000, 99_990, 100_000):
    found = kept(jnp.asarray(values), jnp.int32(k))
    np.testing.assert_array_equal(found, expected(values, k), err_msg=str(k))


@pytest.mark.parametrize('name', LARGE)
def test_the_rows_of_the_candidates_tell_all(name, monkeypatch):
  monkeypatch.setattr(small, '_LARGE', 1 << 16)
  values = LARGE[name][:, :384]
  values = values.reshape(150, 512)
  ks = (1, 70, 38_000, 76_799)

  @jax.jit
  def masks(values):
    ranks = [jnp.int32(k) for k in ks]
    (cuts,) = thresholds.top(lambda x: [x], [values], [ranks])
    return [thresholds.inside(values, cut) for cut in cuts]

  for k, found in zip(ks, masks(jnp.asarray(values)), strict=True):
    np.testing.assert_array_equal(found, expected(values, k), err_msg=str(k))
  largest = jax.jit(lambda x: thresholds.kth_largest(x, ks))(values)
  ordered = np.sort(np.abs(values).reshape(-1))[::-1]
  assert list(map(float, largest)) == [ordered[k - 1] for k in ks]


def test_tensors_are_searched_together():
  x, y = jnp.asarray(normal(40, 16)), jnp.asarray(normal(40, 16, seed=1))
  k, few = jnp.int32(300), jnp.int32(5)
  found = thresholds.top(lambda x, y: [x, y - x], [x, y], [[k], [few, k]])
  for values, rank, cut in (
    (x, 300, found[0][0]),
    (y - x, 5, found[1][0]),
    (y - x, 300, found[1][1]),
  ):
    mask = thresholds.inside(values, cut)
    np.testing.assert_array_equal(mask, expected(values, rank))


def test_under_vmap_each_has_its_own_k():
  values, ks = normal(4, 50, 3), np.asarray([0, 3, 70, 150])
  found = jax.vmap(kept)(jnp.asarray(values), jnp.asarray(ks, jnp.int32))
  for one, value, k in zip(found, values, ks, strict=True):
    np.testing.assert_array_equal(one, expected(value, k))


def test_kth_largest():
  values = normal(20, 30)
  ordered = np.sort(np.abs(values).reshape(-1))[::-1]
  ranks = (1, 17, 600)
  found = thresholds.kth_largest(jnp.asarray(values), ranks)
  assert list(map(float, found)) == [ordered[k - 1] for k in ranks]


def test_nan_counts_as_the_largest_and_stays_visible():
  values = jnp.asarray([0.1, jnp.nan, 3.0, jnp.inf], jnp.float32)
  assert kept(values, jnp.int32(1)).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
  'density, count, expected_count',
  [
    (0.7, 10, 7),
    (0.3, 10, 3),
    (0.5, 6, 3),
    (0.1, 9, 0),
    (1.0, 9, 9),
    (1.5, 9, 9),
    (-0.5, 9, 0),
    (0.5, 2304 * 9216, 2304 * 9216 // 2),
  ],
)
def test_share_is_the_floor(density, count, expected_count):
  assert int(thresholds.share(jnp.float32(density), count)) == expected_count
  least = int(thresholds.at_least_one(jnp.float32(density), count))
  assert least == (max(expected_count, 1) if density > 0 else 0)
