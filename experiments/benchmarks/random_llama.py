"""Random model folders with Llama's names and TinyLlama's widths.

They are written tensor by tensor and file by file, and need no transformers.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

_TYPES = {'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}


def shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
  """Shapes of all tensors, by name; those of TinyLlama at width 2048."""
  hidden, keys, words = 11 * width // 4, width // 8, min(32_000, 16 * width)
  layer = {
    'input_layernorm': (width,),
    'post_attention_layernorm': (width,),
    'self_attn.q_proj': (width, width),
    'self_attn.k_proj': (keys, width),
    'self_attn.v_proj': (keys, width),
    'self_attn.o_proj': (width, width),
    'mlp.gate_proj': (hidden, width),
    'mlp.up_proj': (hidden, width),
    'mlp.down_proj': (width, hidden),
  }
  return {
    'model.embed_tokens.weight': (words, width),
    **{
      f'model.layers.{n}.{name}.weight': shape
      for n in range(layers)
      for name, shape in layer.items()
    },
    'model.norm.weight': (width,),
    'lm_head.weight': (words, width),
  }


def write(
  folder: pathlib.Path,
  seed: int,
  *,
  layers: int,
  width: int,
  dtype: str,
  shards: int,
) -> None:
  """Writes a model: that of seed 0, or one a little off it.

  Args:
    folder: new.
    seed: 0 for the base of the others.
    layers: of 44 M numbers at width 2048, beside 131 M outside of them.
    width: of the model; all other widths follow.
    dtype: 'bfloat16' or 'float32'.
    shards: files.
  """
  folder.mkdir(parents=True)
  found = list(enumerate(shapes(layers, width).items()))
  where = {}
  for i in range(shards):
    name = f'model-{i + 1:05d}-of-{shards:05d}.safetensors'
    # Neighbours share a file, as they do in published folders.
    part = found[len(found) * i // shards : len(found) * (i + 1) // shards]
    tensors = {}
    for position, (key, shape) in part:
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
    'hidden_size': width,
    'intermediate_size': 11 * width // 4,
    'num_attention_heads': 32,
    'num_key_value_heads': 4,
    'num_hidden_layers': layers,
    'vocab_size': min(32_000, 16 * width),
    'tie_word_embeddings': False,
    'torch_dtype': dtype,
  }
  (folder / 'config.json').write_text(json.dumps(config))


def _drawn(seed, position, shape):
  generator = np.random.default_rng([seed, position])
  return 0.02 * generator.standard_normal(shape, np.float32)
