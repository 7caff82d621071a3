"""What a GGUF file says of a model, as Hugging Face spells it.

The names of ggml are those of llama.cpp's converter, which also changes two
things: it adds 1 to the norms of Gemma, and it permutes the rows of q and k of
Llama, whose rotary embedding pairs neighbours there and halves here.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from evojax_llm.models.config import rope_fields
from evojax_llm.models.errors import ModelError

_OUTER = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_TWO_NORMS = {'ffn_norm': 'post_attention_layernorm'}
_FOUR_NORMS = {
  'post_attention_norm': 'post_attention_layernorm',
  'ffn_norm': 'pre_feedforward_layernorm',
  'post_ffw_norm': 'post_feedforward_layernorm',
}
_IN_LAYER = re.compile(r'blk\.(\d+)\.(\w+)\.(weight|bias)')
# Factors of the frequencies, which the converter makes of Llama 3's scaling.
ROPE_FACTORS = 'rope_freqs.weight'


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How ggml stores one family.

  Attributes:
    model_type: of config.json.
    class_name: of transformers.
    norms: names of the norms of a layer that differ by family.
    norm_offset: added to stored norms.
    permuted: whether rows of q and k are permuted.
    extra: makes further fields of config.json of `_Metadata`.
  """

  model_type: str
  class_name: str
  extra: Callable[['_Metadata', dict[str, Any]], dict[str, Any]]
  norms: Mapping[str, str] = dataclasses.field(default_factory=dict)
  norm_offset: float = 0.0
  permuted: bool = False


class _Metadata:
  """Metadata of one file, by keys of its architecture."""

  def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
    self.path, self.values = path, values
    self.architecture = values.get('general.architecture')

  def get(self, key: str, default: Any = None) -> Any:
    """Returns a value; numbers of f32 as they were meant, 1e-06 for 1.0000e-6.

    Raises:
      ModelError: it is missing and has no default.
    """
    value = self.values.get(f'{self.architecture}.{key}', default)
    if value is None and default is None:
      raise ModelError(
        f'{self.path}: has no {self.architecture}.{key}; expected it in the '
        'metadata. Convert the model again with a newer llama.cpp.'
      )
    return float(str(np.float32(value))) if isinstance(value, float) else value

  def has(self, key: str) -> bool:
    return f'{self.architecture}.{key}' in self.values


