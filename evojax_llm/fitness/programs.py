"""The two programs that read a population's answers: likelihood, generate.

Both are written over a `forward` function, so the same text serves one member,
or several at once with a leading P (see `forms`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.gemma.cache import Cache

# Logits that are alive at a time while continuations are read.
_LOGITS_AT_ONCE = 1 << 24

# forward(tokens (..., B, T), positions (..., B, T), cache[, until]) -> hidden,
# cache
Forward = Callable[..., tuple[jax.Array, Cache | None]]


def likelihood(
  forward: Forward, unembed: Callable, batch: dict[str, jax.Array], **_: Any
) -> dict[str, jax.Array]:
  """Log-probabilities of the tokens that are read.

  Args:
    forward: hidden states of a batch, for one member or with a leading P.
    unembed: logits of hidden states.
    batch: the arrays of a `LikelihoodBatch`.

  Returns:
    `logprobs` (..., Q) f32.
  """
  hidden, _ = forward(batch['tokens'], batch['positions'], None, batch['until'])
  read = hidden[..., batch['row'], batch['column'], :]
  target = batch['target']
  reads = target.shape[0]

  def logprobs(read: jax.Array, target: jax.Array) -> jax.Array:
    logits = unembed(read)
    at_target = jnp.take_along_axis(
      logits, jnp.broadcast_to(target, read.shape[:-1])[..., None], axis=-1
    )[..., 0]
    return at_target - jax.nn.logsumexp(logits, axis=-1)

  members = read.size // (reads * read.shape[-1])
  vocab = jax.eval_shape(unembed, read).shape[-1]
  chunks = -(-members * reads * vocab // _LOGITS_AT_ONCE)
  if chunks <= 1:
    return {'logprobs': logprobs(read, target)}
  # A long vocabulary: unembed a few reads at a time.
  size = -(-reads // chunks)
  pad = size * chunks - reads
  read = jnp.moveaxis(read, -2, 0)
  read = jnp.pad(read, [(0, pad)] + [(0, 0)] * (read.ndim - 1))
  read = read.reshape(chunks, size, *read.shape[1:])
  target = jnp.pad(target, (0, pad)).reshape(chunks, size)
  result = jax.lax.map(
    lambda chunk: logprobs(jnp.moveaxis(chunk[0], 0, -2), chunk[1]),
    (read, target),
  )  # (chunks, ..., size)
  result = jnp.moveaxis(result, 0, -2)
  return {
    'logprobs': result.reshape(*result.shape[:-2], size * chunks)[..., :reads]
  }


def generate(
  forward: Forward,
  unembed: Callable,
  batch: dict[str, jax.Array],
  *,
  new_cache: Callable[[int], Cache],
  max_new_tokens: int,
  stop_ids: tuple[int, ...],
) -> dict[str, jax.Array]:
  """Greedy continuations.

  A row ends at a stop token, which is not part of the result, or at its limit.
  The loop ends when every row of every member has.

  Args:
    forward: hidden states of a batch, for one member or with a leading P.
    unembed: logits of hidden states.
    batch: the arrays of a `GenerationBatch`.
    new_cache: makes an empty cache of so many slots.
    max_new_tokens: N, static.
    stop_ids: tokens that end a row.

  Returns:
    `tokens` (..., B, N) i32, -1 behind the end, and `finite` (...), whether
    all logits that were looked at were finite.
  """
  tokens, positions, limits = (
    batch['tokens'],
    batch['positions'],
    batch['limits'],
  )
  stops = jnp.array(stop_ids, jnp.int32)
  hidden, cache = forward(
    tokens, positions, new_cache(tokens.shape[-1] + max_new_tokens)
  )
  lengths = jnp.max(positions, axis=-1) + 1

  def choose(hidden: jax.Array, done: jax.Array):
    logits = unembed(hidden[..., -1, :])
    best = jnp.max(logits, axis=-1)
    finite = jnp.all(done | jnp.isfinite(best), axis=-1)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), finite

  done = jnp.broadcast_to(limits <= 0, hidden.shape[:-2])
  token, finite = choose(hidden, done)
  out = jnp.full((max_new_tokens, *done.shape), -1, jnp.int32)

  def write(i, out, token, done):
    done = done | jnp.any(token[..., None] == stops, axis=-1)
    out = jax.lax.dynamic_update_index_in_dim(
      out, jnp.where(done, -1, token), i, 0
    )
    return out, done | (i + 1 >= limits)

  out, done = write(jnp.int32(0), out, token, done)

  def more(state):
    i, _, done, _, _, _ = state
    return (i + 1 < max_new_tokens) & ~jnp.all(done)

  def step(state):
    i, token, done, out, finite, cache = state
    position = jnp.where(done, -1, lengths + i)
    hidden, cache = forward(token[..., None], position[..., None], cache)
    token, ok = choose(hidden, done)
    out, done = write(i + 1, out, token, done)
    return i + 1, token, done, out, finite & ok, cache

  state = (jnp.int32(0), token, done, out, finite, cache)
  _, _, _, out, finite, _ = jax.lax.while_loop(more, step, state)
  return {'tokens': jnp.moveaxis(out, 0, -1), 'finite': finite}
