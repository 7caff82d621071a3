"""Small models and adapters that between them use every feature.

Weights come from numpy's RandomState, whose draws never change between
releases, so that stored logits stay true without the weights beside them.
"""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.models.case_table import BF16 as BF16
from tests.models.case_table import CASES as CASES
from tests.models.case_table import E4B as E4B
from tests.models.case_table import FULL
from tests.models.case_table import SLIDING
from tests.models.case_table import Case
from tests.models.case_table import make_case
from tests.models.case_table import make_rope

DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}
LINEAR = {
  'q_proj': 'self_attn',
  'k_proj': 'self_attn',
  'v_proj': 'self_attn',
  'o_proj': 'self_attn',
  'gate_proj': 'mlp',
  'up_proj': 'mlp',
  'down_proj': 'mlp',
}
_VISION = dict(
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  image_size=8,
  patch_size=4,
)


def random_case(model_type: str, seed: int) -> Case:
  """A case with every option drawn."""
  rng = np.random.RandomState(seed)

  def draw(*values):
    return values[rng.randint(len(values))]

  kv = draw(1, 2, 3)
  heads = kv * draw(1, 2)
  layers = draw(1, 2, 4)
  options = dict(
    vocab_size=draw(47, 64),
    hidden_size=heads * draw(6, 10),
    intermediate_size=draw(16, 36),
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    head_dim=draw(4, 12, 20),
    rms_norm_eps=draw(1e-6, 1e-3),
  )
  rope = [make_rope(draw(50.0, 1e4), draw(None, 3.0)) for _ in range(2)]
  if not model_type.startswith('gemma'):
    options |= _of_llama(draw, model_type, layers) | {
      'rope_parameters': rope[0]
    }
    return make_case(f'{model_type}_random{seed}', model_type, seed, **options)
  activation = draw('gelu', 'gelu_pytorch_tanh')
  if model_type == 'gemma':
    # transformers reads 'gelu' of Gemma 1 as the tanh form.
    options |= dict(hidden_act=activation, rope_parameters=rope[0])
  else:
    options |= dict(
      hidden_activation=activation,
      query_pre_attn_scalar=draw(2, 9, 64),
      final_logit_softcapping=draw(None, 1.0, 30.0),
      sliding_window=draw(1, 2, 6),
      layer_types=[draw(FULL, SLIDING) for _ in range(layers)],
    )
    if model_type.startswith('gemma4'):
      options |= _of_gemma4(draw, model_type, layers, rope)
    elif model_type == 'gemma2':
      options |= dict(
        attn_logit_softcapping=draw(None, 0.5, 50.0), rope_parameters=rope[0]
      )
    else:
      options['rope_parameters'] = {FULL: rope[0], SLIDING: rope[1]}
  return make_case(f'{model_type}_random{seed}', model_type, seed, **options)


def _of_gemma4(
  draw: Any, model_type: str, layers: int, rope: list
) -> dict[str, Any]:
  """Options that these families have beside those of all."""
  rope[0] = make_rope(rope[0]['rope_theta']) | {
    'rope_type': 'proportional',
    'partial_rotary_factor': draw(0.25, 0.6, 1.0),
  }
  types = [draw(FULL, SLIDING) for _ in range(layers - 1)] + [FULL]
  options = dict(
    layer_types=types,
    rope_parameters={FULL: rope[0], SLIDING: rope[1]},
    attention_k_eq_v=draw(False, True),
    global_head_dim=draw(8, 12, 20),
    num_global_key_value_heads=draw(None, 1),
    use_double_wide_mlp=draw(False, True),
  )
  most = max(i for i in range(layers) if set(types[: layers - i]) == set(types))
  options['num_kv_shared_layers'] = draw(0, most)
  if model_type == 'gemma4_text':
    # transformers knows no shared keys without this.
    width = 5 if options['num_kv_shared_layers'] else draw(0, 5)
    options |= dict(
      hidden_size_per_layer_input=width, vocab_size_per_layer_input=64
    )
  return options


def _of_llama(draw: Any, model_type: str, layers: int) -> dict[str, Any]:
  """Options that these families have beside those of all."""
  options = dict(tie_word_embeddings=draw(False, True))
  if model_type == 'llama':
    options |= dict(
      attention_bias=draw(False, True), mlp_bias=draw(False, True)
    )
  elif model_type == 'mistral':
    options |= dict(sliding_window=draw(None, 1, 5))
  else:
    options |= dict(
      use_sliding_window=draw(False, True),
      sliding_window=draw(1, 5),
      max_window_layers=draw(0, 1, layers),
    )
  if model_type == 'qwen3':
    options |= dict(attention_bias=draw(False, True))
  return options


