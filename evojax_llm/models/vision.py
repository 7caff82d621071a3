"""The vision side of a multimodal Gemma 3: images become soft tokens.

A SigLIP tower reads patches, and a projector pools them into soft tokens, which
stand in a prompt where text has embeddings. No search changes either, so that
an image is read once for all members.

Sources: SigLIP (arXiv 2303.15343), Gemma 3 (arXiv 2503.19786, section 2).
"""

import dataclasses
import os
import re
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from evojax_llm.models.config import ACTIVATIONS
from evojax_llm.models.config import MODEL_FOLDER
from evojax_llm.models.config_json import load_config
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import read_json
from evojax_llm.models.linear import Linear
from evojax_llm.models.linear import RMSNorm

_PROCESSOR = {
  'do_pan_and_scan': False,
  'resample': 2,  # bilinear
  'rescale_factor': 1 / 255,
  'image_mean': [0.5] * 3,
  'image_std': [0.5] * 3,
}
_TOWER = re.compile(r'(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)')
_PROJECTOR = re.compile(r'(?:model\.)?multi_modal_projector\.(.+)')


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Shape of a tower and its projector.

  Attributes:
    image_size: pixels of a side.
    patch_size: likewise of a patch.
    width: of the tower.
    ffn_dim: width of its feed-forward blocks.
    num_layers: layers of the tower.
    num_heads: heads of its attention.
    activation: as in `ModelConfig`.
    norm_eps: of its norms, and of the projector's.
    tokens: T, soft tokens of an image; a square number.
    embed_dim: D of the text model.
  """

  image_size: int
  patch_size: int
  width: int
  ffn_dim: int
  num_layers: int
  num_heads: int
  activation: str
  norm_eps: float
  tokens: int
  embed_dim: int

  def __post_init__(self):
    side = round(self.tokens**0.5)
    if side**2 != self.tokens or not self.grid or self.grid % side:
      raise ModelError(
        f'mm_tokens_per_image is {self.tokens} and the tower has '
        f'{self.grid} patches a side; expected the square of a divisor of it.'
      )
    if self.width % self.num_heads:
      raise ModelError(
        f'vision_config: num_attention_heads is {self.num_heads}; expected a '
        f'divisor of hidden_size {self.width}.'
      )

  @property
  def grid(self) -> int:
    """Patches of a side."""
    return self.image_size // self.patch_size


class _Layer(nn.Module):
  """One layer of the tower; every patch sees all of them."""

  config: VisionConfig

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    c = self.config

    def norm(name: str, y: jax.Array) -> jax.Array:
      return _layer_norm(c.norm_eps, name)(y)

    def linear(name: str, features: int, y: jax.Array) -> jax.Array:
      return Linear(features, True, name=name)(y)

    y = norm('layer_norm1', x)
    heads = (*y.shape[:2], c.num_heads, -1)
    q, k, v = (
      linear(f'{name}_proj', c.width, y).reshape(heads) for name in 'qkv'
    )
    y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = x + linear('out_proj', c.width, y)
    y = linear('fc1', c.ffn_dim, norm('layer_norm2', x))
    if c.activation == 'silu':
      y = jax.nn.silu(y)
    else:
      y = jax.nn.gelu(y, approximate=c.activation == 'gelu_tanh')
    return x + linear('fc2', c.width, y), None


def _layer_norm(eps: float, name: str) -> nn.Module:
  return nn.LayerNorm(eps, use_fast_variance=False, name=name)


class Vision(nn.Module):
  """Tower and projector: pixels (B, S, S, 3) become (B, T, D) soft tokens."""

  config: VisionConfig

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    c = self.config
    batch, grid, patch = len(pixels), c.grid, c.patch_size
    # Pixels behind the last whole patch are not read.
    x = pixels[:, : grid * patch, : grid * patch]
    x = x.reshape(batch, grid, patch, grid, patch, -1)
    x = x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, grid**2, -1)
    x = Linear(c.width, True, name='patch_embedding')(x)
    x = x + self.param(
      'position_embedding', nn.initializers.normal(0.02), (grid**2, c.width)
    )
    layers = nn.scan(
      _Layer,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=c.num_layers,
      check_constancy_invariants=False,
    )
    x, _ = layers(c, name='layers')(x, None)
    x = _layer_norm(c.norm_eps, 'post_layernorm')(x)
    side = round(c.tokens**0.5)
    x = x.reshape(batch, side, grid // side, side, grid // side, -1)
    x = x.mean((2, 4)).reshape(batch, c.tokens, -1)
    x = RMSNorm(c.norm_eps, name='soft_norm')(x)
    return Linear(c.embed_dim, name='projection')(x)


@dataclasses.dataclass(frozen=True, eq=False)
class VisionSide:
  """The vision side of a model folder, in the memory of the host.

  Attributes:
    config: its shape.
    how: images are prepared, the fields that `images.pixels` takes.
    params: of `Vision`, numpy arrays in f32.
  """

  config: VisionConfig
  how: dict[str, Any]
  params: dict[str, Any]

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> 'VisionSide':
    """Reads it; raises what `load_vision_config` and `load_vision` do."""
    config, how = load_vision_config(folder)
    return cls(config, how, load_vision(folder, config))


def load_vision_config(
  folder: str | os.PathLike,
) -> tuple[VisionConfig, dict[str, Any]]:
  """Reads the vision side of config.json, and how images are prepared.

  Returns:
    The configuration, and the fields that `images.pixels` takes.

  Raises:
    ModelError: a text model, or fields whose mathematics this does not have.
  """
  path = existing_folder(folder, MODEL_FOLDER)
  of_path = (path / 'path.safetensors').exists()
  _, hf_config = load_config(path, path=of_path)
  vision = getattr(hf_config, 'vision_config', None)
  if vision is None:
    raise ModelError(f'{path / "config.json"}: is of a model that reads text.')
  where = f'{path / "config.json"}: vision_config'
  if vision.model_type != 'siglip_vision_model':
    raise ModelError(
      f'{where}.model_type is {vision.model_type!r}; expected '
      "'siglip_vision_model'."
    )
  if vision.hidden_act not in ACTIVATIONS or vision.num_channels != 3:
    raise ModelError(
      f'{where}: hidden_act is {vision.hidden_act!r} and num_channels '
      f'{vision.num_channels}; expected one of {sorted(ACTIVATIONS)}, and 3.'
    )
  sizes = {
    name: getattr(vision, name)
    for name in (
      *('image_size', 'patch_size', 'hidden_size', 'intermediate_size'),
      *('num_hidden_layers', 'num_attention_heads'),
    )
  }
  sizes['mm_tokens_per_image'] = hf_config.mm_tokens_per_image
  for name, value in sizes.items():
    if type(value) is not int or value < 1:
      raise ModelError(f'{where}: {name} is {value!r}; expected a number >= 1.')
  try:
    config = VisionConfig(
      *list(sizes.values())[:6],
      ACTIVATIONS[vision.hidden_act],
      vision.layer_norm_eps,
      sizes['mm_tokens_per_image'],
      hf_config.get_text_config().hidden_size,
    )
  except ModelError as error:
    raise ModelError(f'{where}: {error}') from error
  return config, _processor(path, config)


def _processor(path: Any, config: VisionConfig) -> dict[str, Any]:
  """Reads how images are prepared, as transformers 4 and as 5 write it."""
  read: dict[str, Any] = {}
  # The second of them is that of transformers 5, and holds the first.
  for name in ('preprocessor_config.json', 'processor_config.json'):
    if os.path.lexists(path / name):
      found = read_json(path / name)
      if name.startswith('processor'):
        found = found.get('image_processor') or {}
      read |= {k: v for k, v in found.items() if v is not None}
  size = {'height': config.image_size, 'width': config.image_size}
  how = {'size': size} | _PROCESSOR | read
  if how['size'] != size or how['do_pan_and_scan']:
    raise ModelError(
      f'{path}: images are prepared with size {how["size"]} and '
      f'do_pan_and_scan {how["do_pan_and_scan"]!r} (preprocessor_config.json '
      f'or processor_config.json); expected {size}, and false.'
    )
  return {name: how[name] for name in ('size', *_PROCESSOR)}


def load_vision(
  folder: str | os.PathLike, config: VisionConfig
) -> dict[str, Any]:
  """Loads the parameters of `Vision` from a model folder.

  Returns:
    Numpy arrays in f32.

  Raises:
    ModelError: a tensor that is missing, misshapen, not finite or no float.
  """
  init = jax.eval_shape(
    Vision(config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), 'f4'),
  )['params']
  with TensorFiles.of_model(existing_folder(folder, MODEL_FOLDER)) as files:
    stored = {}
    for name in files.names:
      for pattern, part in ((_TOWER, ''), (_PROJECTOR, 'projector.')):
        if match := pattern.fullmatch(name):
          stored[part + match[1]] = name

    def read(name: str, change=lambda x: x) -> np.ndarray:
      if name not in stored:
        raise ModelError(
          f'{files.path}: has no tensor {name} of the vision side (there are '
          f'{listing(stored) or "none"}); expected the whole multimodal model.'
        )
      files.dtype(stored[name])
      array = files.read(stored[name]).astype(np.float32)
      files.check_finite(stored[name], array)
      return change(array)

    def module(name: str) -> dict[str, np.ndarray]:
      if 'norm' in name:
        return {'scale': read(f'{name}.weight'), 'bias': read(f'{name}.bias')}
      return {
        'kernel': read(f'{name}.weight', lambda x: x.reshape(len(x), -1).T),
        'bias': read(f'{name}.bias'),
      }

    layers = [
      {
        name: module(f'encoder.layers.{i}.{block}{name}')
        for block, names in (
          ('', ('layer_norm1', 'layer_norm2')),
          ('self_attn.', ('q_proj', 'k_proj', 'v_proj', 'out_proj')),
          ('mlp.', ('fc1', 'fc2')),
        )
        for name in names
      }
      for i in range(config.num_layers)
    ]
    params = {
      'patch_embedding': module('embeddings.patch_embedding'),
      'position_embedding': read('embeddings.position_embedding.weight'),
      'layers': jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
      'post_layernorm': module('post_layernorm'),
      'soft_norm': {'scale': read('projector.mm_soft_emb_norm.weight')},
      'projection': {'kernel': read('projector.mm_input_projection_weight')},
    }
  for (path, leaf), expected in zip(
    jax.tree.leaves_with_path(params), jax.tree.leaves(init), strict=True
  ):
    if leaf.shape != expected.shape:
      raise ModelError(
        f'{files.path}: {jax.tree_util.keystr(path)} of the vision side has '
        f'shape {leaf.shape}; config.json expects {expected.shape}.'
      )
  return params
