"""Random model folders of a few layers, with the names of several families."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

WIDTH, WORDS = 8, 8
_DTYPES = {
  'float32': np.float32,
  'float16': np.float16,
  'bfloat16': ml_dtypes.bfloat16,
}
_SHAPES = {
  'self_attn.q_proj.weight': (WIDTH, WIDTH),
  'self_attn.q_proj.bias': (WIDTH,),
  'self_attn.k_proj.weight': (WIDTH, WIDTH),
  'mlp.up_proj.weight': (WIDTH, WIDTH),
  'mlp.down_proj.weight': (WIDTH, WIDTH),
  'input_layernorm.weight': (WIDTH,),
}
_GEMMA = 'pre_feedforward_layernorm.weight'


def write(
  folder: pathlib.Path,
  seed: int,
  family: str = 'qwen2',
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
  """Writes random weights near those of `like`.

  Of the names of Qwen or of Gemma, which has its embedding tied and no biases.
  All matrices have one shape, so that few programs are compiled.
  """
  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  near = load(like) if like else {}
  tied = tied or family == 'gemma2'
  shapes = {
    'model.embed_tokens.weight': (words, WIDTH),
    'model.norm.weight': (WIDTH,),
  }
  if not tied:
    shapes['lm_head.weight'] = (words, WIDTH)
  if vision:
    shapes['vision_tower.encoder.layers.0.mlp.fc1.weight'] = (6, 5)
  for n in range(layers):
    own = dict(_SHAPES)
    if family == 'gemma2':
      own[_GEMMA] = own.pop('self_attn.q_proj.bias')
    shapes |= {f'model.layers.{n}.{k}': s for k, s in own.items()}
  tensors = {
    name: (
      _near(near, name, shape) + rng.normal(0, 0.3 if like else 1.0, shape)
    ).astype(_DTYPES[dtype])
    for name, shape in shapes.items()
  }
  if vision:
    tensors['vision_tower.position_ids'] = np.arange(5)[None]
  save(folder, tensors, shards)
  text = {
    'model_type': family,
    'num_hidden_layers': layers,
    'hidden_size': WIDTH,
    'vocab_size': words,
    **({} if family == 'gemma2' else {'tie_word_embeddings': tied}),
    'torch_dtype': dtype,
    **config,
  }
  (folder / 'config.json').write_text(json.dumps(text))
  (folder / 'special_tokens_map.json').write_text('{"pad_token": "<pad>"}')
  vocab = {f't{i}': i for i in range(words)}
  tokenizer = {'model': {'type': 'BPE', 'vocab': vocab}, 'added_tokens': []}
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  return folder


def _near(near, name, shape):
  found = near.get(name)
  if found is None or found.shape != shape:
    return np.zeros(shape, np.float32)
  return found.astype(np.float32)


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


def load_adapter(folder: pathlib.Path, module: str) -> dict[str, np.ndarray]:
  """A and B of a module such as 'layers.1.mlp.up_proj'."""
  tensors = load_file(folder / 'adapter_model.safetensors')
  prefix = f'base_model.model.model.{module}.lora_'
  return {x: tensors[f'{prefix}{x}.weight'] for x in 'AB'}
