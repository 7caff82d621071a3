"""Shapes of random models: those of published ones, and smaller ones."""

from typing import Any

from evojax_llm.models.folders import import_transformers

# Family, widths and layers.
SHAPES = {
  'gemma-2-2b': (
    'Gemma2',
    dict(
      vocab_size=256_000,
      hidden_size=2304,
      intermediate_size=9216,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=256,
      query_pre_attn_scalar=256,
      sliding_window=4096,
      max_position_embeddings=8192,
    ),
    26,
  ),
  'gemma-3-1b': (
    'Gemma3Text',
    dict(
      vocab_size=262_144,
      hidden_size=1152,
      intermediate_size=6912,
      num_attention_heads=4,
      num_key_value_heads=1,
      head_dim=256,
      query_pre_attn_scalar=256,
      sliding_window=512,
      max_position_embeddings=32_768,
    ),
    26,
  ),
  # 8.9 M a layer: 130 M with fourteen.
  'mid': (
    'Gemma2',
    dict(
      vocab_size=8192,
      hidden_size=768,
      intermediate_size=3072,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=96,
      query_pre_attn_scalar=96,
      sliding_window=4096,
      max_position_embeddings=8192,
    ),
    14,
  ),
  # Between the pocket model and these: 33 M in ten layers.
  'small': (
    'Gemma2',
    dict(
      vocab_size=4096,
      hidden_size=512,
      intermediate_size=1536,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=64,
      query_pre_attn_scalar=64,
      sliding_window=4096,
      max_position_embeddings=8192,
    ),
    10,
  ),
  # For tests.
  'tiny': (
    'Gemma2',
    dict(
      vocab_size=256,
      hidden_size=32,
      intermediate_size=64,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=8,
      query_pre_attn_scalar=8,
      sliding_window=64,
      max_position_embeddings=1024,
    ),
    2,
  ),
}


def hf_config(shape: str, layers: int | None = None) -> Any:
  """Returns the transformers configuration of a shape, of some layers."""
  family, widths, published = SHAPES[shape]
  made = getattr(import_transformers(), f'{family}Config')
  return made(num_hidden_layers=layers or published, **widths)
