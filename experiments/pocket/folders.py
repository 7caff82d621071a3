"""Hugging Face and PEFT folders of the pocket population."""

import json
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models import hub
from evojax_llm.models import names
from evojax_llm.models import peft
from evojax_llm.models.config import ModelConfig
from experiments.pocket import tokenizer_files as tok

_BASE_NAME = 'evojax_llm/pocket'


def base_config(
  num_layers: int, embed_dim: int, ffn_dim: int
) -> dict[str, Any]:
  """config.json of a Gemma 2 model, four heads of D / 4."""
  head_dim = embed_dim // 4
  layer_types = ('sliding_attention', 'full_attention')
  return {
    'architectures': ['Gemma2ForCausalLM'],
    'model_type': 'gemma2',
    'vocab_size': tok.VOCAB_SIZE,
    'num_hidden_layers': num_layers,
    'hidden_size': embed_dim,
    'intermediate_size': ffn_dim,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': head_dim,
    'query_pre_attn_scalar': head_dim,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
    'sliding_window': 16,
    'layer_types': [layer_types[i % 2] for i in range(num_layers)],
    'hidden_activation': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-6,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
    'max_position_embeddings': 128,
    'attention_bias': False,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'tie_word_embeddings': True,
    'use_cache': True,
    'pad_token_id': tok.PAD,
    'eos_token_id': tok.EOS,
    'bos_token_id': tok.BOS,
    'dtype': 'bfloat16',
  }


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes indented JSON."""
  path.write_text(json.dumps(content, indent=2) + '\n')


def start_base(folder: pathlib.Path, config: dict[str, Any]) -> ModelConfig:
  """Writes all files of the base but its weights; returns its configuration."""
  folder.mkdir(parents=True)
  write_json(folder / 'config.json', config)
  write_json(
    folder / 'generation_config.json',
    {
      'bos_token_id': tok.BOS,
      'eos_token_id': [tok.EOS, tok.END_OF_TURN],
      'pad_token_id': tok.PAD,
      'do_sample': False,
    },
  )
  tok.write(folder)
  return hub.load_config(folder)[0]


def finish_base(
  folder: pathlib.Path,
  params: dict[str, Any],
  config: ModelConfig,
  prefix: str = 'model.',
  others: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
  """Writes the weights in bfloat16; returns them as they were rounded.

  `others` are tensors of a model that is more than its decoder.
  """
  tensors = {
    name: x.astype(ml_dtypes.bfloat16) for name, x in (others or {}).items()
  }
  for leaf in names.leaves(config):
    array = params
    for key in leaf.path:
      array = array[key]
    array = np.asarray(array).astype(ml_dtypes.bfloat16)
    layers = array[None] if leaf.layers is None else array
    for name, values in zip(leaf.names(), layers, strict=True):
      values = values.T if leaf.transposed else values
      tensors[prefix + name] = np.ascontiguousarray(values)
  path = folder / 'model.safetensors'
  save_file(tensors, path, metadata={'format': 'pt'})
  return hub.load_checkpoint(folder)[1]


def write_experts(
  folder: pathlib.Path,
  expert_names: list[str],
  factors: dict[str, Any],
  config: ModelConfig,
  scale: float,
) -> None:
  """Writes one PEFT folder per expert; factors have a leading P axis."""
  scales = jax.tree.map(
    lambda pair: np.full(config.num_layers, scale, np.float32),
    factors,
    is_leaf=lambda node: 'a' in node,
  )
  for i, name in enumerate(expert_names):
    one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), factors)
    peft.save_adapter(folder / name, one, scales, config, _BASE_NAME)
