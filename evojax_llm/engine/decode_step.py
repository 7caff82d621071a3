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
from evojax_llm.models.layer import FUSED
from evojax_llm.models.layer import Layer
from evojax_llm.models.layer import LayerKind
from evojax_llm.models.layer import Tokens
from evojax_llm.models.linear import RMSNorm
from evojax_llm.models.linear import rope_tables
from evojax_llm.models.transformer import Embedder
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
  layers = []
  for keys, i, part in model.config.places():
    own = dict(stacks)
    for key in keys:
      own = {name: tree[key] for name, tree in own.items() if key in tree}
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], own)
    layers.append(_fuse(part, layer, model))
  return layers


def _fuse(c: ModelConfig, layer: dict, model: Transformer) -> dict:
  """The variables of a layer with fused projections."""
  fused = {}
  for collection, blocks in layer.items():
    fused[collection] = {}
    for block, nodes in blocks.items():
      if not isinstance(nodes, dict):  # A number of the layer.
        fused[collection][block] = nodes
        continue
      nodes = dict(nodes)
      for (of, name), parts in FUSED.items():
        parts = [part for part in parts if part not in c.absent]
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
    cache: see `cache.init_ring`.
    prefix: arrays as the cache has, or None.

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
    if k is not None:
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
    place = kind.layer
    heads = (q.shape[0], kv[0].shape[1], -1, q.shape[-1])
    y = decode_attention(
      q.reshape(heads),
      *kv,
      seen,
      positions,
      prefix=prefix
      and (_at(prefix.k, place), _at(prefix.v, place), prefix.positions),
      window=kind.window,
      softcap=c.attn_softcap,
      scale=c.query_pre_attn_scalar**-0.5,
      implementation=attention,
    )
    return y.reshape(q.shape[0], 1, -1), kv

  of_layers, places, keys = ropes_of(c), c.places(), c.key_layers()
  # Heads are of one width, or of one each for two kinds of layers.
  ropes: dict[int, dict] = {}
  for rope, (_, _, part) in zip(of_layers, places, strict=True):
    ropes.setdefault(part.head_dim, {})[rope] = None
  shared = {}
  for head_dim, of_width in ropes.items():
    cos, sin = rope_tables(positions[:, None], list(of_width), head_dim)
    shared[head_dim] = Tokens(cos, sin, None, None, index, None, attend)
  embed, own = Embedder(c, model.dtype), {'params': embedder['embedder']}
  x, inputs = embed.apply(own, tokens[:, None]), None
  if c.input_dim:
    inputs = embed.apply(own, tokens[:, None], x, method='inputs_of')
  # A layer writes to its own keys, or reads those of another one.
  at = [(*places[key][0], places[key][1]) for key in keys]
  kept = {place: (_at(cache.k, place), _at(cache.v, place)) for place in at}
  for i, (variables, (_, _, part)) in enumerate(
    zip(layers, places, strict=True)
  ):
    sliding = c.layer_types[i] == 'sliding_attention'
    kind = LayerKind(
      layer=at[i],
      rope=list(ropes[part.head_dim]).index(of_layers[i]),
      window=jnp.int32(c.sliding_window) if sliding else None,
      input=None if inputs is None else inputs[i],
    )
    (x, kept[at[i]]), _ = Layer(part, parent=None).apply(
      variables, (x, kept[at[i]]), kind, shared[part.head_dim]
    )
  hidden = RMSNorm(c.norm_eps, c.norm_offset).apply(
    {'params': embedder['final_norm']}, x[:, 0]
  )
  structure = jax.tree.structure(cache.k)
  # Dictionaries are in the order of their keys, tuples in that of layers.
  k, v = (
    jax.tree.unflatten(structure, [kept[place][i] for place in sorted(kept)])
    for i in (0, 1)
  )
  return hidden, Cache(k, v, seen, (index + 1) % length)


def _at(tree: Any, place: tuple) -> Any:
  for key in place:
    tree = tree[key]
  return tree
