"""Adapters against PEFT on torch: folders that it wrote, and folders for it."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.models import adapter_config
from evojax_llm.models import hub
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import fold
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.peft import save_adapter
from tests.models import cases
from tests.models import forward

torch = pytest.importorskip('torch', reason='the oracle is torch')
peft = pytest.importorskip('peft', reason='the oracle is PEFT')
oracle = pytest.importorskip('tests.models.oracle')

# PEFT asks transformers about a name that is to be dropped.
pytestmark = pytest.mark.filterwarnings(
  'ignore:`is_gradient_checkpointing`:FutureWarning'
)
TOLERANCE = 1e-4
MODELS = tuple(cases.CASES[i] for i in (0, 3, 4))
MULTIMODAL = cases.CASES[6]

OPTIONS = {
  'plain': dict(r=4, lora_alpha=8, target_modules=['q_proj', 'v_proj']),
  'all_linear': dict(r=2, lora_alpha=3, target_modules='all-linear'),
  'patterns': dict(
    r=3,
    lora_alpha=6,
    target_modules=['q_proj', 'k_proj', 'o_proj', 'gate_proj', 'down_proj'],
    rank_pattern={'k_proj': 1, r'layers\.1\.mlp\.gate_proj': 6},
    alpha_pattern={'mlp.down_proj': 1, '^model.layers.0.self_attn.q_proj': 9},
  ),
  'rslora': dict(
    r=5,
    lora_alpha=4,
    use_rslora=True,
    target_modules=r'.*\.(up_proj|o_proj)',
    rank_pattern={'o_proj': 2},
  ),
  'some_layers': dict(
    r=2,
    lora_alpha=2,
    target_modules=['q_proj', 'up_proj'],
    layers_to_transform=[1, 2],
    layers_pattern='layers',
  ),
  'excluded': dict(
    r=2,
    lora_alpha=7,
    target_modules=['k_proj', 'v_proj'],
    exclude_modules=r'.*layers\.0\..*',
  ),
}


def _write(folder, case, seed, **options):
  """Has PEFT make and write an adapter with both factors drawn."""
  torch.manual_seed(seed)
  model = peft.get_peft_model(
    oracle.build(case), peft.LoraConfig(task_type='CAUSAL_LM', **options)
  )
  with torch.no_grad():
    for name, value in model.named_parameters():
      if 'lora_' in name:
        value.copy_(torch.randn_like(value) / value.shape[1] ** 0.5)
  model.save_pretrained(folder)
  return folder


@pytest.fixture(scope='module', params=MODELS, ids=str)
def loaded(request, tmp_path_factory):
  """A case, its folder, its adapters' folders, and all of them loaded."""
  case, root = request.param, tmp_path_factory.mktemp('adapters')
  base = cases.write_model(root / 'base', case)
  folders = [
    _write(root / name, case, seed, **options)
    for seed, (name, options) in enumerate(OPTIONS.items())
  ]
  config, params = hub.load_checkpoint(base)
  adapters = load_adapters(folders, config)
  assert adapters.names == tuple(OPTIONS) and adapters.rank == 6
  return case, base, folders, config, params, adapters


@pytest.mark.parametrize('n', range(len(OPTIONS)), ids=list(OPTIONS))
def test_logits_of_each_expert(n, loaded):
  """Experts of other ranks and scales in one set stay what they are."""
  case, base, folders, config, params, adapters = loaded
  tokens, lora = cases.tokens(case), forward.member(adapters, n)
  expected = oracle.logits(
    oracle.with_adapter(oracle.load(base), folders[n]), tokens
  )
  plain = forward.logits(config, params, tokens)
  assert np.abs(expected - plain).max() > 0.1
  got = forward.logits(config, params, tokens, lora=lora)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
  got = forward.logits(config, fold(params, LowRank(lora)), tokens)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('n', [1, 2], ids=lambda n: list(OPTIONS)[n])
