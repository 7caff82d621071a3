"""One decoder for all families: scoring, prefill and decoding.

The module is written for one member, whose adapter is the collection `lora`. A
population is `jax.vmap` of `apply` over that collection alone, with factors
stored as (L, P, ...) and mapped with `in_axes=1`: layers are scanned over L,
and with P first XLA would transpose the whole population in every call.

What tells families apart are switches of its configuration; see `families`.
Sources: Transformer (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118), Gemma 3
(arXiv 2503.19786), Llama 3 (arXiv 2407.21783), Mistral (arXiv 2310.06825),
Qwen 2.5 (arXiv 2412.15115), Qwen 3 (arXiv 2505.09388).
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from evojax_llm.models import soft_tokens
from evojax_llm.models import stacked_layers
from evojax_llm.models.cache import Cache
from evojax_llm.models.cache import Prefix
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.layer import Layer
from evojax_llm.models.layer import LayerKind
from evojax_llm.models.layer import Tokens
from evojax_llm.models.linear import Linear
from evojax_llm.models.linear import RMSNorm
from evojax_llm.models.linear import rope_tables
from evojax_llm.models.linear import unembed
from evojax_llm.models.rope import Rope


class Transformer(nn.Module):
  """A decoder-only text model.

  Attributes:
    config: shape and mathematics.
    dtype: type of activations; products accumulate in f32.
    unroll: layers that one step of the scan over L holds.
    hops: most hops of a member that is a path (see `expression.Path`), each of
      which has keys and values in the cache; None where all go through the
      layers in order.
    remat: whether a gradient computes a layer's insides again, so that of each
      only its input is kept.
  """

  config: ModelConfig
  dtype: Any = jnp.float32
  unroll: int = 1
  hops: int | None = None
  remat: bool = False

  def setup(self):
    c = self.config
    self.embedder = Embedder(c, self.dtype)
    self.final_norm = RMSNorm(c.norm_eps, c.norm_offset)
    if c.stacks:
      return  # Goes through the leaves; see `stacked_layers`.
    self.layers = nn.scan(
      nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
      variable_axes={'params': 0, 'lora': 0, 'gates': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=c.num_layers,
      unroll=self.unroll,
      # They would trace the layer a second time, for outputs common to layers.
      check_constancy_invariants=False,
    )(c)

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache | None = None,
    until: jax.Array | None = None,
    prefix: Prefix | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Returns hidden states after the final norm, and the cache.

    Args:
      tokens: (B, T) i32; any valid id where there is padding.
      positions: (B, T) i32: 0, 1, 2, ... for the tokens of a row, -1 for
        padding, left or right. A query sees keys with 0 <= key position <= its
        own, within the window on sliding layers.
      cache: earlier tokens; these are written after them at `cache.index`, and
        must not reach over the end of the ring.
      until: (B, T) i32, for rows that hold several texts as a tree (see
        `engine.prefix_tree`): the token in column c is seen by the queries in
        columns c to until - 1, whatever their positions; 0 for padding. Not
        together with a cache.
      prefix: tokens that all rows begin with; positions continue from them.
        Not together with `until`.

    Returns:
      hidden (B, T, D) in `dtype`, for `unembed`, and the cache with these
      tokens in it, or None.
    """
    c = self.config
    ropes, kinds = layer_kinds(c)
    cos = sin = None  # There are those of each stack.
    if not c.stacks:
      cos, sin = rope_tables(positions, ropes, c.head_dim)
    key_positions, index, kv = positions, jnp.zeros((), jnp.int32), None
    if cache is not None:
      index = cache.index
      key_positions = jax.lax.dynamic_update_slice(
        cache.positions, positions, (0, index)
      )
      kv = (cache.k, cache.v)
    seen = key_positions
    if prefix is not None:
      shape = (tokens.shape[0], prefix.positions.shape[0])
      first = jnp.broadcast_to(prefix.positions, shape)
      seen = jnp.concatenate([first, seen], axis=-1)
    distance = positions[:, :, None] - seen[:, None, :]
    if until is None:
      visible = (seen[:, None, :] >= 0) & (distance >= 0)
    else:
      column = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
      visible = column <= column[:, None]
      visible = visible & (column[:, None] < until[:, None, :])
    x = self.embedder(tokens)
    if self.has_variable('params', soft_tokens.NAME):
      soft = self.get_variable('params', soft_tokens.NAME)
      own = visible.shape[-1] - key_positions.shape[-1] + index
      x, visible = soft_tokens.put(soft, x, tokens, visible, c.vocab_size, own)
    shared = Tokens(cos, sin, visible, distance, index, prefix)
    if c.stacks:
      inputs = self.embedder.inputs_of(tokens, x) if c.input_dim else None
      x, kv = stacked_layers.walk(
        c, self.variables, (x, kv), shared, positions, inputs, self.remat
      )
    elif self.has_variable('path', 'hops'):
      x, kv = self._walk((x, kv), kinds, shared)
    else:
      (x, kv), _ = self.layers((x, kv), kinds, shared)
    if cache is not None:
      cache = Cache(
        k=kv[0],
        v=kv[1],
        positions=key_positions,
        index=(index + tokens.shape[1]) % cache.positions.shape[1],
      )
    return self.final_norm(x), cache

  def _walk(self, carry: tuple, kinds: LayerKind, tokens: Tokens) -> tuple:
    """Goes through the layers of a path; hops behind its end change nothing."""
    path, layers = self.variables['path'], self.variables['params']['layers']
    layer = Layer(self.config, parent=None)

    def hop(number: jax.Array, carry: tuple) -> tuple:
      x, kv = carry
      index = path['hops'][number]
      params, kind = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
          leaf, jnp.maximum(index, 0), keepdims=False
        ),
        (layers, kinds),
      )
      scaled = x.astype(jnp.float32) * path['scales'][number]
      # Its place in the cache is that of the hop, not that of the layer.
      kind = kind.replace(layer=number)
      (y, kv), _ = layer.apply(
        {'params': params}, (scaled.astype(x.dtype), kv), kind, tokens
      )
      return jnp.where(index >= 0, y, x), kv

    return jax.lax.fori_loop(jnp.int32(0), path['count'], hop, carry)

  def unembed(self, hidden: jax.Array) -> jax.Array:
    """Returns logits (..., V) f32 of hidden states (..., D), soft-capped."""
    return self.embedder.unembed(hidden)


