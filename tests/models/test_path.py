"""Paths through the layers of two models, and the folders they are kept in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from evojax_llm.models import hub
from evojax_llm.models import layer
from evojax_llm.models import linear
from evojax_llm.models import path_files
from evojax_llm.models import transformer
from evojax_llm.models.cache import init_cache
from evojax_llm.models.expression import Path
from evojax_llm.models.expression import variables
from evojax_llm.models.transformer import Transformer
from tests.models import cases
from tests.models import forward

# Sliding and full layers in no order, with norms of queries and keys; and a
# model without norms behind attention. A plain model of a path differs by the
# epsilon of norms.
MODELS = tuple(
  dataclasses.replace(case, options=case.options | {'rms_norm_eps': 1e-6})
  for case in (cases.CASES[5], cases.CASES[0])
)
TOKENS = np.random.default_rng(0).integers(3, 50, (2, 13)).astype(np.int32)


@dataclasses.dataclass
class Two:
  """A and B, and the model of the layers of both."""

  folder: str
  config: object
  a: dict
  b: dict

  @functools.cached_property
  def both(self):
    config = dataclasses.replace(
      self.config,
      num_layers=2 * self.config.num_layers,
      layer_types=self.config.layer_types * 2,
    )
    layers = jax.tree.map(
      lambda *x: np.concatenate(x), self.a['layers'], self.b['layers']
    )
    return config, {**self.a, 'layers': layers}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  return make(tmp_path_factory, MODELS[0])


def make(tmp_path_factory, case):
  root = tmp_path_factory.mktemp('m')
  folders = [
    cases.write_model(root / name, dataclasses.replace(case, seed=i))
    for i, name in enumerate('ab')
  ]
  config, a = hub.load_checkpoint(folders[0])
  return Two(folders[0], config, a, hub.load_checkpoint(folders[1])[1])


@functools.partial(jax.jit, static_argnames=('config', 'hops'))
def _apply(config, params, path, tokens, positions, cache=None, hops=None):
  model = Transformer(config, hops=hops)
  hidden, cache = model.apply(variables(params, path), tokens, positions, cache)
  return model.apply({'params': params}, hidden, method='unembed'), cache


def path_of(hops, scales=None, room=12):
  pad = room - len(hops)
  scales = [1.0] * len(hops) if scales is None else scales
  return Path(
    jnp.array([*hops, *[-1] * pad], jnp.int32),
    jnp.array([*scales, *[7.0] * pad], jnp.float32),
  )


def logits(two, *given):
  config, params = two.both
  positions = forward.positions(np.ones_like(TOKENS))
  return _apply(config, params, path_of(*given), TOKENS, positions)[0]


def test_the_path_of_a_is_a_bit_for_bit(two):
  count = two.config.num_layers
  np.testing.assert_array_equal(
    logits(two, range(count)), forward.logits(two.config, two.a, TOKENS)
  )


def test_all_layers_are_a_then_b(two):
  config, params = two.both
  found = logits(two, range(config.num_layers))
  np.testing.assert_array_equal(found, forward.logits(config, params, TOKENS))


@pytest.mark.parametrize('case', MODELS, ids=str)
def test_a_path_is_a_model_with_a_layer_for_every_hop(case, tmp_path_factory):
  """Scales, of either sign, are folded into what each layer adds."""
  two = make(tmp_path_factory, case)
  config, params = two.both
  hops, scales = [0, 4, 1, 1, 2], [1.0, 0.5, -1.5, 1.0, 2.0]
  for given in ([1.0] * 5, scales):
    unrolled, deep = path_files.unroll(params, config, hops, np.array(given))
    plain = forward.logits(deep, unrolled, TOKENS)
    np.testing.assert_allclose(
      logits(two, hops, given), plain, rtol=0, atol=2e-4
    )
  assert np.abs(logits(two, hops) - plain).max() > 0.1
  with pytest.raises(ValueError, match='come to a factor of 0 '):
    path_files.unroll(params, config, hops, np.array([1, 1, 0.0, 1, 1]))


def test_chunks_through_a_cache_of_hops_are_one_pass(two):
  config, params = two.both
  given = [0, 4, 4, 1, 2], [1.0, 0.5, 1.5, 1.0, 0.8]
  positions = forward.positions(np.ones_like(TOKENS))
  cache, parts = init_cache(config, 2, 20, hops=12), []
  assert cache.k.shape[0] == 12
  for chunk in np.split(np.arange(13), [5, 12]):
    out, cache = _apply(
      config, params, path_of(*given), TOKENS[:, chunk], positions[:, chunk],
      cache, hops=12,
    )  # fmt: skip
    parts.append(out)
  whole = logits(two, *given)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-4)
  used = np.abs(np.asarray(cache.k)).sum(axis=(1, 2, 3, 4))
  assert (used[:5] > 0).all() and not used[5:].any()


def test_members_with_other_paths_go_together(two):
  config, params = two.both
  given = ([0, 3, 1, 2], [1.0, 0.5, 2.0, 1.0]), ([0, 2],), ([],)
  paths = jax.tree.map(lambda *x: jnp.stack(x), *(path_of(*g) for g in given))
  positions = forward.positions(np.ones_like(TOKENS))
  # The loop is that of the longest.
  together = jax.jit(
    jax.vmap(
      lambda path: Transformer(config).apply(
        variables(params, path, jnp.int32(4)), TOKENS, positions
      )[0]
    )
  )(paths)
  for hidden, one in zip(together, given, strict=True):
    out = Transformer(config).apply(
      {'params': params}, hidden, method='unembed'
    )
    np.testing.assert_allclose(out, logits(two, *one), rtol=0, atol=1e-4)
    # What stands behind the end changes nothing.
    more = path_of(*one, room=9)
    short = _apply(config, params, more, TOKENS, positions)[0]
    np.testing.assert_array_equal(short, logits(two, *one))


def test_a_scale_multiplies_what_enters_its_hop_alone(two):
  """Against a loop over layers written out."""
  config, params = two.both
  hops, scales = [0, 3, 2], [1.0, 0.5, 1.0]
  model = Transformer(config)
  positions = forward.positions(np.ones_like(TOKENS))
  ropes, kinds = transformer.layer_kinds(config)
  distance = positions[:, :, None] - positions[:, None, :]
  tokens = layer.Tokens(
    *linear.rope_tables(positions, ropes, config.head_dim),
    visible=jnp.asarray(distance >= 0),
    distance=jnp.asarray(distance),
    index=jnp.int32(0),
    prefix=None,
  )
  x = model.bind({'params': params}).embedder(TOKENS)
  for index, scale in zip(hops, scales, strict=True):
    own, kind = jax.tree.map(lambda x, i=index: x[i], (params['layers'], kinds))
    (x, _), _ = jax.jit(layer.Layer(config).apply)(
      {'params': own}, (x * scale, None), kind, tokens
    )
  hidden = model.bind({'params': params}).final_norm(x)
  expected = model.apply({'params': params}, hidden, method='unembed')
  np.testing.assert_allclose(
    logits(two, hops, scales), expected, rtol=0, atol=1e-4
  )


def test_a_folder_of_a_path_comes_back(two, tmp_path):
  config, params = two.both
  hops, scales = np.array([0, 4, 4, 1, 2]), np.array([1, 0.5, 1.5, 1, 0.8])
  folder = path_files.save_path(
    tmp_path / 'p', params, config, hops, scales, two.folder
  )
  assert path_files.is_path(folder) and not path_files.is_path(two.folder)
  model, path = path_files.load_path(folder)
  assert (model.config.num_layers, model.hops) == (4, 5)
  positions = forward.positions(np.ones_like(TOKENS))
  found, _ = _apply(model.config, model.params, path, TOKENS, positions)
  np.testing.assert_array_equal(found, logits(two, hops, scales))
  with pytest.raises(ValueError, match='a path through layers, which score'):
    hub.load_config(folder)
  plain = path_files.save_unrolled(
    tmp_path / 'u', params, config, hops, scales, two.folder
  )
  found = forward.logits(*hub.load_checkpoint(plain), TOKENS)
  np.testing.assert_allclose(found, logits(two, hops, scales), atol=2e-4)
  kept = load_file(folder / 'path.safetensors')
  for change, message in (
    ({'input_layers': hops.astype(np.int32)}, 'goes from 0 to 4; expected 0'),
    ({'input_layers': hops[:2].astype(np.int32)}, 'expected 5 integers'),
    ({'input_scales': np.full(5, np.nan, np.float32)}, '5 finite floats'),
  ):
    save_file(kept | change, folder / 'path.safetensors')
    with pytest.raises(ValueError, match=message):
      path_files.load_path(folder)