_CLASSES = {
  'gemma': 'Gemma',
  'gemma2': 'Gemma2',
  'gemma3_text': 'Gemma3Text',
  'gemma4_text': 'Gemma4Text',
  'gemma4_unified_text': 'Gemma4UnifiedText',
  'llama': 'Llama',
  'mistral': 'Mistral',
  'qwen2': 'Qwen2',
  'qwen3': 'Qwen3',
}


def hf_config(case: Case, dtype: str = 'float32') -> Any:
  """The transformers configuration of a case."""
  import transformers

  if case.model_type != 'gemma3':
    name = _CLASSES[case.model_type]
    made = getattr(transformers, f'{name}Config')
    config = made(**case.options, dtype=dtype)
    config.architectures = [f'{name.removesuffix("Text")}ForCausalLM']
    return config
  vocab = case.options['vocab_size']
  config = transformers.Gemma3Config(
    text_config=dict(case.options),
    vision_config=_VISION,
    mm_tokens_per_image=4,
    image_token_index=vocab - 1,
    boi_token_index=vocab - 2,
    eoi_token_index=vocab - 3,
    dtype=dtype,
  )
  config.architectures = ['Gemma3ForConditionalGeneration']
  return config


def head_dim(case: Case) -> int:
  """Width of a head."""
  o = case.options
  return o.get('head_dim') or o['hidden_size'] // o['num_attention_heads']


def _biases(case: Case) -> list[str]:
  """Linear maps that have one."""
  o, (*attention, out) = case.options, list(LINEAR)[:4]
  if case.model_type == 'qwen2':
    return attention
  return [*attention, out] * o.get('attention_bias', False) + list(LINEAR)[
    4:
  ] * o.get('mlp_bias', False)


def is_full(case: Case, layer: int) -> bool:
  """Whether a layer of a Gemma 4 sees all keys."""
  kinds = case.options.get('layer_types')
  return case.model_type.startswith('gemma4') and kinds[layer] == FULL


def shares_keys(case: Case, layer: int) -> bool:
  """Whether a layer sees the keys of another one."""
  o = case.options
  return layer >= o['num_hidden_layers'] - o.get('num_kv_shared_layers', 0)


def linear_shapes(case: Case, layer: int = 0) -> dict[str, tuple[int, int]]:
  """(out, in) of each linear weight of a layer."""
  o = case.options
  d, f, head = o['hidden_size'], o['intermediate_size'], head_dim(case)
  kv = o['num_key_value_heads']
  absent = []
  if is_full(case, layer):
    head = o['global_head_dim']
    if o.get('attention_k_eq_v'):
      absent = ['v_proj']
      kv = o['num_global_key_value_heads'] or kv
  if shares_keys(case, layer):
    absent = ['k_proj', 'v_proj']
    f *= 1 + o.get('use_double_wide_mlp', False)
  q, kv = o['num_attention_heads'] * head, kv * head
  shapes = {
    'q_proj': (q, d),
    'k_proj': (kv, d),
    'v_proj': (kv, d),
    'o_proj': (d, q),
    'gate_proj': (f, d),
    'up_proj': (f, d),
    'down_proj': (d, f),
  }
  return {name: s for name, s in shapes.items() if name not in absent}