class Embedder(nn.Module):
  """The embedding (V, D), and an output matrix where it is another one."""

  config: ModelConfig
  dtype: Any

  def setup(self):
    shape = self.config.vocab_size, self.config.embed_dim
    start = nn.initializers.normal(0.02)
    self.embedding = self.param('embedding', start, shape, jnp.float32)
    if not self.config.tied:
      self.output = self.param('output', start, shape, jnp.float32)
    c = self.config
    if c.input_dim:
      width = c.num_layers * c.input_dim
      self.inputs = self.param(
        'inputs', start, (c.input_vocab_size, width), jnp.float32
      )
      self.input_proj = Linear(width)
      self.input_norm = RMSNorm(c.norm_eps, c.norm_offset)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
    if not self.config.scale_embedding:
      return x
    # Gemma was trained with the factor rounded to the activations' type.
    return x * jnp.asarray(self.config.embed_dim**0.5, self.dtype)

  def inputs_of(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
    """Returns what each layer adds of each token, (L, B, T, p).

    Args:
      tokens: (B, T) i32.
      x: (B, T, D) their embeddings.
    """
    c = self.config
    scale = jnp.asarray(c.input_dim**0.5, self.dtype)
    own = jnp.take(self.inputs, tokens, axis=0).astype(self.dtype) * scale
    seen = self.input_proj(x).astype(jnp.float32) * c.embed_dim**-0.5
    shape = (*tokens.shape, c.num_layers, c.input_dim)
    both = self.input_norm(seen.reshape(shape))
    both = (both + own.reshape(shape).astype(jnp.float32)) * 2**-0.5
    return jnp.moveaxis(both.astype(self.dtype), 2, 0)

  def unembed(self, hidden: jax.Array) -> jax.Array:
    """Returns logits (..., V) f32 of hidden states (..., D), soft-capped."""
    matrix = self.embedding if self.config.tied else self.output
    return unembed(hidden, matrix, self.config.final_softcap)


def ropes_of(config: ModelConfig) -> list[Rope]:
  """Returns the rotary embedding of each of L layers."""
  of_type = {
    'full_attention': config.rope_full,
    'sliding_attention': config.rope_sliding,
  }
  return [of_type[kind] for kind in config.layer_types]


def layer_kinds(config: ModelConfig) -> tuple[tuple, LayerKind]:
  """Returns the distinct rotary embeddings, and the kinds of the L layers."""
  of_layers = ropes_of(config)
  ropes = tuple(dict.fromkeys(of_layers))
  no_window = jnp.iinfo(jnp.int32).max
  return ropes, LayerKind(
    layer=jnp.arange(config.num_layers, dtype=jnp.int32),
    rope=jnp.array([ropes.index(rope) for rope in of_layers]),
    window=jnp.array(
      [
        config.sliding_window if t == 'sliding_attention' else no_window
        for t in config.layer_types
      ]
    ),
  )


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Draws f32 parameters: normal(0, 0.02) weights and norms of 1."""
  if config.stacks:
    return stacked_layers.init_params(config, key)
  tokens = jnp.zeros((1, 2), jnp.int32)
  positions = jnp.arange(2, dtype=jnp.int32)[None]
  return jax.jit(Transformer(config).init)(key, tokens, positions)['params']
