"""One layer of the decoder, for all families.

What tells families apart are switches of the configuration; see `families`.
"""

from collections.abc import Callable

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.models.cache import Prefix
from evojax_llm.models.config import ATTENTION
from evojax_llm.models.config import MLP
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.linear import Linear
from evojax_llm.models.linear import RMSNorm
from evojax_llm.models.linear import over_rms
from evojax_llm.models.linear import rotate
from evojax_llm.models.linear import softcap

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
    input: (B, T, p) what the layer adds of each token, or None.
  """

  layer: jax.Array
  rope: jax.Array
  window: jax.Array
  input: jax.Array | None = None


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

    # Of three, the third may be missing, or the second too; see `Stack`.
    names = [name for name in ATTENTION[:3] if name not in c.absent]
    counts = (c.num_heads, *[c.num_kv_heads] * 2)[: len(names)]
    biases = [name in c.biases for name in names]
    if self.has_variable('params', 'qkv_proj'):
      together = heads('qkv_proj', sum(counts), any(biases))
      borders = [sum(counts[:i]) for i in range(1, len(counts))]
      projected = jnp.split(together, borders, axis=2)
    else:
      projected = list(map(heads, names, counts, biases))
    q, k, v = (*projected, *[projected[-1]] * (3 - len(projected)))
    shares = 'k_proj' in c.absent
    if c.qk_norm:
      q = RMSNorm(c.norm_eps, c.norm_offset, name='q_norm')(q)
      if not shares:
        k = RMSNorm(c.norm_eps, c.norm_offset, name='k_norm')(k)
    if c.v_norm:
      v = over_rms(v, c.norm_eps).astype(x.dtype)
    cos, sin = tokens.cos[kind.rope], tokens.sin[kind.rope]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if shares:
      k = v = None  # Those of another layer, which has read these tokens.
    y, kv = (tokens.attend or self.attend)(q, k, v, kv, kind, tokens)
    return Linear(c.embed_dim, 'o_proj' in c.biases, name='o_proj')(y), kv

  def attend(
    self,
    q: jax.Array,
    k: jax.Array | None,
    v: jax.Array | None,
    kv: tuple | None,
    kind: LayerKind,
    tokens: Tokens,
  ) -> tuple[jax.Array, tuple | None]:
    """Returns what queries (B, T, H, h) read, (B, T, H h), and the cache.

    Without k and v they read what the cache has.
    """
    c = self.config
    batch, length = q.shape[:2]
    groups = c.num_heads // c.num_kv_heads

    def of_layer(leaf: jax.Array) -> jax.Array:
      layer = jax.lax.dynamic_index_in_dim(leaf, kind.layer, keepdims=False)
      return layer.astype(q.dtype)

    if kv is not None and k is not None:
      start = (kind.layer, 0, tokens.index, 0, 0)
      kv = tuple(
        jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)
        for old, new in zip(kv, (k, v), strict=True)
      )
    if kv is not None:
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
    return linear('down_proj', c.embed_dim, _activate(c, gate) * up)


def _activate(config: ModelConfig, x: jax.Array) -> jax.Array:
  if config.activation == 'silu':
    return jax.nn.silu(x)
  return jax.nn.gelu(x, approximate=config.activation == 'gelu_tanh')


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
    if c.input_dim:
      y = Linear(c.input_dim, name='per_layer_input_gate')(x)
      y = _activate(c, y) * kind.input
      y = Linear(c.embed_dim, name='per_layer_projection')(y)
      x = x + norm('post_per_layer_input_norm', y)
    if c.layer_scalar:
      scalar = self.param('layer_scalar', nn.initializers.ones_init(), (1,))
      x = x * scalar.astype(x.dtype)
    return (x, kv), None
