"""From hidden states to tokens: the output matrix over a long vocabulary.

Small models have long vocabularies: of Gemma 3 270M the output matrix is 168 of
268 million numbers. Where the logits would be many they are never whole: blocks
of the vocabulary are multiplied and summed up while they are in the caches.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.models.config import ModelConfig
from evojax_llm.models.linear import softcap
from evojax_llm.models.linear import unembed

# Logits that are alive at a time; more are made in blocks.
LOGITS_AT_ONCE = 1 << 24
# Of a block: hidden states, and logits. On a CPU a block and its part of the
# matrix stay in the caches of a core; measured, fewer than 256 hidden states at
# a time halve the rate of the product.
_ROWS = {'cpu': 512}
_ROWS_ELSEWHERE = 4096
_BLOCK = {'cpu': 1 << 19}
_BLOCK_ELSEWHERE = 1 << 24
_LONGEST_BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Unembedding:
  """The output matrix of one model.

  Attributes:
    matrix: (V, D).
    cap: of the soft cap of logits, or None.
    platform: of the devices that it is used on.
    parts: in which these hold the matrix, cut over V; a block has some of each.
  """

  matrix: jax.Array
  cap: float | None
  platform: str
  parts: int = 1

  @classmethod
  def of(
    cls,
    config: ModelConfig,
    params: dict[str, Any],
    platform: str,
    model_devices: int = 1,
  ) -> 'Unembedding':
    """Takes it out of the parameters of a model, cut over `model_devices`."""
    matrix = params['embedder']['embedding' if config.tied else 'output']
    parts = 1 if len(matrix) % model_devices else model_devices
    return cls(matrix, config.final_softcap, platform, parts)

  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Returns logits (..., V) f32 of hidden states (..., D)."""
    return unembed(hidden, self.matrix, self.cap)

  def logprobs(
    self,
    hidden: jax.Array,
    source: jax.Array,
    target: jax.Array,
    count: jax.Array,
  ) -> jax.Array:
    """Returns log-probabilities (..., Q) f32 of tokens.

    Args:
      hidden: (..., N, D).
      source: (Q,) i32, which of the N each token follows.
      target: (Q,) i32, the tokens.
      count: () i32, of the N that are read; the rest may cost nothing.
    """
    if not self._is_long(hidden):
      logits = self(hidden)
      norm = jax.nn.logsumexp(logits, axis=-1)
      return logits[..., source, target] - norm[..., source]
    states = jnp.moveaxis(hidden, -2, 0)  # (N, ..., D)
    rows = states.reshape(-1, states.shape[-1])
    used = count * (len(rows) // len(states))
    norm = self._by_rows(self._log_sum, rows, used)
    norm = jnp.moveaxis(norm.reshape(states.shape[:-1]), 0, -1)
    at_target = jnp.einsum(
      '...qd,qd->...q',
      hidden[..., source, :],
      self.matrix[target].astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    return softcap(at_target, self.cap) - norm[..., source]

  def likeliest(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the likeliest tokens (...) i32, the first of a tie, and their
    logits (...) f32, NaN where one is, of hidden states (..., D).
    """
    if self._is_long(hidden):
      rows = hidden.reshape(-1, hidden.shape[-1])
      found = self._by_rows(self._first_of_best, rows, len(rows))
      return jax.tree.map(lambda leaf: leaf.reshape(hidden.shape[:-1]), found)
    logits = self(hidden)
    best = jnp.max(logits, axis=-1)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), best

  def _is_long(self, hidden: jax.Array) -> bool:
    rows = hidden.size // hidden.shape[-1]
    return rows * self.matrix.shape[0] > LOGITS_AT_ONCE

  def _by_rows(
    self, function: Callable, rows: jax.Array, used: jax.Array | int
  ) -> Any:
    """Applies a function of rows (n, D) to a few of (R, D) a time.

    What it gives for those behind the first `used` is of no meaning.
    """
    most = _ROWS.get(self.platform, _ROWS_ELSEWHERE)
    parts = -(-len(rows) // most)
    size = -(-len(rows) // parts)
    pad = parts * size - len(rows)
    padded = jnp.pad(rows, ((0, pad), (0, 0))).reshape(parts, size, -1)

    def part(number: jax.Array, found: Any) -> Any:
      return jax.tree.map(
        lambda leaf, new: leaf.at[number].set(new),
        found,
        function(padded[number]),
      )

    start = jax.tree.map(
      lambda leaf: jnp.zeros((parts, size), leaf.dtype),
      jax.eval_shape(function, padded[0]),
    )
    number = jnp.asarray((used + size - 1) // size, jnp.int32)
    found = jax.lax.fori_loop(jnp.int32(0), number, part, start)
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[: len(rows)], found)

  def _fold(self, step: Callable, state: Any, hidden: jax.Array) -> Any:
    """Folds step(state, logits (rows, C), tokens (C,)) over blocks."""
    # Of a part: nothing of the matrix leaves the device that holds it.
    vocab, rows = len(self.matrix) // self.parts, len(hidden)
    matrix = self.matrix.reshape(self.parts, vocab, -1)
    begins = vocab * jnp.arange(self.parts, dtype=jnp.int32)[:, None]
    most = _BLOCK.get(self.platform, _BLOCK_ELSEWHERE) // rows
    count = -(-vocab // min(max(most, 128), _LONGEST_BLOCK, vocab))
    size = -(-vocab // count)

    def block(number: jax.Array, state: Any) -> Any:
      wanted = number * size
      # The last one begins earlier, where it would reach over the end.
      first = jnp.minimum(wanted, vocab - size)
      part = jax.lax.dynamic_slice_in_dim(matrix, first, size, axis=1)
      logits = unembed(hidden, part.reshape(-1, part.shape[-1]), self.cap)
      column = first + jnp.arange(size, dtype=jnp.int32)
      if size * count > vocab:
        new = jnp.tile(column >= wanted, self.parts)
        logits = jnp.where(new, logits, -jnp.inf)
      return step(state, logits, (begins + column).reshape(-1))

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), block, state)

  def _log_sum(self, hidden: jax.Array) -> jax.Array:
    """Returns logsumexp (rows,) of the logits of hidden states (rows, D)."""

    def step(state, logits, _):
      old, total = state
      top = jnp.maximum(old, jnp.max(logits, axis=-1))
      new = jnp.sum(jnp.exp(logits - top[:, None]), axis=-1)
      return top, total * jnp.exp(old - top) + new

    none = jnp.full(len(hidden), -jnp.inf, jnp.float32)
    top, total = self._fold(step, (none, jnp.zeros_like(none)), hidden)
    return top + jnp.log(total)

  def _first_of_best(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `likeliest` of hidden states (rows, D)."""

    def step(state, logits, tokens):
      token, best = state
      top = jnp.max(logits, axis=-1)
      # Two passes that are vector instructions, which an argmax is not.
      none = jnp.iinfo(jnp.int32).max
      at = jnp.min(jnp.where(logits == top[:, None], tokens, none), axis=-1)
      better = (top > best) | ((top == best) & (at < token))
      return jnp.where(better, at, token), jnp.maximum(best, top)

    start = jnp.full(len(hidden), -jnp.inf, jnp.float32)
    token = jnp.zeros(len(hidden), jnp.int32)
    return self._fold(step, (token, start), hidden)
