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

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models import soft_tokens
from evojax_llm.models.cache import Cache
from evojax_llm.models.cache import Prefix
from evojax_llm.models.config import ATTENTION
from evojax_llm.models.config import MLP
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.linear import Linear
from evojax_llm.models.linear import RMSNorm
from evojax_llm.models.linear import rope_tables
from evojax_llm.models.linear import rotate
from evojax_llm.models.linear import softcap
from evojax_llm.models.linear import unembed
from evojax_llm.models.rope import Rope

# Projections of one input, which a program may hold as one.
FUSED = {
  ('self_attn', 'qkv_proj'): ATTENTION[:3],
  ('mlp', 'gate_up_proj'): MLP[:2],
}
# Finite, so that a row that sees no key (padding) stays finite.
_MASKED = -1e30


@flax.struct.dataclass
class Tokens:
  """What all layers share: positions of the tokens, and the keys they see.

  Attributes:
    cos: (S, B, T, 1, h / 2) f32 for each of the S rotary embeddings.
    sin: likewise.
    visible: (B, T, keys) bool, the keys that a query sees; a prefix's first.
    distance: (B, T, keys) i32, query position minus key position.
    index: () i32 first cache slot of these tokens; 0 without a cache.
    prefix: keys and values that all rows begin with, or None.
    attend: used in place of `Attention.attend`, for another layout of keys.
  """

  cos: jax.Array
  sin: jax.Array
  visible: jax.Array | None
  distance: jax.Array | None
  index: jax.Array
  prefix: Prefix | None
  attend: Callable | None = flax.struct.field(pytree_node=False, default=None)


@flax.struct.dataclass
class LayerKind:
  """How layers differ beside their parameters; leaves are scanned over L.

  Attributes:
    layer: i32 index of the layer.
    rope: i32 index of its rotary embedding.
    window: i32 number of keys that a query sees, its own included.
  """

  layer: jax.Array
  rope: jax.Array
  window: jax.Array


class Attention(nn.Module):
  """Grouped-query attention with rotary embedding and optional soft cap."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, x: jax.Array, kv: tuple | None, kind: LayerKind, tokens: Tokens
  ) -> tuple[jax.Array, tuple | None]:
    c = self.config
    batch, length, _ = x.shape

    def heads(name: str, count: int, bias: bool) -> jax.Array:
      y = Linear(count * c.head_dim, bias, name=name)(x)
      return y.reshape(batch, length, count, c.head_dim)

    names, counts = ATTENTION[:3], (c.num_heads, *[c.num_kv_heads] * 2)
    biases = [name in c.biases for name in names]
    if self.has_variable('params', 'qkv_proj'):
      together = heads('qkv_proj', sum(counts), any(biases))
      borders = counts[0], counts[0] + counts[1]
      q, k, v = jnp.split(together, borders, axis=2)
    else:
      q, k, v = map(heads, names, counts, biases)
    if c.qk_norm:
      q = RMSNorm(c.norm_eps, c.norm_offset, name='q_norm')(q)
      k = RMSNorm(c.norm_eps, c.norm_offset, name='k_norm')(k)
    cos, sin = tokens.cos[kind.rope], tokens.sin[kind.rope]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    y, kv = (tokens.attend or self.attend)(q, k, v, kv, kind, tokens)
    return Linear(c.embed_dim, 'o_proj' in c.biases, name='o_proj')(y), kv

  def attend(
    self,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv: tuple | None,
    kind: LayerKind,
    tokens: Tokens,
  ) -> tuple[jax.Array, tuple | None]:
    """Returns what queries (B, T, H, h) read, (B, T, H h), and the cache."""
    c = self.config
    batch, length = q.shape[:2]
    groups = c.num_heads // c.num_kv_heads

    def of_layer(leaf: jax.Array) -> jax.Array:
      layer = jax.lax.dynamic_index_in_dim(leaf, kind.layer, keepdims=False)
      return layer.astype(q.dtype)

    if kv is not None:
      start = (kind.layer, 0, tokens.index, 0, 0)
      kv = tuple(
        jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)
        for old, new in zip(kv, (k, v), strict=True)
      )
      k, v = (of_layer(leaf) for leaf in kv)
    # The query heads of a key head go to the token axis, so that there is one
    # plain matrix product per row and key head.
    q = q.reshape(batch, length, c.num_kv_heads, groups, c.head_dim)
    q = q.swapaxes(1, 2).reshape(batch, c.num_kv_heads, -1, c.head_dim)
    parts = [('bskh', k, v)]
    if tokens.prefix is not None:
      # Read once for all rows, and not copied into them.
      shared = of_layer(tokens.prefix.k), of_layer(tokens.prefix.v)
      parts.insert(0, ('skh', *shared))
    scores = [
      jnp.einsum(
        f'bkqh,{axes}->bkqs', q, keys, preferred_element_type=jnp.float32
      )
      for axes, keys, _ in parts
    ]
    scores = jnp.concatenate(scores, axis=-1)
    scores = softcap(scores * c.query_pre_attn_scalar**-0.5, c.attn_softcap)
    visible = tokens.visible
    if 'sliding_attention' in c.layer_types:
      visible = visible & (tokens.distance < kind.window)
    visible = jnp.repeat(visible, groups, axis=1)[:, None]
    scores = jnp.where(visible, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    border = weights.shape[-1] - k.shape[1]
    weights = [weights[..., border:]] + [weights[..., :border]] * (border > 0)
    y = sum(
      jnp.einsum(
        f'bkqs,{axes}->bkqh', part, values, preferred_element_type=jnp.float32
      )
      for part, (axes, _, values) in zip(weights, parts[::-1], strict=True)
    ).astype(q.dtype)
    y = y.reshape(batch, c.num_kv_heads, length, -1).swapaxes(1, 2)
    return y.reshape(batch, length, c.num_heads * c.head_dim), kv


class FeedForward(nn.Module):
  """down(act(gate(x)) * up(x))."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config

    def linear(name: str, features: int, x: jax.Array) -> jax.Array:
      return Linear(features, name in c.biases, name=name)(x)

    if self.has_variable('params', 'gate_up_proj'):
      bias = any(name in c.biases for name in MLP[:2])
      together = Linear(2 * c.ffn_dim, bias, name='gate_up_proj')(x)
      gate, up = jnp.split(together, 2, axis=-1)
    else:
      gate = linear('gate_proj', c.ffn_dim, x)
      up = linear('up_proj', c.ffn_dim, x)
    if c.activation == 'silu':
      gate = jax.nn.silu(gate)
    else:
      gate = jax.nn.gelu(gate, approximate=c.activation == 'gelu_tanh')
    return linear('down_proj', c.embed_dim, gate * up)


