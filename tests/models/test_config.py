"""The configuration: what is read of transformers', what is refused."""

import dataclasses

import pytest

from evojax_llm.models.config import ATTENTION
from evojax_llm.models.config import MLP
from evojax_llm.models.errors import ModelError
from evojax_llm.models.families import config_from_hf
from evojax_llm.models.rope import Rope
from tests.models import cases


def _config(n):
  return config_from_hf(cases.hf_config(cases.CASES[n]))


def test_gemma1():
  config = _config(1)
  assert config.model_type == 'gemma'
  assert config.rope_full == config.rope_sliding == Rope(500.0, 4.0)
  assert config.query_pre_attn_scalar == config.head_dim == 8
  assert config.layer_types == (cases.FULL,) * 3
  assert not config.post_norms and not config.qk_norm
  assert config.attn_softcap is config.final_softcap is None


def test_gemma2():
  config = _config(2)
  assert (config.attn_softcap, config.final_softcap) == (1.5, 2.0)
  assert config.layer_types == (cases.SLIDING, cases.FULL, cases.SLIDING)
  assert config.post_norms and not config.qk_norm
  assert config.sliding_window == 4 and config.query_pre_attn_scalar == 3


def test_gemma3():
  config = _config(4)
  assert config.rope_full == Rope(20_000.0, 8.0)
  assert config.rope_sliding == Rope(100.0, 1.0)
  assert config.qk_norm and config.post_norms
  # The field stands in some configurations; the model does not apply it.
  assert _config(5).attn_softcap is None
  assert _config(5).activation == 'gelu'


def test_multimodal_gives_its_text_part():
  config = _config(6)
  assert config.model_type == 'gemma3_text' and config.embed_dim == 24


def test_is_a_static_argument():
  assert hash(_config(2)) == hash(_config(2)) and _config(2) == _config(2)
  assert _config(2) != _config(3)


def test_linear_shapes():
  config = _config(3)
  assert config.linear_shapes()['self_attn', 'q_proj'] == (24, 40)
  assert config.linear_shapes()['self_attn', 'k_proj'] == (24, 10)
  assert config.linear_shapes()['mlp', 'down_proj'] == (40, 24)


def _named(name):
  return config_from_hf(
    cases.hf_config(next(c for c in cases.CASES if c.name == name))
  )


def test_llama_shaped():
  config = _named('llama_biases')
  assert (config.norm_offset, config.scale_embedding) == (0.0, False)
  assert config.biases == ATTENTION + MLP and config.tied
  assert _named('llama_long').rope_full.kind == 'llama3'
  assert not _named('llama_long').tied and _named('llama_long').head_dim == 4
  assert _named('mistral_window').layer_types == (cases.SLIDING,) * 3
  assert _named('mistral_no_window').layer_types == (cases.FULL,) * 3
  qwen = _named('qwen2_yarn')
  assert qwen.biases == ATTENTION[:3]
  assert qwen.layer_types == (cases.FULL, cases.SLIDING, cases.SLIDING)
  assert _named('qwen3').qk_norm and not _named('qwen3').biases


def test_other_families_are_refused_with_those_that_are():
  import transformers

  with pytest.raises(ModelError, match='phi3.*expected one of gemma, .*qwen3'):
    config_from_hf(transformers.Phi3Config(pad_token_id=0))


@pytest.mark.parametrize(
  'change, part',
  [
    (dict(num_layers=4), 'num_hidden_layers is 4'),
    (dict(layer_types=('full_attention', 'odd', 'odd')), 'odd'),
    (dict(num_kv_heads=3), 'num_key_value_heads'),
    (dict(sliding_window=None), 'sliding_window'),
    (dict(head_dim=7), 'head_dim is 7'),
  ],
  ids=str,
)
def test_impossible_configurations(change, part):
  with pytest.raises(ModelError, match=part):
    dataclasses.replace(_config(2), **change)
