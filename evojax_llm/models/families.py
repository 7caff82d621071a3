"""The families of decoder-only models: how each one's config.json is read.

A family is a row of FAMILIES. What tells families apart are fields of
`ModelConfig`; nothing outside of this file and the decoder asks for a family.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from evojax_llm.models import rope
from evojax_llm.models.config import ACTIVATIONS
from evojax_llm.models.config import ATTENTION
from evojax_llm.models.config import LAYER_TYPES
from evojax_llm.models.config import MLP
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.config import Stack
from evojax_llm.models.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family differs from a Llama.

  Attributes:
    activation: field of config.json with the activation.
    norm_offset: added to the scales of norms.
    scale_embedding: whether embeddings are multiplied by sqrt(D).
    post_norms: whether norms follow attention and MLP too.
    qk_norm: whether query and key heads are normalised.
    tied: whether embedding and output must be one matrix.
    scalar: whether the scale of attention has a field of its own.
    attn_softcap: whether there is one of attention.
    final_softcap: likewise of logits.
    qkv_bias: whether q, k and v have biases, whatever config.json says.
    bias_fields: projections that have a bias where this field is true.
    windows: whether layers may see a window.
    stacks: whether layers differ in shape, with norms of values and a scale of
      attention of 1 (Gemma 4).
    part_of: the multimodal model_type whose text part the family is.
    architecture: class of transformers for that part alone.
  """

  activation: str = 'hidden_act'
  norm_offset: float = 0.0
  scale_embedding: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  tied: bool = False
  scalar: bool = False
  attn_softcap: bool = False
  final_softcap: bool = False
  qkv_bias: bool = False
  bias_fields: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  windows: bool = True
  stacks: bool = False
  part_of: str | None = None
  architecture: str | None = None


_GEMMA = Family(norm_offset=1.0, scale_embedding=True, tied=True, windows=False)
_GEMMA2 = dataclasses.replace(
  _GEMMA,
  activation='hidden_activation',
  post_norms=True,
  scalar=True,
  attn_softcap=True,
  final_softcap=True,
  windows=True,
)
_GEMMA4 = dataclasses.replace(
  _GEMMA2,
  norm_offset=0.0,
  qk_norm=True,
  scalar=False,
  attn_softcap=False,
  stacks=True,
)

FAMILIES = {
  'gemma': _GEMMA,
  'gemma2': _GEMMA2,
  # Its configuration has a soft cap of attention; its forward pass has none.
  'gemma3_text': dataclasses.replace(
    _GEMMA2,
    qk_norm=True,
    attn_softcap=False,
    part_of='gemma3',
    architecture='Gemma3ForCausalLM',
  ),
  'gemma4_text': dataclasses.replace(
    _GEMMA4, part_of='gemma4', architecture='Gemma4ForCausalLM'
  ),
  'gemma4_unified_text': dataclasses.replace(
    _GEMMA4,
    part_of='gemma4_unified',
    architecture='Gemma4UnifiedForCausalLM',
  ),
  'llama': Family(
    bias_fields={'attention_bias': ATTENTION, 'mlp_bias': MLP}, windows=False
  ),
  'mistral': Family(),
  'qwen2': Family(qkv_bias=True),
  'qwen3': Family(qk_norm=True, bias_fields={'attention_bias': ATTENTION}),
}
MODEL_TYPES = tuple(FAMILIES)
# Multimodal models of which the text part is read.
MULTIMODAL = tuple(f.part_of for f in FAMILIES.values() if f.part_of)


def config_from_hf(hf_config: Any) -> ModelConfig:
  """Reads a transformers configuration.

  Args:
    hf_config: a `PretrainedConfig` of a family; of a multimodal model the text
      part is read.

  Raises:
    ModelError: for another family, or a field whose mathematics the forward
      pass does not have.
  """
  text = hf_config.get_text_config()
  if text.model_type not in FAMILIES:
    raise ModelError(
      f'model_type is {text.model_type!r}; expected one of '
      f'{", ".join(FAMILIES)}.'
    )
  family = FAMILIES[text.model_type]
  _check_fields(text, family)
  activation = getattr(text, family.activation)
  if activation not in ACTIVATIONS:
    raise ModelError(
      f'activation is {activation!r}; expected one of {sorted(ACTIVATIONS)}.'
    )
  biases = ATTENTION[:3] if family.qkv_bias else ()
  for field, projections in family.bias_fields.items():
    if getattr(text, field, False):
      biases += projections
  first = text.per_layer_config[0] if family.stacks else text
  head_dim = getattr(first, 'head_dim', None)
  head_dim = head_dim or text.hidden_size // text.num_attention_heads
  scalar = 1.0 if family.stacks else head_dim
  layer_types, window = _windows(text, family)
  full, sliding = _ropes(text)
  return ModelConfig(
    model_type=text.model_type,
    vocab_size=text.vocab_size,
    num_layers=text.num_hidden_layers,
    embed_dim=text.hidden_size,
    ffn_dim=text.intermediate_size,
    num_heads=text.num_attention_heads,
    num_kv_heads=first.num_key_value_heads,
    head_dim=head_dim,
    query_pre_attn_scalar=float(
      text.query_pre_attn_scalar if family.scalar else scalar
    ),
    attn_softcap=text.attn_logit_softcapping if family.attn_softcap else None,
    final_softcap=(
      text.final_logit_softcapping if family.final_softcap else None
    ),
    sliding_window=window,
    layer_types=layer_types,
    rope_full=full,
    rope_sliding=sliding,
    activation=ACTIVATIONS[activation],
    norm_eps=text.rms_norm_eps,
    norm_offset=family.norm_offset,
    scale_embedding=family.scale_embedding,
    post_norms=family.post_norms,
    qk_norm=family.qk_norm,
    tied=bool(text.tie_word_embeddings),
    biases=biases,
    max_position_embeddings=text.max_position_embeddings,
    **(_of_gemma4(text) if family.stacks else {}),
  )


