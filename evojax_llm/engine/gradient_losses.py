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
  unembed: Callable, read: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns log-probabilities (N,) of targets (N,) behind (N, D).

  Of a long vocabulary a few logits are alive at a time; a gradient computes
  them again.
  """

  @jax.checkpoint
  def at_once(read: jax.Array, target: jax.Array) -> jax.Array:
    logits = unembed(read)
    at_target = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    return at_target - jax.nn.logsumexp(logits, axis=-1)

  reads = len(target)
  vocab = jax.eval_shape(unembed, read).shape[-1]
  chunks = -(-reads * vocab // unembedding.LOGITS_AT_ONCE)
  if chunks <= 1:
    return at_once(read, target)
  size = -(-reads // chunks)
  pad = size * chunks - reads
  read = jnp.pad(read, ((0, pad), (0, 0))).reshape(chunks, size, -1)
  target = jnp.pad(target, (0, pad)).reshape(chunks, size)
  found = jax.lax.map(lambda chunk: at_once(*chunk), (read, target))
  return found.reshape(-1)[:reads]
