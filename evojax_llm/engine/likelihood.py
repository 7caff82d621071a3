"""The program that reads log-likelihoods.

It is written over a `forward` function, so the same text serves one member, or
several at once with a leading P (see `forms`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from evojax_llm.engine.unembedding import LOGITS_AT_ONCE
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


def token_logprobs(
  unembed: Callable, read: jax.Array, target: jax.Array, remat: bool = False
) -> jax.Array:
  """Returns log-probabilities (..., Q) of targets (Q,) behind (..., Q, D).

  Of a long vocabulary a few logits are alive at a time; with `remat` in a
  gradient, too, which computes them again.
  """
  reads = target.shape[0]

  def at_once(read: jax.Array, target: jax.Array) -> jax.Array:
    logits = unembed(read)
    at_target = jnp.take_along_axis(
      logits, jnp.broadcast_to(target, read.shape[:-1])[..., None], axis=-1
    )[..., 0]
    return at_target - jax.nn.logsumexp(logits, axis=-1)

  at_once = jax.checkpoint(at_once) if remat else at_once
  members = read.size // (reads * read.shape[-1])
  vocab = jax.eval_shape(unembed, read).shape[-1]
  chunks = -(-members * reads * vocab // LOGITS_AT_ONCE)
  if chunks <= 1:
    return at_once(read, target)
  # A long vocabulary: unembed a few reads at a time.
  size = -(-reads // chunks)
  pad = size * chunks - reads
  read = jnp.moveaxis(read, -2, 0)
  read = jnp.pad(read, [(0, pad)] + [(0, 0)] * (read.ndim - 1))
  read = read.reshape(chunks, size, *read.shape[1:])
  target = jnp.pad(target, (0, pad)).reshape(chunks, size)
  result = jax.lax.map(
    lambda chunk: at_once(jnp.moveaxis(chunk[0], 0, -2), chunk[1]),
    (read, target),
  )  # (chunks, ..., size)
  result = jnp.moveaxis(result, 0, -2)
  return result.reshape(*result.shape[:-2], size * chunks)[..., :reads]
