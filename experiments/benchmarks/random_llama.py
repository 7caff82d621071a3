"""Random model folders with Llama's names and TinyLlama's widths.

They are written tensor by tensor and file by file, and need no transformers.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

_WIDTH, _HIDDEN, _KEYS, _WORDS = 2048, 5632, 256, 32_000
_LAYER = {
  'input_layernorm': (_WIDTH,),
  'post_attention_layernorm': (_WIDTH,),
  'self_attn.q_proj': (_WIDTH, _WIDTH),
  'self_attn.k_proj': (_KEYS, _WIDTH),
  'self_attn.v_proj': (_KEYS, _WIDTH),
  'self_attn.o_proj': (_WIDTH, _WIDTH),
  'mlp.gate_proj': (_HIDDEN, _WIDTH),
  'mlp.up_proj': (_HIDDEN, _WIDTH),
  'mlp.down_proj': (_WIDTH, _HIDDEN),
}
_TYPES = {'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
  """Shapes of all tensors, by name."""
  return {
    'model.embed_tokens.weight': (_WORDS, _WIDTH),
    **{
      f'model.layers.{n}.{name}.weight': shape
      for n in range(layers)
      for name, shape in _LAYER.items()
    },
    'model.norm.weight': (_WIDTH,),
    'lm_head.weight': (_WORDS, _WIDTH),
  }


def write(
  folder: pathlib.Path, seed: int, *, layers: int, dtype: str, shards: int
) -> None:
  """Writes a model: that of seed 0, or one a little off it.

  Args:
    folder: new.
    seed: 0 for the base of the others.
    layers: of 44 M numbers each, beside 131 M outside of them.
    dtype: 'bfloat16' or 'float32'.
    shards: files.
  """
  folder.mkdir(parents=True)
  found = list(shapes(layers).items())
  where = {}
  for i in range(shards):
    name = f'model-{i + 1:05d}-of-{shards:05d}.safetensors'
    # Neighbours share a file, as they do in published folders.
    part = found[len(found) * i // shards : len(found) * (i + 1) // shards]
    tensors = {}
    for key, shape in part:
      position = list(shapes(layers)).index(key)
      value = _drawn(0, position, shape)
      if seed:
        value += 0.1 * _drawn(seed, position, shape)
      tensors[key] = value.astype(_TYPES[dtype])
      where[key] = name
    safetensors.save_file(tensors, folder / name, {'format': 'pt'})
  index = {'metadata': {}, 'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  config = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'hidden_size': _WIDTH,
    'intermediate_size': _HIDDEN,
    'num_attention_heads': 32,
    'num_key_value_heads': 4,
    'num_hidden_layers': layers,
    'vocab_size': _WORDS,
    'tie_word_embeddings': False,
    'torch_dtype': dtype,
  }
  (folder / 'config.json').write_text(json.dumps(config))


def _drawn(seed, position, shape):
  generator = np.random.default_rng([seed, position])
  return 0.02 * generator.standard_normal(shape, np.float32)