class Layer(nn.Module):
  """One layer; the carry is (hidden, keys and values of the cache)."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self, carry: tuple, kind: LayerKind, tokens: Tokens
  ) -> tuple[tuple, None]:
    c = self.config
    x, kv = carry

    def norm(name: str, y: jax.Array) -> jax.Array:
      return RMSNorm(c.norm_eps, c.norm_offset, name=name)(y)

    y, kv = Attention(c, name='self_attn')(
      norm('input_layernorm', x), kv, kind, tokens
    )
    if c.post_norms:
      x = x + norm('post_attention_layernorm', y)
      y = FeedForward(c, name='mlp')(norm('pre_feedforward_layernorm', x))
      x = x + norm('post_feedforward_layernorm', y)
    else:
      # With two norms a layer this is the one before the feed-forward block.
      x = x + y
      y = FeedForward(c, name='mlp')(norm('post_attention_layernorm', x))
      x = x + y
    return (x, kv), None


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
    self.layers = nn.scan(
      nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
      variable_axes={'params': 0, 'lora': 0, 'gates': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=c.num_layers,
      unroll=self.unroll,
    )(c)
    self.final_norm = RMSNorm(c.norm_eps, c.norm_offset)

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
    ropes, kinds = _layer_kinds(c)
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
    if self.has_variable('params', 'soft_tokens'):
      soft = self.get_variable('params', 'soft_tokens')
      own = visible.shape[-1] - key_positions.shape[-1] + index
      x, visible = soft_tokens.put(soft, x, tokens, visible, c.vocab_size, own)
    shared = Tokens(cos, sin, visible, distance, index, prefix)
    if self.has_variable('path', 'hops'):
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

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
    if not self.config.scale_embedding:
      return x
    # Gemma was trained with the factor rounded to the activations' type.
    return x * jnp.asarray(self.config.embed_dim**0.5, self.dtype)

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


def _layer_kinds(config: ModelConfig) -> tuple[tuple, LayerKind]:
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
  """Draws f32 parameters: normal(0, 0.02) weights and zero norms."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  positions = jnp.arange(2, dtype=jnp.int32)[None]
  return jax.jit(Transformer(config).init)(key, tokens, positions)['params']
