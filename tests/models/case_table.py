"""The models of `cases`: between them they use every feature."""

import dataclasses
from typing import Any

FULL, SLIDING = 'full_attention', 'sliding_attention'


@dataclasses.dataclass(frozen=True)
class Case:
  """A model: its kind, what its configuration sets, and its weights' seed."""

  name: str
  model_type: str
  seed: int
  options: dict[str, Any]

  def __str__(self) -> str:
    return self.name


def make_rope(
  base: float, factor: float | None = None, **more: Any
) -> dict[str, Any]:
  if factor is None:
    return {'rope_type': 'default', 'rope_theta': base}
  return {'rope_type': 'linear', 'rope_theta': base, 'factor': factor} | more


def make_case(name: str, model_type: str, seed: int, **options) -> Case:
  defaults = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
  )
  options = defaults | options
  if options['head_dim'] is None:
    del options['head_dim']
  return Case(name, model_type, seed, options)


GEMMA4_ROPES = {
  FULL: make_rope(1000.0)
  | {'rope_type': 'proportional', 'partial_rotary_factor': 0.5},
  SLIDING: make_rope(100.0),
}
CASES = (
  make_case('gemma_mqa', 'gemma', 1, num_key_value_heads=1, head_dim=16),
  make_case(
    'gemma_mha_linear_rope',
    'gemma',
    2,
    num_key_value_heads=4,
    rope_parameters=make_rope(500.0, 4.0),
    rms_norm_eps=1e-2,
  ),
  make_case(
    'gemma2_caps',
    'gemma2',
    3,
    sliding_window=4,
    query_pre_attn_scalar=3,
    attn_logit_softcapping=1.5,
    final_logit_softcapping=2.0,
  ),
  make_case(
    'gemma2_no_caps',
    'gemma2',
    4,
    hidden_activation='gelu',
    num_key_value_heads=1,
    head_dim=10,
    sliding_window=3,
    layer_types=[FULL, SLIDING, FULL, SLIDING, SLIDING],
    num_hidden_layers=5,
    query_pre_attn_scalar=10,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    rope_parameters=make_rope(300.0, 2.0),
    rms_norm_eps=1e-3,
  ),
  make_case(
    'gemma3_ropes',
    'gemma3_text',
    5,
    num_hidden_layers=4,
    sliding_window=5,
    layer_types=[SLIDING, FULL, FULL, SLIDING],
    query_pre_attn_scalar=6,
    rope_parameters={FULL: make_rope(20_000.0, 8.0), SLIDING: make_rope(100.0)},
  ),
  make_case(
    'gemma3_plain_gelu',
    'gemma3_text',
    6,
    hidden_activation='gelu',
    num_attention_heads=6,
    num_key_value_heads=3,
    sliding_window=3,
    query_pre_attn_scalar=24,
    final_logit_softcapping=3.0,
    # Stands in some configurations, and is not applied.
    attn_logit_softcapping=1.0,
    rms_norm_eps=1e-2,
  ),
  make_case(
    'gemma3_multimodal',
    'gemma3',
    7,
    sliding_window=4,
    layer_types=[SLIDING, SLIDING, FULL],
    query_pre_attn_scalar=12,
  ),
  make_case(
    'llama_long',
    'llama',
    21,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=None,
    rope_parameters=make_rope(
      100.0,
      8.0,
      rope_type='llama3',
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=8,
    ),
  ),
  make_case(
    'llama_biases',
    'llama',
    22,
    num_key_value_heads=4,
    head_dim=10,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
    hidden_act='gelu',
    rope_parameters=make_rope(300.0, 2.0),
    rms_norm_eps=1e-3,
  ),
  make_case(
    'mistral_window',
    'mistral',
    23,
    sliding_window=4,
    head_dim=None,
    rope_parameters=make_rope(500.0),
  ),
  make_case(
    'mistral_no_window',
    'mistral',
    24,
    num_key_value_heads=1,
    sliding_window=None,
    tie_word_embeddings=True,
  ),
  make_case(
    'qwen2_yarn',
    'qwen2',
    25,
    head_dim=None,
    tie_word_embeddings=True,
    use_sliding_window=True,
    sliding_window=3,
    max_window_layers=1,
    rope_parameters=make_rope(
      1000.0,
      4.0,
      rope_type='yarn',
      original_max_position_embeddings=8,
      beta_fast=2.0,
      beta_slow=0.5,
    ),
  ),
  make_case('qwen2_untied', 'qwen2', 26, head_dim=None, num_key_value_heads=1),
  make_case('qwen3', 'qwen3', 27, head_dim=10, tie_word_embeddings=True),
  make_case(
    'qwen3_biases',
    'qwen3',
    28,
    attention_bias=True,
    rope_parameters=make_rope(
      200.0,
      2.0,
      rope_type='yarn',
      original_max_position_embeddings=16,
      attention_factor=1.2,
      truncate=False,
    ),
  ),
  make_case(
    'gemma4_31b',
    'gemma4_text',
    31,
    num_hidden_layers=6,
    layer_types=[SLIDING, SLIDING, FULL] * 2,
    sliding_window=4,
    attention_k_eq_v=True,
    global_head_dim=16,
    num_global_key_value_heads=1,
    hidden_size_per_layer_input=0,
    final_logit_softcapping=3.0,
    rope_parameters=GEMMA4_ROPES,
  ),
  make_case(
    'gemma4_12b',
    'gemma4_unified_text',
    32,
    num_hidden_layers=4,
    layer_types=[SLIDING, FULL, SLIDING, FULL],
    sliding_window=5,
    attention_k_eq_v=True,
    global_head_dim=12,
    num_global_key_value_heads=None,
    rope_parameters=GEMMA4_ROPES,
    rms_norm_eps=1e-3,
  ),
  make_case(
    'gemma4_e2b',
    'gemma4_text',
    34,
    num_hidden_layers=7,
    layer_types=[SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
    sliding_window=4,
    num_key_value_heads=1,
    global_head_dim=12,
    num_kv_shared_layers=4,
    use_double_wide_mlp=True,
    hidden_size_per_layer_input=6,
    vocab_size_per_layer_input=61,
    final_logit_softcapping=3.0,
    rope_parameters=GEMMA4_ROPES,
  ),
)
# Those that are compared in bf16 as well, one of each family.
BF16 = tuple(CASES[i] for i in (0, 2, 4, 6, 7, 9, 11, 13, 15, 17))
# As E2B with two key heads, five windows to a layer that sees all, and blocks
# of one width; half of the layers share keys.
E4B = make_case(
  'gemma4_e4b',
  'gemma4_text',
  36,
  num_hidden_layers=12,
  layer_types=([SLIDING] * 5 + [FULL]) * 2,
  sliding_window=4,
  num_attention_heads=8,
  head_dim=4,
  global_head_dim=8,
  num_kv_shared_layers=6,
  hidden_size_per_layer_input=6,
  vocab_size_per_layer_input=61,
  final_logit_softcapping=3.0,
  rope_parameters=GEMMA4_ROPES,
)
