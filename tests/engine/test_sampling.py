"""Sampling against numpy, draw by draw and in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine import sampling as sampling_lib
from evojax_llm.engine.sampling import Sampling

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, -3.0, 1.5], np.float32)


def draws(sampling, count=4000):
  arrays = sampling.arrays()
  items = jnp.arange(count, dtype=jnp.int32)
  zeros = jnp.zeros(count, jnp.int32)
  keys = sampling_lib.keys(arrays, zeros, items, zeros)
  logits = jnp.broadcast_to(LOGITS, (count, len(LOGITS)))
  return np.asarray(jax.jit(sampling_lib.sample)(logits, arrays, keys))


def expected(temperature, top_k=0, top_p=1.0):
  """Probabilities as transformers cuts them."""
  p = np.exp(LOGITS / temperature)
  p /= p.sum()
  order = np.argsort(-p)
  if top_k:
    p[order[top_k:]] = 0
    p /= p.sum()
  before = np.cumsum(p[order]) - p[order]
  p[order[before >= top_p]] = 0
  return p / p.sum()


@pytest.mark.parametrize(
  'options',
  [
    {'temperature': 1.0},
    {'temperature': 0.5},
    {'temperature': 1.0, 'top_k': 3},
    {'temperature': 2.0, 'top_p': 0.6},
    {'temperature': 1.5, 'top_p': 0.7, 'top_k': 5},
    {'temperature': 1.0, 'top_p': 1e-6},
  ],
)
def test_frequencies(options):
  found = np.bincount(draws(Sampling(**options)), minlength=len(LOGITS)) / 4000
  p = expected(**options)
  assert not found[p == 0].any() and found[p > 0.01].all()
  np.testing.assert_allclose(found, p, atol=4 * 0.5 / 4000**0.5)


def test_a_draw_is_addressed_by_seed_member_item_and_step():
  arrays = Sampling(temperature=1.0).arrays()

  def one(member, item, step, arrays=arrays):
    at = (jnp.int32(i) for i in (member, item, step))
    return jax.random.key_data(sampling_lib.keys(arrays, *at)).tolist()

  other = Sampling(temperature=1.0, seed=1).arrays()
  found = [one(0, 0, 0), one(1, 0, 0), one(0, 1, 0), one(0, 0, 1)]
  found.append(one(0, 0, 0, other))
  assert len({tuple(key) for key in found}) == 5
  ids = jnp.array([[0, 1], [2, 3]], jnp.int32)
  keys = jax.random.key_data(sampling_lib.keys(arrays, ids, ids + 5, ids))
  assert keys[1, 0].tolist() == one(2, 7, 2)


@pytest.mark.parametrize(
  ('options', 'word'),
  [
    ({'temperature': -1.0}, 'temperature=-1.0'),
    ({'top_p': 0.0}, 'top_p=0.0'),
    ({'top_p': 1.5}, 'top_p=1.5'),
    ({'top_k': -1}, 'top_k=-1'),
  ],
)
def test_meaningless_settings_are_refused(options, word):
  with pytest.raises(ValueError, match=word):
    Sampling(**options)


def test_greedy_has_no_arrays():
  assert Sampling().arrays() is None and Sampling().greedy
