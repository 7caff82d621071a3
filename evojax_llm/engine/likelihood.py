"""The program that reads log-likelihoods.

It is written over a `forward` function, so the same text serves one member, or
several at once with a leading P (see `forms`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from evojax_llm.engine.unembedding import Unembedding
from evojax_llm.models.cache import Cache

# forward(tokens (..., B, T), positions (..., B, T), cache[, until]) -> hidden,
# cache
Forward = Callable[..., tuple[jax.Array, Cache | None]]


def likelihood(
  forward: Forward, unembed: Unembedding, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Returns `logprobs` (..., Q) f32 of the tokens that are read.

  Args:
    forward: hidden states of a batch, for one member or with a leading P.
    unembed: logits of hidden states.
    batch: the arrays of a `LikelihoodBatch`; its J batches go through the
      layers one after the other, and what is read of them through the output
      matrix together.
  """

  def read_batch(batch: dict[str, jax.Array]) -> jax.Array:
    hidden, _ = forward(
      batch['tokens'], batch['positions'], None, batch['until']
    )
    return hidden[..., batch['row'], batch['column'], :]

  names = 'tokens', 'positions', 'until', 'row', 'column'
  read = jax.lax.map(read_batch, {name: batch[name] for name in names})
  read = jnp.moveaxis(read, 0, -3)  # (..., J, U, D)
  read = read.reshape(*read.shape[:-3], -1, read.shape[-1])
  read = read[..., batch['kept'], :]
  which = batch['source'], batch['target'], batch['count']
  return {'logprobs': unembed.logprobs(read, *which)}
