"""Random model folders of a few layers, with the names of several families."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from tests import tiny

WIDTH, INNER, WORDS = 8, 12, 16
_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
_SHAPES = {
  'self_attn.q_proj.weight': (WIDTH, WIDTH),
  'self_attn.q_proj.bias': (WIDTH,),
  'self_attn.k_proj.weight': (4, WIDTH),
  'mlp.up_proj.weight': (INNER, WIDTH),
  'mlp.down_proj.weight': (WIDTH, INNER),
  'input_layernorm.weight': (WIDTH,),
}


def write(
  folder: pathlib.Path,
  seed: int,
  *,
  like: pathlib.Path | None = None,
  layers: int = 3,
  words: int = WORDS,
  tied: bool = False,
  vision: bool = False,
  dtype: str = 'float32',
  shards: int = 1,
  **config,
) -> pathlib.Path:
  """Writes a folder of Qwen's names; `like` gives what its weights are near."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  near = load(like) if like else {}
  shapes = {
    'model.embed_tokens.weight': (words, WIDTH),
    'model.norm.weight': (WIDTH,),
  }
  if not tied:
    shapes['lm_head.weight'] = (words, WIDTH)
  if vision:
    shapes['vision_tower.encoder.layers.0.mlp.fc1.weight'] = (6, 5)
  for n in range(layers):
    shapes |= {f'model.layers.{n}.{k}': s for k, s in _SHAPES.items()}
  tensors = {
    name: (
      near.get(name, np.zeros(shape, np.float32)).astype(np.float32)
      + rng.normal(0, 0.3 if like else 1.0, shape)
    ).astype(_DTYPES[dtype])
    for name, shape in shapes.items()
  }
  if vision:
    tensors['vision_tower.position_ids'] = np.arange(5)[None]
  save(folder, tensors, shards)
  text = {
    'model_type': 'qwen2',
    'architectures': ['Qwen2ForCausalLM'],
    'num_hidden_layers': layers,
    'hidden_size': WIDTH,
    'vocab_size': words,
    'tie_word_embeddings': tied,
    'torch_dtype': dtype,
    **config,
  }
  (folder / 'config.json').write_text(json.dumps(text))
  (folder / 'special_tokens_map.json').write_text('{"pad_token": "<pad>"}')
  vocab = {f't{i}': i for i in range(words)}
  tokenizer = {'model': {'type': 'BPE', 'vocab': vocab}, 'added_tokens': []}
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  return folder


def write_gemma(folder: pathlib.Path, seed: int, **options) -> pathlib.Path:
  """Writes a Gemma-2 folder of three layers."""
  return tiny.write_gemma(
    folder, 'gemma2', seed=seed, num_hidden_layers=3, **options
  )


def save(folder, tensors, shards=1) -> None:
  """Writes tensors into one file, or into several with an index."""
  if shards == 1:
    save_file(tensors, folder / 'model.safetensors')
    return
  where = {}
  for i in range(shards):
    name = f'model-{i + 1:05d}-of-{shards:05d}.safetensors'
    part = dict(list(tensors.items())[i::shards])
    save_file(part, folder / name)
    where |= dict.fromkeys(part, name)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': where})
  )


def load(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, in their stored types."""
  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    found |= load_file(file)
  return found
