"""Shapes of published models by name, for plans that have no files.

Numbers are those of each model's config.json; what is not said is the default
of transformers' configuration of the family.
"""

import re
from typing import Any

from evojax_llm.models import families
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.folders import import_transformers

_WIDTHS = ('hidden_size', 'intermediate_size', 'num_attention_heads')
_WIDTHS += ('num_key_value_heads', 'head_dim', 'num_hidden_layers')
_GEMMA2 = {'vocab_size': 256_000, 'sliding_window': 4096}
_GEMMA2 |= {'max_position_embeddings': 8192}
_GEMMA3 = {'vocab_size': 262_144, 'sliding_window': 512}
_GEMMA3 |= {'max_position_embeddings': 32_768}
_GEMMA3_LARGE = {'vocab_size': 262_208, 'sliding_window': 1024}
_GEMMA3_LARGE |= {'max_position_embeddings': 131_072}
_LLAMA3 = {'vocab_size': 128_256, 'max_position_embeddings': 131_072}
_QWEN = {'vocab_size': 151_936, 'max_position_embeddings': 32_768}
_TIED, _UNTIED = {'tie_word_embeddings': True}, {'tie_word_embeddings': False}

# Family; width, feed-forward width, heads, key heads, width of a head, layers;
# what else config.json says.
_PUBLISHED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
  'gemma-2-2b': (
    'Gemma2',
    (2304, 9216, 8, 4, 256, 26),
    _GEMMA2 | {'query_pre_attn_scalar': 256},
  ),
  'gemma-2-9b': (
    'Gemma2',
    (3584, 14336, 16, 8, 256, 42),
    _GEMMA2 | {'query_pre_attn_scalar': 256},
  ),
  'gemma-2-27b': (
    'Gemma2',
    (4608, 36864, 32, 16, 128, 46),
    _GEMMA2 | {'query_pre_attn_scalar': 144},
  ),
  'gemma-3-270m': ('Gemma3Text', (640, 2048, 4, 1, 256, 18), _GEMMA3),
  'gemma-3-1b': ('Gemma3Text', (1152, 6912, 4, 1, 256, 26), _GEMMA3),
  'gemma-3-4b': ('Gemma3Text', (2560, 10240, 8, 4, 256, 34), _GEMMA3_LARGE),
  'gemma-3-12b': ('Gemma3Text', (3840, 15360, 16, 8, 256, 48), _GEMMA3_LARGE),
  'gemma-3-27b': (
    'Gemma3Text',
    (5376, 21504, 32, 16, 128, 62),
    _GEMMA3_LARGE | {'query_pre_attn_scalar': 168},
  ),
  'llama-3.1-8b': ('Llama', (4096, 14336, 32, 8, 128, 32), _LLAMA3 | _UNTIED),
  'llama-3.1-70b': ('Llama', (8192, 28672, 64, 8, 128, 80), _LLAMA3 | _UNTIED),
  'llama-3.2-1b': ('Llama', (2048, 8192, 32, 8, 64, 16), _LLAMA3 | _TIED),
  'llama-3.2-3b': ('Llama', (3072, 8192, 24, 8, 128, 28), _LLAMA3 | _TIED),
  'mistral-7b': (
    'Mistral',
    (4096, 14336, 32, 8, 128, 32),
    {
      'vocab_size': 32_768,
      'max_position_embeddings': 32_768,
      'sliding_window': None,
    },
  ),
  'qwen2.5-0.5b': ('Qwen2', (896, 4864, 14, 2, 64, 24), _QWEN | _TIED),
  'qwen2.5-1.5b': ('Qwen2', (1536, 8960, 12, 2, 128, 28), _QWEN | _TIED),
  'qwen2.5-3b': ('Qwen2', (2048, 11008, 16, 2, 128, 36), _QWEN | _TIED),
  'qwen2.5-7b': (
    'Qwen2',
    (3584, 18944, 28, 4, 128, 28),
    _QWEN | _UNTIED | {'vocab_size': 152_064},
  ),
  'qwen3-0.6b': ('Qwen3', (1024, 3072, 16, 8, 128, 28), _QWEN | _TIED),
  'qwen3-1.7b': ('Qwen3', (2048, 6144, 16, 8, 128, 28), _QWEN | _TIED),
  'qwen3-4b': ('Qwen3', (2560, 9728, 32, 8, 128, 36), _QWEN | _TIED),
  'qwen3-8b': ('Qwen3', (4096, 12288, 32, 8, 128, 36), _QWEN | _UNTIED),
  'smollm2-135m': (
    'Llama',
    (576, 1536, 9, 3, 64, 30),
    _TIED | {'vocab_size': 49_152, 'max_position_embeddings': 8192},
  ),
}
NAMES = tuple(_PUBLISHED)


def known(name: str) -> str | None:
  """Returns which of NAMES is meant, as by google/gemma-2-2b-it; or None."""
  shown = re.sub(r'-(it|pt|base|instruct|v0\.3)\b', '', name.lower())
  shown = shown.rpartition('/')[2].removeprefix('meta-')
  return shown if shown in _PUBLISHED else None


def published_config(name: str) -> ModelConfig:
  """Returns the configuration of one of NAMES; a tuned one has the same."""
  family, widths, others = _PUBLISHED[name]
  made = getattr(import_transformers(), f'{family}Config')
  fields = dict(zip(_WIDTHS, widths, strict=True))
  return families.config_from_hf(made(**fields, **others))