def test_written_adapter_is_read_by_peft(n, loaded, tmp_path):
  case, base, _, config, params, adapters = loaded
  factors = jax.tree.map(lambda leaf: leaf[n], adapters.factors)
  # Scales that differ by layer and by module go into lora_B.
  scale = jax.tree.map(
    lambda s: s * np.linspace(0.5, 1.5, s.size, dtype=np.float32),
    adapters.scale,
  )
  lora = forward.scaled(factors, scale)
  save_adapter(tmp_path / 'a', factors, scale, config, str(base), base)
  tokens = cases.tokens(case)
  got = forward.logits(config, params, tokens, lora=lora)
  expected = oracle.logits(
    oracle.with_adapter(oracle.load(base), tmp_path / 'a'), tokens
  )
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_written_merge_is_read_by_transformers(loaded, tmp_path):
  case, base, folders, config, params, adapters = loaded
  merged = fold(params, LowRank(forward.member(adapters, 2)))
  hub.save_checkpoint(tmp_path / 'merged', merged, config, base)
  tokens = cases.tokens(case)
  expected = oracle.logits(
    oracle.with_adapter(oracle.load(base), folders[2]), tokens
  )
  got = oracle.logits(oracle.load(tmp_path / 'merged'), tokens)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_greedy_tokens_with_adapter(loaded):
  case, base, folders, config, params, adapters = loaded
  tokens = cases.tokens(case)
  expected = oracle.greedy(
    oracle.with_adapter(oracle.load(base), folders[1]), tokens, steps=16
  )
  lora = forward.member(adapters, 1)
  got = forward.greedy(config, params, tokens, lora=lora, steps=16)
  np.testing.assert_array_equal(got, expected)


def test_multimodal_base(tmp_path):
  """Adapters of both spellings load; what is written fits the whole model."""
  case = MULTIMODAL
  oracle.write(tmp_path / 'base', case)
  config, params = hub.load_checkpoint(tmp_path / 'base')
  tokens = cases.tokens(case)
  options = dict(r=3, lora_alpha=4, target_modules=['q_proj', 'down_proj'])
  folder = _write(tmp_path / 'whole', case, 0, **options)
  adapters = load_adapters([folder], config)
  expected = oracle.logits(
    oracle.with_adapter(oracle.load(tmp_path / 'base'), folder), tokens
  )
  lora = forward.member(adapters, 0)
  got = forward.logits(config, params, tokens, lora=lora)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)

  factors = jax.tree.map(lambda leaf: leaf[0], adapters.factors)
  save_adapter(
    tmp_path / 'out', factors, adapters.scale, config, 'b', tmp_path / 'base'
  )
  again = oracle.with_adapter(oracle.load(tmp_path / 'base'), tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.logits(again, tokens), expected, rtol=0, atol=TOLERANCE
  )
  assert not any('vision' in n for n in again.state_dict() if 'lora' in n)
  reloaded = load_adapters([tmp_path / 'out'], config)
  jax.tree.map(
    np.testing.assert_array_equal, reloaded.factors, adapters.factors
  )


def test_layers_that_differ(tmp_path):
  """Without k and v in some layers, by names alone, in and out."""
  case = next(c for c in cases.CASES if c.name == 'gemma4_e2b')
  base = cases.write_model(tmp_path / 'base', case)
  inputs = ['per_layer_input_gate', 'per_layer_projection']
  modules = ['q_proj', 'v_proj', 'down_proj', *inputs]
  folder = _write(
    tmp_path / 'a', case, 0, r=3, lora_alpha=4, target_modules=modules
  )
  config, params = hub.load_checkpoint(base)
  adapters = load_adapters([folder], config)
  tokens, lora = cases.tokens(case), forward.member(adapters, 0)
  got = forward.logits(config, params, tokens, lora=lora)
  model = oracle.load(base)
  expected = oracle.logits(oracle.with_adapter(model, folder), tokens)
  np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
  factors = jax.tree.map(lambda leaf: leaf[0], adapters.factors)
  save_adapter(tmp_path / 'out', factors, adapters.scale, config, 'b', base)
  again = oracle.with_adapter(oracle.load(base), tmp_path / 'out')
  np.testing.assert_allclose(
    oracle.logits(again, tokens), expected, rtol=0, atol=TOLERANCE
  )


def test_every_field_of_peft_is_known_or_refused():
  """A newer PEFT may have fields that change what an adapter computes."""
  fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
  known = adapter_config._KNOWN | set(adapter_config._REFUSED)
  assert fields - known == set()
