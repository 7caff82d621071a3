"""The forward pass against stored logits of transformers and PEFT.

These tests need no torch. tests/golden/make_golden.py wrote what they read.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import fold
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.rope import Rope
from tests.models import cases
from tests.models import forward

_FILE = pathlib.Path(__file__).parents[1] / 'golden' / 'models.npz'
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def golden():
  with np.load(_FILE) as stored:
    return dict(stored)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('golden')
  built = {}

  def build(case):
    if case.name not in built:
      built[case.name] = cases.write_model(root / case.name, case)
    return built[case.name]

  return build


@pytest.mark.parametrize('case', cases.CASES, ids=str)
def test_logits(case, folders, golden):
  config, params = hub.load_checkpoint(folders(case))
  tokens = cases.tokens(case)
  got = forward.logits(config, params, tokens)
  assert got.dtype == np.float32
  expected = golden[f'{case}/logits']
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('case', cases.CASES, ids=str)
def test_greedy_tokens(case, folders, golden):
  config, params = hub.load_checkpoint(folders(case))
  got = forward.greedy(config, params, cases.tokens(case))
  np.testing.assert_array_equal(got, golden[f'{case}/greedy'])


@pytest.mark.parametrize('case', cases.CASES, ids=str)
def test_adapted_logits(case, folders, golden, tmp_path):
  config, params = hub.load_checkpoint(folders(case))
  adapters = load_adapters([cases.write_adapter(tmp_path / 'a', case)], config)
  tokens, lora = cases.tokens(case), forward.member(adapters, 0)
  expected = golden[f'{case}/adapted']
  assert np.abs(expected - golden[f'{case}/logits']).max() > 0.1
  for got in (
    forward.logits(config, params, tokens, lora=lora),
    forward.logits(config, fold(params, LowRank(lora)), tokens),
  ):
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


_CHANGES = {
  'gemma_mha_linear_rope': [
    dict(rope_full=Rope(500.0, 1.0)),
    dict(rope_full=Rope(400.0, 4.0)),
    dict(activation='gelu'),
    dict(norm_eps=1e-6),
    dict(query_pre_attn_scalar=9.0),
  ],
  'gemma2_caps': [
    dict(attn_softcap=None),
    dict(final_softcap=None),
    dict(sliding_window=5),
    dict(query_pre_attn_scalar=8.0),
    dict(activation='gelu'),
  ],
  'gemma3_ropes': [
    dict(rope_full=Rope(20_000.0, 1.0)),
    dict(rope_sliding=Rope(120.0, 1.0)),
    dict(layer_types=(cases.SLIDING, cases.FULL, cases.SLIDING, cases.FULL)),
    dict(sliding_window=6),
  ],
}


@pytest.mark.parametrize(
  'name, change',
  [(n, c) for n, changes in _CHANGES.items() for c in changes],
  ids=str,
)
def test_every_field_is_felt(name, change, folders, golden):
  """A wrong field could not hide below the tolerance of the tests above."""
  case = next(c for c in cases.CASES if c.name == name)
  config, params = hub.load_checkpoint(folders(case))
  wrong = dataclasses.replace(config, **change)
  got = forward.logits(wrong, params, cases.tokens(case))
  assert np.abs(got - golden[f'{case}/logits']).max() > 10 * TOLERANCE


@pytest.mark.parametrize('case', cases.BF16, ids=str)
def test_bf16_within_its_rounding(case, golden, tmp_path):
  """No further from f32 logits of the same weights than torch in bf16 is."""
  folder = cases.write_model(tmp_path / 'm', case, dtype='bfloat16')
  tokens = cases.tokens(case)
  exact = forward.logits(*hub.load_checkpoint(folder), tokens)
  config, params = hub.load_checkpoint(folder, dtype=None)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    np.dtype(jnp.bfloat16)
  }
  got = forward.logits(config, params, tokens, dtype=jnp.bfloat16)
  assert got.dtype == np.float32
  ours, theirs = np.abs(got - exact), np.abs(golden[f'{case}/bf16'] - exact)
  assert ours.mean() < 1.5 * theirs.mean() and ours.max() < 2 * theirs.max()
