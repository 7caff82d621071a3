"""What gradient steps minimise: of texts, and of pairs of texts.

  sft       mean over the tokens of a batch of -log p(token)
  dpo       mean over pairs of -log sigmoid(beta (c - r)) (arXiv 2305.18290)
  kto_pair  mean over both texts of 1 - sigmoid(beta (c - KL_r)) and 1 -
            sigmoid(beta (KL_c - r)), as TRL 0.7 has it (arXiv 2402.01306)

c and r are log p(text) - log p_reference(text) of the chosen and the rejected
completion, and KL_c and KL_r their means over the batch, zero at least.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from evojax_llm.engine import unembedding

LOSSES = ('sft', 'dpo', 'kto_pair')


def is_of_pairs(loss: str) -> bool:
  """Returns whether a loss compares two texts with a reference."""
  return loss != 'sft'


def sft(logprobs: jax.Array, counts: jax.Array) -> jax.Array:
  """Returns the loss () of texts.

  Args:
    logprobs: (B, Q) f32 of tokens.
    counts: (B, Q) bool, which of them are learnt.
  """
  total = jnp.sum(jnp.where(counts, logprobs, 0.0))
  return -total / jnp.maximum(1, jnp.sum(counts)).astype(jnp.float32)


def of_pairs(
  loss: str, logprobs: jax.Array, reference: jax.Array, beta: jax.Array
) -> jax.Array:
  """Returns the loss () of pairs.

  Args:
    loss: 'dpo' or 'kto_pair'.
    logprobs: (B, 2) f32 of the chosen and the rejected completion.
    reference: (B, 2) f32 likewise, of the member before the first step.
    beta: () f32.
  """
  chosen, rejected = jnp.moveaxis(logprobs - reference, -1, 0)
  if loss == 'dpo':
    return -jnp.mean(jax.nn.log_sigmoid(beta * (chosen - rejected)))
  kl_chosen = jnp.maximum(0.0, jnp.mean(chosen))
  kl_rejected = jnp.maximum(0.0, jnp.mean(rejected))
  parts = [chosen - kl_rejected, kl_chosen - rejected]
  return jnp.mean(1.0 - jax.nn.sigmoid(beta * jnp.concatenate(parts)))


def token_logprobs(
  unembed: Callable, read: jax.Array, target: jax.Array, counts: jax.Array
) -> jax.Array:
  """Returns log-probabilities (N,) of targets (N,) behind (N, D).

  Those that do not count, by `counts` (N,) bool, are of no meaning. Of a long
  vocabulary a few logits are alive at a time, and a gradient computes them
  again. They are made in blocks, those that count first, and blocks without any
  cost nothing: most texts are shorter than the longest, and most of the numbers
  of a small model are in its output matrix.
  """

  def at_once(read: jax.Array, target: jax.Array) -> jax.Array:
    logits = unembed(read)
    at_target = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    return at_target - jax.nn.logsumexp(logits, axis=-1)

  reads = len(target)
  vocab = jax.eval_shape(unembed, read).shape[-1]
  chunks = -(-reads * vocab // unembedding.LOGITS_AT_ONCE)
  if chunks <= 1:
    return jax.checkpoint(at_once)(read, target)
  size = -(-reads // chunks)
  order = jnp.argsort(~counts, stable=True)
  ordered = jnp.pad(order, (0, size * chunks - reads))
  starts = size * jnp.arange(chunks, dtype=jnp.int32)

  # The checkpoint is around the condition: inside, each turn of the loop would
  # keep the output matrix for the gradient.
  @jax.checkpoint
  def chunk(counted, read, target):
    def none(read, target):
      return jnp.zeros(target.shape, jnp.float32)

    return jax.lax.cond(counted, at_once, none, read, target)

  found = jax.lax.map(
    lambda arguments: chunk(*arguments),
    (
      starts < jnp.sum(counts, dtype=jnp.int32),
      read[ordered].reshape(chunks, size, -1),
      target[ordered].reshape(chunks, size),
    ),
  ).reshape(-1)[:reads]
  return jnp.zeros_like(found).at[order].set(found, unique_indices=True)
