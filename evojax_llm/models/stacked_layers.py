"""The layers of a model in which they differ in shape (Gemma 4).

Layers of one shape are stacked, as all layers of other models are. They come in
a pattern, such as five that see a window and one that sees all, which is
scanned: a program holds each layer of the pattern once, and those that follow
one another in a stack once.
"""

from collections.abc import Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models import names
from evojax_llm.models.cache import Prefix
from evojax_llm.models.cache import init_cache
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.layer import Layer
from evojax_llm.models.layer import LayerKind
from evojax_llm.models.layer import Tokens
from evojax_llm.models.linear import rope_tables

# (stack, layers of it that follow one another)
Run = tuple[str, int]


def pattern(stacks: Sequence[str]) -> list[tuple[list[Run], int]]:
  """Returns what repeats in a sequence of layers, and how often.

  Args:
    stacks: (L,) the stack of each layer.
  """
  runs = [(name, len([*same])) for name, same in itertools.groupby(stacks)]
  found, at = [], 0
  while at < len(runs):
    width, times = 1, 1
    for wide in range(1, (len(runs) - at) // 2 + 1):
      count = 1
      while (
        runs[at + count * wide : at + (count + 1) * wide]
        == runs[at : at + wide]
      ):
        count += 1
      if count > 1 and count * wide > times * width:
        width, times = wide, count
    found.append((runs[at : at + width], times))
    at += width * times
  return found


def walk(
  config: ModelConfig,
  variables: dict[str, Any],
  carry: tuple[jax.Array, tuple | None],
  tokens: Tokens,
  positions: jax.Array,
  inputs: jax.Array | None,
  remat: bool = False,
) -> tuple[jax.Array, tuple | None]:
  """Goes through all layers.

  Args:
    config: of the model.
    variables: collections whose 'layers' have stacks of leaves (L, ...).
    carry: hidden states (B, T, D), and the k and v of a cache or None.
    tokens: what all layers share; the rotary embedding is made here.
    positions: (B, T) i32.
    inputs: (L, B, T, p) what each layer adds of each token, or None.
    remat: as in `Transformer`.

  Returns:
    The carry.
  """
  x, kv = carry
  places, keys = config.places(), config.key_layers()
  passing = kv is None and keys != tuple(range(config.num_layers))
  if passing:  # Keys that several layers see are kept for as long.
    cache = init_cache(config, *x.shape[:2], x.dtype)
    kv = cache.k, cache.v
  pairs = {} if kv is None else {n: (kv[0][n], kv[1][n]) for n in kv[0]}
  trees, sources, shared, layers = {}, {}, {}, {}
  for (name,), at, part in config.parts():
    layers[name] = Layer(part, parent=None)
    sources[name] = source = places[keys[at[0]]][0][0]
    shared[name] = _shared(part, tokens, positions, source)
    kinds = LayerKind(
      layer=jnp.array([places[keys[layer]][1] for layer in at], jnp.int32),
      rope=jnp.zeros(len(at), jnp.int32),
      window=jnp.full(len(at), window_of(part), jnp.int32),
      input=None if inputs is None else inputs[np.array(at)],
    )
    own = {
      collection: tree['layers'][name]
      for collection, tree in variables.items()
      if name in tree.get('layers', {})
    }
    trees[name] = own, kinds

  def one(carry, name, tree):
    x, pairs = carry
    (x, pair), _ = layers[name].apply(
      tree[0], (x, pairs.get(sources[name])), tree[1], shared[name]
    )
    return x, pairs if pair is None else pairs | {sources[name]: pair}

  def period(carry, trees, runs):
    begun = dict.fromkeys(trees, 0)
    for name, count in runs:
      run = _cut(trees[name], begun[name], count)
      begun[name] += count
      step = jax.checkpoint(one, static_argnums=1) if remat else one
      if count == 1:
        carry = step(carry, name, jax.tree.map(lambda leaf: leaf[0], run))
      else:
        carry, _ = jax.lax.scan(
          lambda carry, tree, name=name, step=step: (
            step(carry, name, tree),
            None,
          ),
          carry,
          run,
        )
    return carry

  carry, begun = (x, pairs), dict.fromkeys(trees, 0)
  for runs, times in pattern([stack for (stack,), _, _ in places]):
    taken = {}
    for name in dict.fromkeys(name for name, _ in runs):
      count = sum(n for run, n in runs if run == name)
      taken[name] = _cut(trees[name], begun[name], count * times)
      begun[name] += count * times
    if times == 1:
      carry = period(carry, taken, runs)
      continue
    taken = jax.tree.map(
      lambda leaf, times=times: leaf.reshape(times, -1, *leaf.shape[1:]), taken
    )
    carry, _ = jax.lax.scan(
      lambda carry, trees, runs=runs: (period(carry, trees, runs), None),
      carry,
      taken,
    )
  x, pairs = carry
  if not pairs or passing:
    return x, None
  return x, tuple(
    {name: pair[i] for name, pair in pairs.items()} for i in (0, 1)
  )


def window_of(part: ModelConfig) -> int:
  """Returns how many keys the layers of a stack see."""
  if part.layer_types[0] == 'sliding_attention':
    return part.sliding_window
  return int(jnp.iinfo(jnp.int32).max)


def _shared(
  part: ModelConfig, tokens: Tokens, positions: jax.Array, source: str
) -> Tokens:
  """What the layers of a stack share."""
  sliding = part.layer_types[0] == 'sliding_attention'
  rope = part.rope_sliding if sliding else part.rope_full
  cos, sin = rope_tables(positions, [rope], part.head_dim)
  prefix = tokens.prefix
  if prefix is not None:
    prefix = Prefix(prefix.k[source], prefix.v[source], prefix.positions)
  return tokens.replace(cos=cos, sin=sin, prefix=prefix)


def _cut(tree: Any, start: int, count: int) -> Any:
  """Returns layers of a stack."""
  return jax.tree.map(lambda leaf: leaf[start : start + count], tree)


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Draws f32 parameters; see `transformer.init_params`."""
  params: dict[str, Any] = {}
  for i, leaf in enumerate(names.leaves(config)):
    node = params
    for name in leaf.path[:-1]:
      node = node.setdefault(name, {})
    if leaf.path[-1] in ('scale', 'layer_scalar'):
      start = 1.0 - config.norm_offset * (leaf.path[-1] == 'scale')
      node[leaf.path[-1]] = jnp.full(leaf.leaf_shape(), start)
    else:
      draw = jax.random.normal(jax.random.fold_in(key, i), leaf.leaf_shape())
      node[leaf.path[-1]] = 0.02 * draw
  return params