def tensors(case: Case) -> dict[str, np.ndarray]:
  """Stored names, without a prefix, and f32 weights of the text model.

  They are large enough that attention and logits are far from uniform.
  """
  rng = np.random.RandomState(case.seed)
  o = case.options
  d = o['hidden_size']
  gemma = case.model_type.startswith('gemma')
  offset = gemma and not case.model_type.startswith('gemma4')
  norms = ['input_layernorm', 'post_attention_layernorm']
  if gemma and case.model_type != 'gemma':
    norms += ['pre_feedforward_layernorm', 'post_feedforward_layernorm']
  shapes = {'embed_tokens': (o['vocab_size'], d), 'norm': (d,)}
  for layer in range(o['num_hidden_layers']):
    for name, shape in linear_shapes(case, layer).items():
      shapes[f'layers.{layer}.{LINEAR[name]}.{name}'] = shape
    for name in norms:
      shapes[f'layers.{layer}.{name}'] = (d,)
    if case.model_type.startswith(('gemma3', 'gemma4', 'qwen3')):
      for name in ('q_norm', 'k_norm')[: 2 - shares_keys(case, layer)]:
        width = o['global_head_dim'] if is_full(case, layer) else head_dim(case)
        shapes[f'layers.{layer}.self_attn.{name}'] = (width,)
    if p := o.get('hidden_size_per_layer_input'):
      shapes[f'layers.{layer}.per_layer_input_gate'] = (p, d)
      shapes[f'layers.{layer}.per_layer_projection'] = (d, p)
      shapes[f'layers.{layer}.post_per_layer_input_norm'] = (d,)
  if p:
    inputs = o['num_hidden_layers'] * p
    shapes['embed_tokens_per_layer'] = (o['vocab_size_per_layer_input'], inputs)
    shapes['per_layer_model_projection'] = (inputs, d)
    shapes['per_layer_projection_norm'] = (p,)
  out = {}
  for name, shape in shapes.items():
    if name.startswith('embed_tokens'):
      sigma = 0.4
    else:
      sigma = 1.5 / shape[1] ** 0.5 if len(shape) == 2 else 0.3
    draw = rng.standard_normal(shape) * sigma
    # Gemma's norms are stored around 0, those of others around 1.
    # Gemma 4 does as others.
    draw += len(shape) == 1 and not offset
    out[f'{name}.weight'] = draw.astype(np.float32)
  if not (gemma or o.get('tie_word_embeddings')):
    draw = rng.standard_normal((o['vocab_size'], d)) * 0.4
    out['lm_head.weight'] = draw.astype(np.float32)
  if case.model_type.startswith('gemma4'):
    for layer in range(o['num_hidden_layers']):
      scalar = 1 + rng.standard_normal(1) * 0.2
      out[f'layers.{layer}.layer_scalar'] = scalar.astype(np.float32)
  for layer in range(o['num_hidden_layers']):
    for name in _biases(case):
      draw = rng.standard_normal(linear_shapes(case)[name][0]) * 0.3
      key = f'layers.{layer}.{LINEAR[name]}.{name}.bias'
      out[key] = draw.astype(np.float32)
  return out


def stored_name(case: Case, name: str) -> str:
  """The name of a tensor of `tensors` in a folder."""
  if name == 'lm_head.weight':
    return name
  return PREFIX.get(case.model_type, 'model.') + name


PREFIX = {'gemma3': 'language_model.model.'}


def write_model(
  folder: pathlib.Path, case: Case, dtype: str = 'float32'
) -> pathlib.Path:
  """Writes a case as a folder, without torch."""
  folder.mkdir(parents=True, exist_ok=True)
  hf_config(case, dtype).save_pretrained(folder)
  stored = {
    stored_name(case, name): tensor.astype(DTYPES[dtype])
    for name, tensor in tensors(case).items()
  }
  if case.model_type == 'gemma3':
    stored['multi_modal_projector.mm_soft_emb_norm.weight'] = np.zeros(
      16, DTYPES[dtype]
    )
  save_file(stored, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


ADAPTER = dict(
  r=3,
  lora_alpha=5,
  target_modules=['q_proj', 'v_proj', 'down_proj'],
  rank_pattern={'v_proj': 5},
  alpha_pattern={r'layers\.1\.mlp\.down_proj': 2, 'q_proj': 7},
  use_rslora=True,
)


def write_adapter(
  folder: pathlib.Path, case: Case, seed: int = 0, **options
) -> pathlib.Path:
  """Writes the adapter `ADAPTER` of a case as a folder, without PEFT."""
  folder.mkdir(parents=True, exist_ok=True)
  raw = dict(
    peft_type='LORA',
    task_type='CAUSAL_LM',
    bias='none',
    base_model_name_or_path=case.name,
    fan_in_fan_out=False,
    inference_mode=True,
    **(ADAPTER | options),
  )
  if case.model_type == 'gemma3':
    raw['exclude_modules'] = '.*vision_tower.*'
  (folder / 'adapter_config.json').write_text(json.dumps(raw))
  rng = np.random.RandomState(case.seed + 100 + seed)
  prefix = 'language_model.' if case.model_type == 'gemma3' else ''
  stored = {}
  for layer in range(case.options['num_hidden_layers']):
    for name in raw['target_modules']:
      if name not in linear_shapes(case, layer):
        continue
      d_out, d_in = linear_shapes(case, layer)[name]
      rank = raw['rank_pattern'].get(name, raw['r'])
      key = (
        f'base_model.model.model.{prefix}layers.{layer}.{LINEAR[name]}.{name}'
      )
      for factor, shape in (('A', (rank, d_in)), ('B', (d_out, rank))):
        draw = rng.standard_normal(shape) / shape[1] ** 0.5
        stored[f'{key}.lora_{factor}.weight'] = draw.astype(np.float32)
  save_file(stored, folder / 'adapter_model.safetensors')
  return folder


def tokens(case: Case, batch: int = 2, length: int = 13) -> np.ndarray:
  """(B, T) i32 random tokens, none of them special."""
  rng = np.random.RandomState(case.seed + 1000)
  vocab = case.options['vocab_size'] - 3  # the last three may stand for images.
  return rng.randint(3, vocab, (batch, length)).astype(np.int32)
