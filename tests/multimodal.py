"""A random multimodal Gemma 3 of a few kilobytes, and images for it."""

import json
import os
import pathlib

import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from tests import tiny

TOKENS = {
  'boi_token': '<start_of_image>',
  'eoi_token': '<end_of_image>',
  'image_token': '<image_soft_token>',
}
VISION = dict(
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=24,
  patch_size=5,  # four patches a side, and pixels behind them
  vision_use_head=False,
)
SOFT = 4


def write_model(
  folder: str | os.PathLike, seed: int = 0, vision: dict | None = None, **text
) -> pathlib.Path:
  """Writes a model folder as transformers 4 would, without torch."""
  import transformers

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  vision = VISION | (vision or {})
  size = tiny.write_tokenizer(folder)
  text = {'vocab_size': size + len(TOKENS), 'sliding_window': 12} | text
  tiny.write_gemma(folder, 'gemma3_text', seed=seed, **text)
  _add_tokens(folder, size)
  of_text = json.loads((folder / 'config.json').read_text())
  config = transformers.Gemma3Config(
    text_config=of_text,
    vision_config=vision,
    mm_tokens_per_image=SOFT,
    boi_token_index=size,
    eoi_token_index=size + 1,
    image_token_index=size + 2,
    dtype='float32',
  )
  config.architectures = ['Gemma3ForConditionalGeneration']
  config.save_pretrained(folder)
  side = dict(height=vision['image_size'], width=vision['image_size'])
  (folder / 'preprocessor_config.json').write_text(
    json.dumps(
      {
        'image_processor_type': 'Gemma3ImageProcessor',
        'image_mean': [0.5] * 3,
        'image_std': [0.5] * 3,
        'size': side,
        'image_seq_length': SOFT,
      }
    )
  )
  (folder / 'processor_config.json').write_text(
    json.dumps({'processor_class': 'Gemma3Processor', 'image_seq_length': SOFT})
  )
  weights = load_file(folder / 'model.safetensors')
  weights = {f'language_model.{name}': x for name, x in weights.items()}
  weights |= _vision_tensors(
    vision, of_text['hidden_size'], np.random.default_rng([seed, 1])
  )
  metadata = {'format': 'pt'}
  save_file(weights, folder / 'model.safetensors', metadata=metadata)
  return folder


def _add_tokens(folder: pathlib.Path, size: int) -> None:
  raw = json.loads((folder / 'tokenizer.json').read_text())
  like = raw['added_tokens'][-1]
  for i, token in enumerate(TOKENS.values()):
    raw['added_tokens'].append({**like, 'id': size + i, 'content': token})
    raw['model']['vocab'][token] = size + i
  (folder / 'tokenizer.json').write_text(json.dumps(raw))
  path = folder / 'tokenizer_config.json'
  config = json.loads(path.read_text()) | TOKENS
  config['extra_special_tokens'] = TOKENS
  path.write_text(json.dumps(config))


def _vision_tensors(c: dict, text_width: int, rng) -> dict[str, np.ndarray]:
  """Weights large enough that images differ much."""
  d, f, patch = c['hidden_size'], c['intermediate_size'], c['patch_size']
  tower, shapes = 'vision_tower.vision_model.', {}

  def add(name: str, *shape: int) -> None:
    shapes[f'{tower}{name}.weight'] = shape
    shapes[f'{tower}{name}.bias'] = shape[:1]

  add('embeddings.patch_embedding', d, 3, patch, patch)
  grid = c['image_size'] // patch
  shapes[f'{tower}embeddings.position_embedding.weight'] = (grid**2, d)
  for i in range(c['num_hidden_layers']):
    layer = f'encoder.layers.{i}.'
    for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
      add(f'{layer}self_attn.{name}', d, d)
    add(f'{layer}mlp.fc1', f, d)
    add(f'{layer}mlp.fc2', d, f)
    add(f'{layer}layer_norm1', d)
    add(f'{layer}layer_norm2', d)
  add('post_layernorm', d)
  projector = 'multi_modal_projector.mm_'
  shapes[f'{projector}soft_emb_norm.weight'] = (d,)
  shapes[f'{projector}input_projection_weight'] = (d, text_width)
  drawn = {}
  for name, shape in shapes.items():
    scale = 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    if 'position' in name or 'projection' in name:
      scale = 0.5
    x = rng.normal(0, scale, shape)
    x += 'norm' in name and name.endswith('weight') and 'mm_' not in name
    drawn[name] = x.astype(np.float32)
  return drawn


def write_image(path: str | os.PathLike, seed: int, size=(31, 20)) -> str:
  """Writes an image of a few random blocks; returns its name."""
  from PIL import Image

  blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  picture = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
  picture.save(path)
  return pathlib.Path(path).name
