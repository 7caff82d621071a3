"""The forward pass as the tests read it: logits, and greedy decoding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models.cache import init_cache
from evojax_llm.models.transformer import Transformer


def positions(valid: np.ndarray) -> np.ndarray:
  """(B, T) i32 positions of a padding mask, -1 where not valid."""
  valid = np.asarray(valid, np.int32)
  return np.where(valid, np.cumsum(valid, -1) - 1, -1).astype(np.int32)


def _variables(params: dict, lora: dict | None) -> dict[str, Any]:
  return (
    {'params': params} if lora is None else {'params': params, 'lora': lora}
  )


@functools.partial(jax.jit, static_argnames=('config', 'dtype'))
def _logits(config, params, lora, tokens, positions, dtype):
  model = Transformer(config, dtype)
  hidden, _ = model.apply(_variables(params, lora), tokens, positions)
  return model.apply({'params': params}, hidden, method='unembed')


def logits(
  config, params, tokens, valid=None, lora=None, dtype=jnp.float32
) -> np.ndarray:
  """(B, T, V) f32 logits of one pass without a cache."""
  valid = np.ones_like(tokens) if valid is None else valid
  at = positions(valid)
  return np.asarray(_logits(config, params, lora, tokens, at, dtype))


@functools.partial(jax.jit, static_argnames=('config', 'steps'))
def _greedy(config, params, lora, tokens, positions, steps):
  model = Transformer(config)
  batch, length = tokens.shape
  cache = init_cache(config, batch, length + steps)

  def read(tokens, positions, cache):
    hidden, cache = model.apply(
      _variables(params, lora), tokens, positions, cache
    )
    return model.apply({'params': params}, hidden, method='unembed'), cache

  first, cache = read(tokens, positions, cache)
  last = jnp.argmax(positions, axis=1)
  token = jnp.argmax(first[jnp.arange(batch), last], -1).astype(jnp.int32)
  position = jnp.max(positions, axis=1) + 1

  def step(carry, _):
    token, position, cache = carry
    scores, cache = read(token[:, None], position[:, None], cache)
    new = jnp.argmax(scores[:, 0], -1).astype(jnp.int32)
    return (new, position + 1, cache), (token, scores[:, 0])

  _, (out, scores) = jax.lax.scan(
    step, (token, position, cache), None, length=steps
  )
  return out.T, scores.swapaxes(0, 1)


def greedy(
  config, params, tokens, valid=None, lora=None, steps=64
) -> np.ndarray:
  """(B, steps) most likely tokens, one at a time through the cache."""
  valid = np.ones_like(tokens) if valid is None else valid
  return np.asarray(
    _greedy(config, params, lora, tokens, positions(valid), steps)[0]
  )


def member(adapters, n: int) -> dict[str, Any]:
  """Expert n of an adapter set as a `lora` collection, b scaled."""
  return scaled(
    jax.tree.map(lambda leaf: leaf[n], adapters.factors), adapters.scale
  )


def scaled(factors: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
  """An adapter genome with b multiplied by the scale of each layer."""
  if not isinstance(scale, dict):
    return {'a': factors['a'], 'b': factors['b'] * scale[:, None, None]}
  return {name: scaled(node, scale[name]) for name, node in factors.items()}