def _gemma1(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  return {
    'head_dim': data.get('attention.key_length'),
    'hidden_act': 'gelu_pytorch_tanh',
    'rope_parameters': _linear(data, data.get('rope.freq_base', 10_000.0)),
  }


def _gemma2(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  head_dim = data.get('attention.key_length')
  # The only size of which the scale is another one, and not in the file.
  large = config['num_hidden_layers'] == 46
  return {
    'head_dim': head_dim,
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': _by_width(config) if large else head_dim,
    'attn_logit_softcapping': data.get('attn_logit_softcapping', 50.0),
    'final_logit_softcapping': data.get('final_logit_softcapping', 30.0),
    'sliding_window': data.get('attention.sliding_window', 4096),
    'layer_types': _layer_types(data, config, every=2),
    'rope_parameters': _linear(data, data.get('rope.freq_base', 10_000.0)),
  }


def _gemma3(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  head_dim = data.get('attention.key_length')
  large = config['num_hidden_layers'] == 62
  theta = data.get('rope.freq_base', 1_000_000.0)
  local = data.get('rope.freq_base_swa', 10_000.0)
  return {
    'head_dim': head_dim,
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': _by_width(config) if large else head_dim,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': data.get('final_logit_softcapping', 0.0) or None,
    'sliding_window': data.get('attention.sliding_window'),
    'layer_types': _layer_types(data, config, every=6),
    'rope_parameters': {
      'full_attention': _linear(data, theta),
      'sliding_attention': {'rope_type': 'default', 'rope_theta': local},
    },
  }


def _llama(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  width = config['hidden_size'] // config['num_attention_heads']
  head_dim = data.get(
    'attention.key_length', data.get('rope.dimension_count', width)
  )
  rotated = data.get('rope.dimension_count', head_dim)
  if rotated != head_dim:
    raise ModelError(
      f'{data.path}: rotates {rotated} of the {head_dim} numbers of a head; '
      'expected all of them.'
    )
  return {
    'head_dim': head_dim,
    'hidden_act': 'silu',
    'rope_parameters': _linear(data, data.get('rope.freq_base', 10_000.0)),
  }


def _qwen2(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  fields = _llama(data, config)
  del fields['head_dim']
  return fields | {'use_sliding_window': False}


def _qwen3(data: _Metadata, config: dict[str, Any]) -> dict[str, Any]:
  return _llama(data, config) | {'use_sliding_window': False}


ARCHITECTURES = {
  'gemma': Architecture(
    'gemma', 'GemmaForCausalLM', _gemma1, _TWO_NORMS, norm_offset=1.0
  ),
  'gemma2': Architecture(
    'gemma2', 'Gemma2ForCausalLM', _gemma2, _FOUR_NORMS, norm_offset=1.0
  ),
  'gemma3': Architecture(
    'gemma3_text', 'Gemma3ForCausalLM', _gemma3, _FOUR_NORMS, norm_offset=1.0
  ),
  'llama': Architecture(
    'llama', 'LlamaForCausalLM', _llama, _TWO_NORMS, permuted=True
  ),
  'qwen2': Architecture('qwen2', 'Qwen2ForCausalLM', _qwen2, _TWO_NORMS),
  'qwen3': Architecture('qwen3', 'Qwen3ForCausalLM', _qwen3, _TWO_NORMS),
}


def architecture(
  path: pathlib.Path, metadata: Mapping[str, Any]
) -> Architecture:
  """Returns how the tensors of a file are stored.

  Raises:
    ModelError: it is of another family.
  """
  name = metadata.get('general.architecture')
  if name not in ARCHITECTURES:
    raise ModelError(
      f'{path}: general.architecture is {name!r}; expected one of '
      f'{", ".join(ARCHITECTURES)}.'
    )
  return ARCHITECTURES[name]


def stored_name(stored: str, known: Architecture) -> str | None:
  """Returns the Hugging Face name of a tensor; None for one that it drops."""
  if stored in _OUTER:
    return _OUTER[stored]
  match = _IN_LAYER.fullmatch(stored)
  part = match and (_LAYER | dict(known.norms)).get(match[2])
  if part:
    return f'model.layers.{match[1]}.{part}.{match[3]}'
  return None


def restored(
  name: str, array: np.ndarray, known: Architecture, config: Mapping[str, Any]
) -> np.ndarray:
  """Undoes what the converter changed of a tensor.

  Args:
    name: of Hugging Face.
    array: as stored, dequantised.
    known: its architecture.
    config: of `config_json`.
  """
  module = name.rsplit('.', 2)[-2]
  if known.norm_offset and module.endswith('norm'):
    return array - np.asarray(known.norm_offset, array.dtype)
  if known.permuted and module in ('q_proj', 'k_proj'):
    heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
    count, rest = config[heads[module]], array.shape[1:]
    return (
      array.reshape(count, -1, 2, *rest).swapaxes(1, 2).reshape(array.shape)
    )
  return array


def config_json(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  vocab_size: int,
  tied: bool,
  rope_factors: np.ndarray | None = None,
) -> dict[str, Any]:
  """Returns config.json of a model.

  Args:
    path: of the file, for messages.
    metadata: of its header.
    vocab_size: V, rows of the embedding.
    tied: whether there is no output matrix.
    rope_factors: (head_dim / 2,) that divide the frequencies, if any.

  Raises:
    ModelError: of another family, a key is missing, or a rotary embedding that
      config.json cannot say.
  """
  known = architecture(path, metadata)
  data = _Metadata(path, metadata)
  heads = data.get('attention.head_count')
  config = {
    'architectures': [known.class_name],
    'model_type': known.model_type,
    'vocab_size': vocab_size,
    'hidden_size': data.get('embedding_length'),
    'intermediate_size': data.get('feed_forward_length'),
    'num_hidden_layers': data.get('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': data.get('attention.head_count_kv', heads),
    'max_position_embeddings': data.get('context_length'),
    'rms_norm_eps': data.get('attention.layer_norm_rms_epsilon'),
    'tie_word_embeddings': tied,
    'dtype': 'float32',
    'torch_dtype': 'float32',
  }
  varied = [k for k, v in config.items() if isinstance(v, np.ndarray)]
  if varied:
    raise ModelError(
      f'{path}: {", ".join(varied)} differ by layer; expected one for all.'
    )
  config |= known.extra(data, config)
  if rope_factors is not None:
    _scale_like_llama3(path, config, rope_factors)
  config |= rope_fields(config['rope_parameters'])
  ids = {
    f'{name}_token_id': metadata[f'tokenizer.ggml.{key}_token_id']
    for name, key in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))
    if f'tokenizer.ggml.{key}_token_id' in metadata
  }
  return config | ids


def _by_width(config: Mapping[str, Any]) -> float:
  return config['hidden_size'] / config['num_attention_heads']


def _layer_types(
  data: _Metadata, config: Mapping[str, Any], every: int
) -> list[str]:
  """Every so many layers, the last of them sees all."""
  pattern = data.get('attention.sliding_window_pattern', every)
  count = config['num_hidden_layers']
  if isinstance(pattern, np.ndarray):  # whether each layer slides
    sliding = [bool(x) for x in pattern]
  else:
    sliding = [bool((i + 1) % pattern) for i in range(count)]
  return ['sliding_attention' if s else 'full_attention' for s in sliding]


def _linear(data: _Metadata, theta: float) -> dict[str, Any]:
  """Rotary embedding of a file, with linear scaling if it has any."""
  kind = data.get('rope.scaling.type', 'none')
  if kind == 'none':
    return {'rope_type': 'default', 'rope_theta': theta}
  if kind != 'linear':
    raise ModelError(
      f'{data.path}: {data.architecture}.rope.scaling.type is {kind!r}; '
      'expected none or linear.'
    )
  factor = data.get('rope.scaling.factor')
  return {'rope_type': 'linear', 'rope_theta': theta, 'factor': factor}


def _scale_like_llama3(
  path: pathlib.Path, config: dict[str, Any], factors: np.ndarray
) -> None:
  """Says factors of frequencies as the parameters they were made from."""
  parameters = {
    'rope_type': 'llama3',
    'rope_theta': config['rope_parameters']['rope_theta'],
    'factor': float(np.max(factors)),
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  if not np.allclose(_llama3(parameters, len(factors)), factors, rtol=1e-3):
    raise ModelError(
      f'{path}: {ROPE_FACTORS} are not the factors of Llama 3 with factor '
      f'{parameters["factor"]:g}; expected those, which config.json can say.'
    )
  config['rope_parameters'] = parameters


def _llama3(parameters: Mapping[str, Any], count: int) -> np.ndarray:
  """Factors that divide the frequencies of a Llama 3 (its reference code)."""
  frequencies = parameters['rope_theta'] ** (-np.arange(count) / count)
  waves = 2 * math.pi / frequencies
  low, high = parameters['low_freq_factor'], parameters['high_freq_factor']
  turns = parameters['original_max_position_embeddings'] / waves
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  return 1 / ((1 - smooth) / parameters['factor'] + smooth)
