"""The forward pass against transformers on torch, on folders it wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models.families import FAMILIES
from tests.models import cases
from tests.models import forward

pytest.importorskip('torch', reason='the oracle of these tests is torch')
oracle = pytest.importorskip('tests.models.oracle')

DRAWN = tuple(
  cases.random_case(model_type, seed)
  for seed in (11, 12, 13)
  for model_type in FAMILIES
  if seed == 11 or not model_type.startswith('gemma4')
)
ALL = (*cases.CASES, *DRAWN)
# Those of Gemma 4 take as long as all others: of what is compared with stored
# logits as well, and of drawn ones, one test is enough.
OTHERS = tuple(case for case in ALL if 'gemma4' not in case.name)
TOLERANCE = 1e-4
# With the prompt well beyond all windows and all lengths that ropes begin with.
STEPS = 24


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """`built(case) -> (torch model, config, params)`, each made once."""
  root = tmp_path_factory.mktemp('parity')
  done = {}

  def build(case):
    if case.name not in done:
      model = oracle.write(root / case.name, case)
      done[case.name] = (model, *hub.load_checkpoint(root / case.name))
    return done[case.name]

  return build


@pytest.mark.parametrize(
  'case',
  (*OTHERS, *[c for c in DRAWN if c not in OTHERS], cases.E4B),
  ids=str,
)
def test_logits(case, built):
  model, config, params = built(case)
  tokens = cases.tokens(case)
  got = forward.logits(config, params, tokens)
  expected = oracle.logits(model, tokens)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
  'case', [c for c in ALL if c in OTHERS or c in cases.CASES], ids=str
)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padded_logits(case, side, built):
  model, config, params = built(case)
  tokens = cases.tokens(case)
  valid = np.ones_like(tokens)
  pad = slice(0, 4) if side == 'left' else slice(-4, None)
  valid[0, pad] = 0
  tokens = np.where(valid, tokens, 0)
  got = forward.logits(config, params, tokens, valid)
  expected = oracle.logits(model, tokens, valid)
  real = valid.astype(bool)
  np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
  'case',
  [c for c in OTHERS if c in cases.CASES or c in DRAWN[: len(FAMILIES)]],
  ids=str,
)
def test_greedy_tokens(case, built):
  model, config, params = built(case)
  tokens = cases.tokens(case)
  valid = np.ones_like(tokens)
  valid[0, :3] = 0
  tokens = np.where(valid, tokens, 0)
  expected = oracle.greedy(model, tokens, valid, STEPS)
  got = forward.greedy(config, params, tokens, valid, steps=STEPS)
  np.testing.assert_array_equal(got, expected)
  # Padding on the other side of the prompt changes nothing.
  right, valid = tokens.copy(), valid.copy()
  right[0], valid[0] = np.roll(right[0], -3), np.roll(valid[0], -3)
  got = forward.greedy(config, params, right, valid, steps=STEPS)
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  'case', [c for c in cases.BF16 if c in OTHERS], ids=str
)
def test_bf16(case, tmp_path):
  """bf16 folders hold the same bits and compute no worse than torch does."""
  model = oracle.write(tmp_path / 'm', case, dtype='bfloat16')
  tokens = cases.tokens(case)
  config, params = hub.load_checkpoint(tmp_path / 'm', dtype=None)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    np.dtype(jnp.bfloat16)
  }
  as_bf16 = forward.logits(config, params, tokens, dtype=jnp.bfloat16)
  torch_bf16 = oracle.logits(model, tokens)
  exact = oracle.logits(oracle.load(tmp_path / 'm', dtype='float32'), tokens)
  config, params = hub.load_checkpoint(tmp_path / 'm')
  got = forward.logits(config, params, tokens)
  np.testing.assert_allclose(got, exact, rtol=0, atol=TOLERANCE)
  ours, theirs = np.abs(as_bf16 - exact), np.abs(torch_bf16 - exact)
  assert ours.mean() < 1.5 * theirs.mean() and ours.max() < 2 * theirs.max()


@pytest.mark.parametrize('case', cases.CASES, ids=str)
def test_written_folder_reads_back(case, built, tmp_path):
  """transformers reads what is written, and finds the same logits."""
  model, config, params = built(case)
  source = tmp_path / 'like'
  model.save_pretrained(source)
  hub.save_checkpoint(tmp_path / 'out', params, config, source)
  again, missing, unexpected = oracle.load_reporting(tmp_path / 'out')
  assert not missing and not unexpected
  # With what reads images, where that was there.
  assert type(again) is type(model) or 'ForCausalLM' in type(again).__name__
  tokens = cases.tokens(case)
  np.testing.assert_array_equal(
    oracle.logits(again, tokens), oracle.logits(model, tokens)
  )


def test_shards_of_transformers(tmp_path):
  case = cases.CASES[3]
  model = oracle.write(tmp_path / 'm', case, max_shard_size='20KB')
  assert len(list((tmp_path / 'm').glob('model-*.safetensors'))) > 2
  config, params = hub.load_checkpoint(tmp_path / 'm')
  tokens = cases.tokens(case)
  got = forward.logits(config, params, tokens)
  expected = oracle.logits(model, tokens)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
  # And the other way round.
  hub.save_checkpoint(
    tmp_path / 'out', params, config, tmp_path / 'm', max_shard_bytes=20_000
  )
  assert len(list((tmp_path / 'out').glob('model-*.safetensors'))) > 2
  again = oracle.load(tmp_path / 'out')
  np.testing.assert_array_equal(oracle.logits(again, tokens), expected)


def test_bf16_folder_is_written_back_as_bf16(tmp_path):
  case = cases.CASES[5]
  model = oracle.write(tmp_path / 'm', case, dtype='bfloat16')
  config, params = hub.load_checkpoint(tmp_path / 'm')
  hub.save_checkpoint(tmp_path / 'out', params, config, tmp_path / 'm')
  again = oracle.load(tmp_path / 'out')
  assert again.dtype == model.dtype
  tokens = cases.tokens(case)
  np.testing.assert_array_equal(
    oracle.logits(again, tokens), oracle.logits(model, tokens)
  )
