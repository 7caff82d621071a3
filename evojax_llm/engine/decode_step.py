"""One token of every slot, layer after layer: decoding on an accelerator.

A step reads all weights and all keys for one token a row, so that each byte
that it copies costs as much as one that it must read. The scan over stacked
layers copies every leaf that it slices. Here the stacks are split once, and the
projections of one input laid side by side; the loop over steps then holds L
separate layers, and a cache of L separate arrays that are updated in place.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine.decode_attention import decode_attention
from evojax_llm.models.cache import Cache
from evojax_llm.models.cache import Prefix
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.linear import RMSNorm
from evojax_llm.models.linear import rope_tables
from evojax_llm.models.transformer import FUSED
from evojax_llm.models.transformer import Embedder
from evojax_llm.models.transformer import Layer
from evojax_llm.models.transformer import LayerKind
from evojax_llm.models.transformer import Tokens
from evojax_llm.models.transformer import Transformer
from evojax_llm.models.transformer import ropes_of


def separate_layers(
  model: Transformer, variables: dict[str, Any]
) -> list[dict]:
  """Returns the variables of each of L layers, projections of one input fused.

  Args:
    model: the module.
    variables: collections whose 'layers' have leaves (L, ...): `params` without
      more leading axes, `lora` and `gates` with any.
  """
  stacks = {
    name: tree['layers'] for name, tree in variables.items() if 'layers' in tree
  }
  return [
    _fuse(model.config, jax.tree.map(lambda leaf, i=i: leaf[i], stacks), model)
    for i in range(model.config.num_layers)
  ]


def _fuse(c: ModelConfig, layer: dict, model: Transformer) -> dict:
  """The variables of a layer with fused projections."""
  fused = {}
  for collection, blocks in layer.items():
    fused[collection] = {}
    for block, nodes in blocks.items():
      nodes = dict(nodes)
      for (of, name), parts in FUSED.items():
        if of == block and any(part in nodes for part in parts):
          base = layer.get('params', {}).get(block, {})
          nodes[name] = _beside(
            [nodes.pop(part, {}) for part in parts],
            [c.linear_shapes()[block, part][1] for part in parts],
            [base.get(part, {}).get('a') for part in parts],
          )
      fused[collection][block] = nodes

  def cast(path, leaf: jax.Array) -> jax.Array:
    # Once, and not in every step; norms are computed in f32.
    floats = jnp.issubdtype(leaf.dtype, jnp.floating)
    maps = path[-1].key in ('kernel', 'a', 'b') and floats
    return leaf.astype(model.dtype) if maps else leaf

  return jax.tree.map_with_path(cast, fused)


def _beside(
  nodes: Sequence[dict], widths: Sequence[int], shared: Sequence
) -> dict:
  """The variables of linear maps of one input as those of one map.

  Args:
    nodes: of each map, those of one collection; may be empty.
    widths: outputs of each map.
    shared: `a` beside the kernel of each map, or None.
  """
  fused = {}
  for name in ('kernel', 'step'):
    if name in nodes[0]:
      fused[name] = jnp.concatenate([node[name] for node in nodes], axis=-1)
  if any('bias' in node for node in nodes):
    fused['bias'] = jnp.concatenate(
      [
        node.get('bias', jnp.zeros(width))
        for node, width in zip(nodes, widths, strict=True)
      ]
    )
  if any('a' in node for node in nodes):
    fused['a'] = jnp.concatenate(
      [node['a'] for node in nodes if 'a' in node], axis=-1
    )
    rows = []
    for i, node in enumerate(nodes):
      if 'b' in node:
        pad = [(0, 0)] * (node['b'].ndim - 1)
        pad.append((sum(widths[:i]), sum(widths[i + 1 :])))
        rows.append(jnp.pad(node['b'], pad))
    fused['b'] = jnp.concatenate(rows, axis=-2)
  gates = [node['gate'] for node in nodes if 'gate' in node]
  if gates:
    # A map with factors and no gate adds nothing.
    lead = gates[0].shape[:-1]
    fused['gate'] = jnp.concatenate(
      [
        node.get('gate', jnp.zeros((*lead, a.shape[-1]), gates[0].dtype))
        for node, a in zip(nodes, shared, strict=True)
        if a is not None
      ],
      axis=-1,
    )
  return fused


def step(
  model: Transformer,
  attention: str,
  embedder: dict[str, Any],
  layers: Sequence[dict],
  tokens: jax.Array,
  positions: jax.Array,
  cache: Cache,
  prefix: Prefix | None,
) -> tuple[jax.Array, Cache]:
  """Reads one token a row of one member.

  Args:
    model: the module.
    attention: implementation of `decode_attention`.
    embedder: its parameters `embedder` and `final_norm`.
    layers: variables of the L layers, see `separate_layers`.
    tokens: (B,) i32.
    positions: (B,) i32; -1 for a slot without work.
    cache: of L arrays, see `cache.init_ring`.
    prefix: of L arrays, or None.

  Returns:
    hidden (B, D) after the final norm, and the cache with these tokens in it.
  """
  c = model.config
  index, length = cache.index, cache.positions.shape[1]
  busy = positions >= 0
  seen = jax.lax.dynamic_update_slice(
    cache.positions, positions[:, None], (0, index)
  )

  def attend(q, k, v, kv, kind, _):
    # A slot without work computes anything; its keys stay finite, since a
    # masked value that is not would spoil what is read beside it.
    kv = tuple(
      jax.lax.dynamic_update_slice(
        old,
        jnp.where(busy[:, None, None, None], new.swapaxes(1, 2), 0).astype(
          old.dtype
        ),
        (0, 0, index, 0),
      )
      for old, new in zip(kv, (k, v), strict=True)
    )
    at = kind.layer
    heads = (q.shape[0], c.num_kv_heads, -1, c.head_dim)
    y = decode_attention(
      q.reshape(heads),
      *kv,
      seen,
      positions,
      prefix=prefix and (prefix.k[at], prefix.v[at], prefix.positions),
      window=kind.window,
      softcap=c.attn_softcap,
      scale=c.query_pre_attn_scalar**-0.5,
      implementation=attention,
    )
    return y.reshape(q.shape[0], 1, -1), kv

  of_layers = ropes_of(c)
  ropes = list(dict.fromkeys(of_layers))
  cos, sin = rope_tables(positions[:, None], ropes, c.head_dim)
  shared = Tokens(cos, sin, None, None, index, None, attend)
  x = Embedder(c, model.dtype).apply(
    {'params': embedder['embedder']}, tokens[:, None]
  )
  kept = []
  for i, (variables, kv) in enumerate(
    zip(layers, zip(cache.k, cache.v, strict=True), strict=True)
  ):
    sliding = c.layer_types[i] == 'sliding_attention'
    kind = LayerKind(
      layer=i,
      rope=ropes.index(of_layers[i]),
      window=jnp.int32(c.sliding_window) if sliding else None,
    )
    (x, kv), _ = Layer(c, parent=None).apply(variables, (x, kv), kind, shared)
    kept.append(kv)
  hidden = RMSNorm(c.norm_eps, c.norm_offset).apply(
    {'params': embedder['final_norm']}, x[:, 0]
  )
  k, v = zip(*kept, strict=True)
  return hidden, Cache(k, v, seen, (index + 1) % length)
