"""The fields of a Hugging Face Gemma configuration that define the model.

`GemmaConfig` is hashable: a static argument of jitted functions and a field of
Flax modules. `config_from_hf` refuses what the forward pass does not have.
"""

import dataclasses
from typing import Any

from evojax_llm.models.errors import ModelError

MODEL_TYPES = ('gemma', 'gemma2', 'gemma3_text')
LAYER_TYPES = ('full_attention', 'sliding_attention')
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
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
        f'model_type is {self.model_type!r}; expected one of {MODEL_TYPES}.'
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
  model_type = text.model_type
  if model_type not in MODEL_TYPES:
    raise ModelError(
      f'model_type is {model_type!r}; expected a Gemma 1, 2 or 3 text model '
      f'({", ".join(MODEL_TYPES)}).'
    )
  if getattr(text, 'attention_bias', False):
    raise ModelError('attention_bias is true; only Gemma without it is known.')
  if getattr(text, 'use_bidirectional_attention', None):
    raise ModelError(
      'use_bidirectional_attention is set; only causal models are known.'
    )
  if not getattr(text, 'tie_word_embeddings', True):
    raise ModelError(
      'tie_word_embeddings is false; Gemma ties the embedding and the output.'
    )
  activation = (
    text.hidden_act if model_type == 'gemma' else text.hidden_activation
  )
  if activation not in ACTIVATIONS:
    raise ModelError(
      f'activation is {activation!r}; expected one of {sorted(ACTIVATIONS)}.'
    )
  num_layers = text.num_hidden_layers
  head_dim = text.head_dim
  gemma1 = model_type == 'gemma'
  layer_types = getattr(text, 'layer_types', None)
  if gemma1 or layer_types is None:
    layer_types = ('full_attention',) * num_layers
  rope_full, rope_sliding = _ropes(text)
  return GemmaConfig(
    model_type=model_type,
    vocab_size=text.vocab_size,
    num_layers=num_layers,
    embed_dim=text.hidden_size,
    ffn_dim=text.intermediate_size,
    num_heads=text.num_attention_heads,
    num_kv_heads=text.num_key_value_heads,
    head_dim=head_dim,
    query_pre_attn_scalar=float(
      head_dim if gemma1 else text.query_pre_attn_scalar
    ),
    # Gemma 3's configuration has the field; its forward pass ignores it.
    attn_softcap=(
      text.attn_logit_softcapping if model_type == 'gemma2' else None
    ),
    final_softcap=None if gemma1 else text.final_logit_softcapping,
    sliding_window=None if gemma1 else text.sliding_window,
    layer_types=tuple(layer_types),
    rope_full=rope_full,
    rope_sliding=rope_sliding,
    activation=ACTIVATIONS[activation],
    norm_eps=text.rms_norm_eps,
    post_norms=not gemma1,
    qk_norm=model_type == 'gemma3_text',
    max_position_embeddings=text.max_position_embeddings,
  )


def _ropes(text: Any) -> tuple[Rope, Rope]:
  """Rotary embeddings of full and of sliding layers."""
  parameters = text.rope_parameters
  if any(t in parameters for t in LAYER_TYPES):
    full = parameters.get('full_attention')
    sliding = parameters.get('sliding_attention')
    full, sliding = full or sliding, sliding or full
  else:
    full = sliding = parameters
  return _rope(full), _rope(sliding)


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
