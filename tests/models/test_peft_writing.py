"""Adapter folders that are written: round trips, ranks and scales, refusals."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.peft import save_adapter
from tests import tiny


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(scope='module')
def config(base):
  return hub.load_config(base)[0]


@pytest.fixture(scope='module')
def folder(base, tmp_path_factory):
  return tiny.write_adapter(
    tmp_path_factory.mktemp('adapter') / 'adapter', base, rank=4, alpha=8
  )


def _one(folder, config):
  adapters = load_adapters([folder], config)
  return jax.tree.map(lambda x: x[0], adapters.factors), adapters.scale


def test_round_trip_keeps_bits(folder, config, tmp_path, base):
  factors, scale = _one(folder, config)
  out = save_adapter(tmp_path / 'out', factors, scale, config, 'base', base)
  again, again_scale = _one(out, config)
  jax.tree.map(np.testing.assert_array_equal, again, factors)
  jax.tree.map(np.testing.assert_array_equal, again_scale, scale)
  raw = json.loads((out / 'adapter_config.json').read_text())
  assert (raw['r'], raw['lora_alpha']) == (4, 8)
  assert raw['alpha_pattern'] == raw['rank_pattern'] == {}
  assert raw['base_model_name_or_path'] == 'base'


@pytest.mark.parametrize('scale', [0.6, 2.0, math.pi])
def test_one_rank_and_one_alpha_hold_all_scales(
  scale, folder, config, tmp_path
):
  """vLLM reads r and lora_alpha alone, and calls both whole."""
  factors, scales = _one(folder, config)
  scales = jax.tree.map(lambda s: np.full_like(s, scale), scales)
  up_proj = factors['layers']['mlp']['up_proj']
  for name, more, axis in (('a', (2, 32, 3), -1), ('b', (2, 3, 48), 1)):
    up_proj[name] = np.concatenate(
      [up_proj[name], np.ones(more, np.float32)], axis
    )
  for other in (scales, {'layers': {**scales['layers'], 'mlp': {
    **scales['layers']['mlp'], 'up_proj': np.float32([0.3, 5.0]),
  }}}):  # fmt: skip
    out = save_adapter(
      tmp_path / str(id(other)), factors, other, config, 'base'
    )
    raw = json.loads((out / 'adapter_config.json').read_text())
    assert raw['r'] == 7 and type(raw['lora_alpha']) is int
    assert raw['alpha_pattern'] == raw['rank_pattern'] == {}
    again, again_scales = _one(out, config)
    jax.tree.map(
      lambda pair, s, back, back_s: np.testing.assert_allclose(
        back['a'] @ (back['b'] * back_s[:, None, None]),
        pair['a'] @ (pair['b'] * s[:, None, None]),
        rtol=1e-5,
        atol=1e-6,
      ),
      *(factors, other, again, again_scales),
      is_leaf=lambda node: isinstance(node, dict) and 'a' in node,
    )


def test_columns_that_change_nothing_are_left_out(folder, config, tmp_path):
  """Experts of ranks 4 and 2 beside each other, padded to 4 each, need 6."""
  factors, scale = _one(folder, config)

  def pad(pair):
    zero = np.zeros_like
    a = [pair['a'], zero(pair['a'][..., :3]), pair['a'][..., :2]]
    b = [pair['b'], pair['b'][:, :3], pair['b'][:, :2]]
    return {'a': np.concatenate(a, -1), 'b': np.concatenate(b, 1)}

  wide = jax.tree.map(pad, factors, is_leaf=lambda node: 'a' in node)
  again, again_scale = _one(
    save_adapter(tmp_path / 'out', wide, scale, config, 'base'), config
  )
  jax.tree.map(np.testing.assert_array_equal, again_scale, scale)
  for block, modules in again['layers'].items():
    for name, pair in modules.items():
      expected = wide['layers'][block][name]
      left = [0, 1, 2, 3, 7, 8]
      np.testing.assert_array_equal(pair['a'], expected['a'][..., left])
      np.testing.assert_array_equal(pair['b'], expected['b'][:, left])
  nothing = jax.tree.map(np.zeros_like, factors)
  out = save_adapter(tmp_path / 'zero', nothing, scale, config, 'base')
  assert load_adapters([out], config).rank == 1


def test_nothing_is_overwritten(folder, config):
  factors, scale = _one(folder, config)
  before = (folder / 'adapter_config.json').read_bytes()
  with pytest.raises(ModelError, match='not empty'):
    save_adapter(folder, factors, scale, config, 'base')
  assert (folder / 'adapter_config.json').read_bytes() == before


def test_factors_must_fit(folder, config, tmp_path):
  factors, scale = _one(folder, config)
  factors['layers']['mlp']['up_proj']['b'] = np.ones((2, 4, 9), np.float32)
  with pytest.raises(ModelError, match=r'mlp.up_proj.*9.*\(2, 4, 48\)'):
    save_adapter(tmp_path / 'o', factors, scale, config, 'base')
  with pytest.raises(ModelError, match='no factors'):
    save_adapter(tmp_path / 'o', {'layers': {}}, {}, config, 'base')
  assert not pathlib.Path(tmp_path / 'o').exists()