def _of_gemma4(text: Any) -> dict[str, Any]:
  """Fields of a configuration whose layers differ."""
  if getattr(text, 'enable_moe_block', False):
    raise ModelError(
      'enable_moe_block is true, as of Gemma 4 26B-A4B; experts within a layer '
      'are not known. Expected a dense model, such as Gemma 4 E2B, E4B, 12B or '
      '31B.'
    )
  width = getattr(text, 'hidden_size_per_layer_input', 0) or 0
  if width and text.vocab_size_per_layer_input < text.vocab_size:
    raise ModelError(
      f'vocab_size_per_layer_input is {text.vocab_size_per_layer_input}; '
      f'expected vocab_size, {text.vocab_size}, at least.'
    )
  return {
    'stacks': _stacks(text),
    'v_norm': True,
    'layer_scalar': True,
    'input_dim': width,
    'input_vocab_size': text.vocab_size_per_layer_input if width else 0,
  }


def _stacks(text: Any) -> tuple[Stack, ...]:
  """The layers by type, and by whether they have keys of their own."""
  types = text.layer_types
  own = text.num_hidden_layers - text.num_kv_shared_layers
  alone = {t for t in types[own:] if t not in types[:own]}
  if alone or own < 0:
    raise ModelError(
      f'num_kv_shared_layers is {text.num_kv_shared_layers} of '
      f'{text.num_hidden_layers} layers; expected fewer, so that each type of '
      'layers has one with keys and values.'
    )
  found: dict[str, list[Stack]] = {}
  for layer, kind in enumerate(types):
    shared, full = layer >= own, kind == LAYER_TYPES[0]
    absent = ('v_proj',) if full and text.attention_k_eq_v else ()
    name = kind.removesuffix('_attention') + '_shared' * shared
    stack = Stack(
      name=name,
      layers=(layer,),
      layer_type=kind,
      head_dim=text.per_layer_config[layer].head_dim,
      num_kv_heads=text.per_layer_config[layer].num_key_value_heads,
      ffn_dim=text.intermediate_size
      * (1 + bool(shared and text.use_double_wide_mlp)),
      absent=('k_proj', 'v_proj') if shared else absent,
    )
    found.setdefault(name, []).append(stack)
  made = []
  for name, stacks in found.items():
    layers = tuple(stack.layers[0] for stack in stacks)
    first, *others = {dataclasses.replace(s, layers=layers) for s in stacks}
    if others:
      raise ModelError(
        f'per_layer_config gives {name} layers several head_dim or '
        'num_key_value_heads; expected one of each for all layers of a type.'
      )
    made.append(first)
  return tuple(made)


def _check_fields(text: Any, family: Family) -> None:
  """Refuses what a family cannot be."""
  wrong = []
  # 'vision' is of the tokens of an image, which a text has none of.
  if getattr(text, 'use_bidirectional_attention', None) != 'vision':
    why = 'only causal models are known'
    wrong.append(('use_bidirectional_attention', True, why))
  if 'attention_bias' not in family.bias_fields:
    why = f'{text.model_type} is known without it'
    wrong.append(('attention_bias', True, why))
  if family.tied:
    why = 'Gemma ties the embedding and the output'
    wrong.append(('tie_word_embeddings', False, why))
  for field, refused, why in wrong:
    value = getattr(text, field, None)
    if value is not None and bool(value) == refused:
      raise ModelError(f'{field} is {value!r}; {why}.')


def _windows(text: Any, family: Family) -> tuple[tuple[str, ...], int | None]:
  """Types of the layers, and how many keys a sliding one sees."""
  full, sliding = LAYER_TYPES
  window = getattr(text, 'sliding_window', None) if family.windows else None
  layers = getattr(text, 'layer_types', None) if family.windows else None
  if layers is None:
    layers = (sliding if window else full,) * text.num_hidden_layers
  return tuple(layers), window


def _ropes(text: Any) -> tuple[rope.Rope, rope.Rope]:
  """Rotary embeddings of full and of sliding layers."""
  parameters = text.rope_parameters
  full, sliding = (parameters.get(t) for t in LAYER_TYPES)
  return tuple(
    rope.from_parameters(found, text.max_position_embeddings)
    for found in (
      full or sliding or parameters,
      sliding or full or parameters,
    )
  )
