"""The fields of a Hugging Face Gemma configuration that define the model.

`GemmaConfig` is hashable: a static argument of jitted functions and a field of
Flax modules. What the forward pass does not have is refused.
"""

import dataclasses
import os
import reprlib
from typing import Any

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import read_json

MODEL_FOLDER = 'a Gemma folder in Hugging Face layout'
MODEL_TYPES = ('gemma', 'gemma2', 'gemma3_text')
# Ends the model_type of a folder of `path_files`.
PATH = '_path'
LAYER_TYPES = ('full_attention', 'sliding_attention')
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
}

_INT32 = 2**31 - 1
# Kind, least and most of the numbers in config.json. They are looked at before
# transformers sees them: it takes most, and works for hours on some.
_NUMBERS = {
  'vocab_size': (int, 1, _INT32),
  'hidden_size': (int, 1, _INT32),
  'intermediate_size': (int, 1, _INT32),
  'num_hidden_layers': (int, 1, 10_000),
  'num_attention_heads': (int, 1, _INT32),
  'num_key_value_heads': (int, 1, _INT32),
  'head_dim': (int, 2, _INT32),
  'max_position_embeddings': (int, 1, _INT32),
  'num_labels': (int, 0, 1_000_000),
  'query_pre_attn_scalar': (float, 1e-6, 1e9),
  'rms_norm_eps': (float, 0, 1),
}
_NUMBERS_OR_NULL = {
  'sliding_window': (int, 1, _INT32),
  'sliding_window_pattern': (int, 1, _INT32),
  '_sliding_window_pattern': (int, 1, _INT32),
  'attn_logit_softcapping': (float, 1e-6, 1e9),
  'final_logit_softcapping': (float, 1e-6, 1e9),
  'rope_theta': (float, 1, 1e12),
  'rope_local_base_freq': (float, 1, 1e12),
  'factor': (float, 1e-6, 1e9),
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding of one layer type.

  Attributes:
    base: wavelength base (`rope_theta`).
    factor: divides the positions (`linear` scaling); 1 for none.
  """

  base: float = 10_000.0
  factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """Shape and mathematics of one Gemma 1, 2 or 3 text model.

  Attributes:
    model_type: 'gemma', 'gemma2' or 'gemma3_text'.
    vocab_size: V.
    num_layers: L.
    embed_dim: D.
    ffn_dim: F.
    num_heads: H, query heads.
    num_kv_heads: key and value heads; divides H.
    head_dim: width of one head; need not be D / H.
    query_pre_attn_scalar: its power -1/2 multiplies the scores.
    attn_softcap: c in c * tanh(scores / c), or None.
    final_softcap: the same for logits, or None.
    sliding_window: keys that a sliding layer sees, the query's included.
    layer_types: (L,) of 'full_attention' and 'sliding_attention'.
    rope_full: rotary embedding of full layers.
    rope_sliding: rotary embedding of sliding layers.
    activation: 'gelu' (exact) or 'gelu_tanh'.
    norm_eps: added to the mean square in RMSNorm.
    post_norms: whether norms follow attention and MLP too (Gemma 2 and 3).
    qk_norm: whether query and key heads are normalised (Gemma 3).
    max_position_embeddings: longest context the model was made for.
  """

  model_type: str
  vocab_size: int
  num_layers: int
  embed_dim: int
  ffn_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  query_pre_attn_scalar: float
  attn_softcap: float | None
  final_softcap: float | None
  sliding_window: int | None
  layer_types: tuple[str, ...]
  rope_full: Rope
  rope_sliding: Rope
  activation: str
  norm_eps: float
  post_norms: bool
  qk_norm: bool
  max_position_embeddings: int

  def __post_init__(self):
    if self.model_type not in MODEL_TYPES:
      raise ModelError(
        f'model_type is {self.model_type!r}; expected a Gemma 1, 2 or 3 text '
        f'model ({", ".join(MODEL_TYPES)}).'
      )
    if len(self.layer_types) != self.num_layers:
      raise ModelError(
        f'layer_types names {len(self.layer_types)} layers; '
        f'num_hidden_layers is {self.num_layers}.'
      )
    unknown = set(self.layer_types) - set(LAYER_TYPES)
    if unknown:
      raise ModelError(
        f'layer_types has {sorted(unknown)}; expected only {LAYER_TYPES}.'
      )
    if self.num_heads % self.num_kv_heads:
      raise ModelError(
        f'num_attention_heads is {self.num_heads}, which num_key_value_heads '
        f'{self.num_kv_heads} does not divide.'
      )
    if 'sliding_attention' in self.layer_types and not self.sliding_window:
      raise ModelError(
        'layer_types has sliding_attention but sliding_window is '
        f'{self.sliding_window!r}; expected a positive number of tokens.'
      )
    if self.head_dim % 2:
      raise ModelError(
        f'head_dim is {self.head_dim}; rotary embedding needs an even one.'
      )

  @property
  def num_params(self) -> int:
    """Number of parameters of the text model; the embedding counts once."""
    d, f, h = self.embed_dim, self.ffn_dim, self.head_dim
    attention = 2 * d * h * (self.num_heads + self.num_kv_heads)
    norms = (4 if self.post_norms else 2) * d + (2 * h if self.qk_norm else 0)
    layer = attention + 3 * d * f + norms
    return self.vocab_size * d + self.num_layers * layer + d

  def linear_shapes(self) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns (in, out) of each linear map, by (block, projection)."""
    d, f = self.embed_dim, self.ffn_dim
    q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
    return {
      ('self_attn', 'q_proj'): (d, q),
      ('self_attn', 'k_proj'): (d, kv),
      ('self_attn', 'v_proj'): (d, kv),
      ('self_attn', 'o_proj'): (q, d),
      ('mlp', 'gate_proj'): (d, f),
      ('mlp', 'up_proj'): (d, f),
      ('mlp', 'down_proj'): (f, d),
    }


def load_config(
  folder: str | os.PathLike, path: bool = False
) -> tuple[GemmaConfig, Any]:
  """Reads config.json through transformers' AutoConfig.

  Args:
    folder: a Gemma 1, 2 or 3 folder; of a multimodal Gemma 3 the text part is
      read.
    path: whether it is a folder of `path_files`, of whose layers the model is.

  Returns:
    The configuration, and the transformers configuration it was read from.

  Raises:
    ModelError: no folder or file, broken JSON, a field out of range, another
      or a quantised model.
  """
  file = existing_folder(folder, MODEL_FOLDER) / 'config.json'
  raw = read_json(file)
  known, kind = (*MODEL_TYPES, 'gemma3'), raw.get('model_type')
  if path:
    known = tuple(model_type + PATH for model_type in MODEL_TYPES)
  if kind not in known:
    hint = ''
    if 'peft_type' in raw:
      hint = (
        ' This is an adapter folder; give it as an expert, not as the base.'
      )
    elif str(kind).endswith(PATH):
      hint = (
        ' This is a path through layers, which score and generate take; export '
        'it with --merged for a plain model.'
      )
    raise ModelError(
      f'{file}: model_type is {kind!r}; expected one of '
      f'{", ".join(known)}.{hint}'
    )
  if raw.get('quantization_config'):
    raise ModelError(
      f'{file}: quantization_config is set; expected plain float weights. '
      'Convert them back first.'
    )
  _check_fields(raw, f'{file}:')
  if raw.get('text_config') is not None:
    _check_fields(raw['text_config'], f'{file}: text_config:')
  auto = import_transformers().AutoConfig
  try:
    if path:
      raw = {**raw, 'model_type': kind.removesuffix(PATH)}
      hf_config = type(auto.for_model(raw['model_type'])).from_dict(raw)
    else:
      hf_config = auto.from_pretrained(
        file.parent, local_files_only=True, trust_remote_code=False
      )
    return config_from_hf(hf_config), hf_config
  except Exception as error:
    # transformers' messages have many lines.
    raise ModelError(f'{file}: {" ".join(str(error).split())}') from error


def _check_fields(raw: Any, where: str) -> None:
  """Refuses numbers, ropes and layer types of a wrong type or out of range."""
  if not isinstance(raw, dict):
    raise ModelError(f'{where} is {reprlib.repr(raw)}; expected an object.')
  for field, (kind, low, high) in (_NUMBERS | _NUMBERS_OR_NULL).items():
    value = raw.get(field)
    if field not in raw or (value is None and field in _NUMBERS_OR_NULL):
      continue
    right = isinstance(value, int if kind is int else int | float)
    if not right or isinstance(value, bool) or not low <= value <= high:
      raise ModelError(
        f'{where} {field} is {reprlib.repr(value)}; expected a '
        f'{"whole " * (kind is int)}number from {low} to {high}'
        f'{", or null" * (field in _NUMBERS_OR_NULL)}.'
      )
  types = raw.get('layer_types')
  if types is not None and not (
    isinstance(types, list) and all(isinstance(t, str) for t in types)
  ):
    raise ModelError(
      f'{where} layer_types is {reprlib.repr(types)}; expected a list of '
      f'{" and ".join(LAYER_TYPES)}.'
    )
  for field in ('rope_parameters', 'rope_scaling', *LAYER_TYPES):
    if raw.get(field) is not None:
      _check_fields(raw[field], f'{where} {field}:')


def config_from_hf(hf_config: Any) -> GemmaConfig:
  """Reads a transformers configuration.

  Args:
    hf_config: a `PretrainedConfig` of a Gemma 1, 2 or 3 model; of a multimodal
      Gemma 3 the text part is read.

  Raises:
    ModelError: for another model family, or a field whose mathematics the
      forward pass does not have.
  """
  text = hf_config.get_text_config()
  for field, wrong, why in (
    ('attention_bias', True, 'only Gemma without it is known'),
    ('use_bidirectional_attention', True, 'only causal models are known'),
    ('tie_word_embeddings', False, 'Gemma ties the embedding and the output'),
  ):
    value = getattr(text, field, None)
    if value is not None and bool(value) == wrong:
      raise ModelError(f'{field} is {value!r}; {why}.')
  gemma1 = text.model_type == 'gemma'
  activation = text.hidden_act if gemma1 else text.hidden_activation
  if activation not in ACTIVATIONS:
    raise ModelError(
      f'activation is {activation!r}; expected one of {sorted(ACTIVATIONS)}.'
    )
  layer_types = getattr(text, 'layer_types', None)
  if gemma1 or layer_types is None:
    layer_types = ('full_attention',) * text.num_hidden_layers
  rope_full, rope_sliding = _ropes(text.rope_parameters)
  return GemmaConfig(
    model_type=text.model_type,
    vocab_size=text.vocab_size,
    num_layers=text.num_hidden_layers,
    embed_dim=text.hidden_size,
    ffn_dim=text.intermediate_size,
    num_heads=text.num_attention_heads,
    num_kv_heads=text.num_key_value_heads,
    head_dim=text.head_dim,
    query_pre_attn_scalar=float(
      text.head_dim if gemma1 else text.query_pre_attn_scalar
    ),
    # Gemma 3's configuration has the field; its forward pass ignores it.
    attn_softcap=(
      text.attn_logit_softcapping if text.model_type == 'gemma2' else None
    ),
    final_softcap=None if gemma1 else text.final_logit_softcapping,
    sliding_window=None if gemma1 else text.sliding_window,
    layer_types=tuple(layer_types),
    rope_full=rope_full,
    rope_sliding=rope_sliding,
    activation=ACTIVATIONS[activation],
    norm_eps=text.rms_norm_eps,
    post_norms=not gemma1,
    qk_norm=text.model_type == 'gemma3_text',
    max_position_embeddings=text.max_position_embeddings,
  )


def rope_fields(parameters: dict[str, Any]) -> dict[str, Any]:
  """Returns rotary embeddings as transformers 5 and as 4 spell them.

  Of the other's spelling each reads nothing, and takes its defaults.

  Args:
    parameters: of transformers 5, of all layers or by type of layer.
  """
  sliding = parameters.get('sliding_attention')
  full = parameters.get('full_attention') or sliding or parameters
  scaled = full.get('rope_type', 'default') != 'default'
  rest = {k: v for k, v in full.items() if k != 'rope_theta'}
  fields = {
    'rope_parameters': parameters,
    'rope_theta': full['rope_theta'],
    'rope_scaling': rest if scaled else None,
  }
  if sliding:
    fields['rope_local_base_freq'] = sliding['rope_theta']
  return fields


def _ropes(parameters: dict[str, Any]) -> tuple[Rope, Rope]:
  """Rotary embeddings of full and of sliding layers."""
  full, sliding = (parameters.get(t) for t in LAYER_TYPES)
  return _rope(full or sliding or parameters), _rope(
    sliding or full or parameters
  )


def _rope(parameters: dict[str, Any]) -> Rope:
  kind = parameters.get('rope_type', 'default')
  if kind not in ('default', 'linear'):
    raise ModelError(
      f"rope_type is {kind!r}; expected 'default' or 'linear' scaling."
    )
  if parameters.get('partial_rotary_factor', 1.0) != 1.0:
    raise ModelError('partial_rotary_factor is not 1; Gemma rotates all.')
  factor = float(parameters['factor']) if kind == 'linear' else 1.0
  return Rope(base=float(parameters['rope_theta']), factor=factor)
