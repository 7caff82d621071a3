"""Long vocabularies give in blocks what they give whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine import unembedding
from evojax_llm.engine.unembedding import Unembedding

VOCAB, WIDTH, ROWS = 1000, 8, (2, 7)


@pytest.fixture
def whole_and_blocks(monkeypatch):
  """Results of a function of `Unembedding` and hidden states, in both ways."""

  def run(function, **options):
    keys = jax.random.split(jax.random.key(0))
    matrix = jax.random.normal(keys[0], (VOCAB, WIDTH))
    # A tie of the longest two, in two blocks.
    matrix = matrix.at[jnp.array([30, 900])].set(10 * matrix[30])
    hidden = jax.random.normal(keys[1], (*ROWS, WIDTH)).at[1, 2].set(matrix[30])
    unembed = Unembedding(matrix, **{'cap': None, 'platform': 'cpu', **options})
    found = [function(unembed, hidden)]
    monkeypatch.setattr(unembedding, 'LOGITS_AT_ONCE', 100)
    # Three hidden states and 143 tokens at a time: neither divides what is
    # there.
    monkeypatch.setattr(unembedding, '_ROWS', {'cpu': 3})
    monkeypatch.setattr(unembedding, '_BLOCK', {'cpu': 3 * 150})
    return [*found, function(unembed, hidden)]

  return run


@pytest.mark.parametrize('cap', [None, 2.0])
def test_log_probabilities(whole_and_blocks, cap):
  source = jnp.array([0, 0, 3, 4, 2])
  target = jnp.array([5, 999, 0, 30, 900])
  whole, blocks = whole_and_blocks(
    # Behind five nothing is read.
    lambda unembed, hidden: unembed.logprobs(
      hidden, source, target, jnp.int32(5)
    ),
    cap=cap,
  )
  assert whole.shape == (2, 5)
  np.testing.assert_allclose(blocks, whole, atol=1e-4, rtol=1e-5)


def test_likeliest_token_is_the_first_of_a_tie(whole_and_blocks):
  whole, blocks = whole_and_blocks(
    lambda unembed, hidden: unembed.likeliest(hidden)
  )
  assert whole[0][1, 2] == 30
  np.testing.assert_array_equal(blocks[0], whole[0])
  np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-5)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_is_seen(whole_and_blocks, value):
  def both(unembed, hidden):
    hidden = hidden.at[1, 3, 0].set(value)
    _, best = unembed.likeliest(hidden)
    read = jnp.arange(7)
    return jnp.stack([best, unembed.logprobs(hidden, read, read, jnp.int32(7))])

  for found in whole_and_blocks(both):
    finite = np.isfinite(found)
    assert not finite[:, 1, 3].any()
    assert finite.sum() == 2 * 13
