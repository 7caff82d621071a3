"""Random Gemma folders of a few kilobytes, written without torch.

The files are those that `save_pretrained` of transformers and of PEFT write:
config.json, generation_config.json, model.safetensors (or shards with an
index), tokenizer.json, tokenizer_config.json, chat_template.jinja; and
adapter_config.json with adapter_model.safetensors.
"""

import json
import math
import os
import pathlib

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

MODEL_TYPES = ('gemma', 'gemma2', 'gemma3_text')

PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN = range(6)
_SPECIAL = (
  '<pad>',
  '<eos>',
  '<bos>',
  '<unk>',
  '<start_of_turn>',
  '<end_of_turn>',
)

# What adapters of searches change: programs over their leaves are a fraction as
# large, and one matrix each of attention and MLP is left.
FEW_MODULES = ('q_proj', 'up_proj')

_ALL_MODULES = {
  'q_proj': 'self_attn',
  'k_proj': 'self_attn',
  'v_proj': 'self_attn',
  'o_proj': 'self_attn',
  'gate_proj': 'mlp',
  'up_proj': 'mlp',
  'down_proj': 'mlp',
}

_CHAT_TEMPLATE = (
  "{{ bos_token }}{% for message in messages %}{% set role = 'model' if "
  "message['role'] == 'assistant' else message['role'] %}"
  "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + "
  "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<start_of_turn>model\\n' }}{% endif %}"
)

_DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}


def write_tokenizer(folder: str | os.PathLike) -> int:
  """Writes a BPE tokenizer made as Gemma's is; returns its vocabulary size.

  Spaces become U+2581, unknown characters fall back to their bytes, and <bos>
  is put in front when special tokens are asked for.
  """
  import tokenizers
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import processors

  folder = pathlib.Path(folder)
  words = list(_SPECIAL)
  words += [f'<0x{byte:02X}>' for byte in range(256)]
  words += ['\u2581', '\n']
  words += [chr(c) for c in range(ord('!'), ord('~') + 1)]
  merges = [('t', 'h'), ('th', 'e'), ('\u2581', 'a'), ('i', 'n'), ('e', 'r')]
  words += [left + right for left, right in merges]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab={word: i for i, word in enumerate(words)},
      merges=merges,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tokenizer.normalizer = normalizers.Replace(' ', '\u2581')
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
    ]
  )
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<bos> $A',
    pair='<bos> $A <bos> $B',
    special_tokens=[('<bos>', BOS)],
  )
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(word, special=True) for word in _SPECIAL]
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  _write_json(
    folder / 'tokenizer_config.json',
    {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'pad_token': '<pad>',
      'unk_token': '<unk>',
      'clean_up_tokenization_spaces': False,
      'model_max_length': 4096,
      'padding_side': 'left',
    },
  )
  (folder / 'chat_template.jinja').write_text(_CHAT_TEMPLATE)
  return len(words)


def write_gemma(
  folder: str | os.PathLike,
  model_type: str = 'gemma2',
  *,
  dtype: str = 'float32',
  shards: int = 1,
  seed: int = 0,
  **overrides,
) -> pathlib.Path:
  """Writes a random Gemma checkpoint as transformers would save it.

  Args:
    folder: where to; made where it does not exist.
    model_type: 'gemma', 'gemma2' or 'gemma3_text'.
    dtype: of the tensors: 'float32', 'bfloat16' or 'float16'.
    shards: number of safetensors files; more than one adds an index.
    seed: of the weights.
    **overrides: keyword arguments of the transformers config class.

  Returns:
    The folder.
  """
  import transformers

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  vocab_size = write_tokenizer(folder)
  options = {
    'vocab_size': vocab_size,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 16,
    'max_position_embeddings': 256,
    'pad_token_id': PAD,
    'eos_token_id': EOS,
    'bos_token_id': BOS,
    'dtype': dtype,
  }
  if model_type == 'gemma':
    options['num_key_value_heads'] = 1
  elif model_type == 'gemma2':
    options.update(sliding_window=8, query_pre_attn_scalar=16)
  elif model_type == 'gemma3_text':
    options.update(
      sliding_window=8,
      query_pre_attn_scalar=16,
      num_hidden_layers=3,
      layer_types=[
        'sliding_attention',
        'sliding_attention',
        'full_attention',
      ],
    )
  else:
    raise ValueError(f'model_type {model_type!r} is none of {MODEL_TYPES}')
  options.update(overrides)
  classes = {
    'gemma': transformers.GemmaConfig,
    'gemma2': transformers.Gemma2Config,
    'gemma3_text': transformers.Gemma3TextConfig,
  }
  config = classes[model_type](**options)
  config.architectures = [
    {
      'gemma': 'GemmaForCausalLM',
      'gemma2': 'Gemma2ForCausalLM',
      'gemma3_text': 'Gemma3ForCausalLM',
    }[model_type]
  ]
  config.save_pretrained(folder)
  _write_json(
    folder / 'generation_config.json',
    {
      'bos_token_id': BOS,
      'eos_token_id': [EOS, END_OF_TURN],
      'pad_token_id': PAD,
    },
  )
  tensors = _random_tensors(config, np.random.default_rng(seed))
  tensors = {
    name: value.astype(_DTYPES[dtype]) for name, value in tensors.items()
  }
  _write_shards(folder, tensors, shards)
  return folder


def write_adapter(
  folder: str | os.PathLike,
  base: str | os.PathLike,
  *,
  rank: int = 4,
  alpha: float = 8,
  modules: tuple[str, ...] = tuple(_ALL_MODULES),
  seed: int = 0,
  dtype: str = 'float32',
  **overrides,
) -> pathlib.Path:
  """Writes a random LoRA adapter of `base` as PEFT would save it.

  Args:
    folder: where to; made where it does not exist.
    base: a folder that `write_gemma` wrote.
    rank: of all modules.
    alpha: PEFT's lora_alpha; the factor of B @ A is alpha / rank.
    modules: PEFT's target_modules.
    seed: of the factors.
    dtype: of the tensors.
    **overrides: further fields of adapter_config.json.

  Returns:
    The folder.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config = json.loads((pathlib.Path(base) / 'config.json').read_text())
  shapes = _linear_shapes(config)
  rng = np.random.default_rng([seed, 1])
  tensors = {}
  for layer in range(config['num_hidden_layers']):
    for module in modules:
      rows, columns = shapes[module]
      prefix = (
        f'base_model.model.model.layers.{layer}.{_ALL_MODULES[module]}.{module}'
      )
      tensors[f'{prefix}.lora_A.weight'] = rng.normal(
        0, 1 / math.sqrt(columns), (rank, columns)
      ).astype(_DTYPES[dtype])
      tensors[f'{prefix}.lora_B.weight'] = rng.normal(
        0, 0.3 / math.sqrt(rank), (rows, rank)
      ).astype(_DTYPES[dtype])
  safetensors_numpy.save_file(
    tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'}
  )
  _write_json(
    folder / 'adapter_config.json',
    {
      'peft_type': 'LORA',
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': str(base),
      'r': rank,
      'lora_alpha': alpha,
      'lora_dropout': 0.0,
      'target_modules': list(modules),
      'bias': 'none',
      'fan_in_fan_out': False,
      'inference_mode': True,
      'init_lora_weights': True,
      'use_rslora': False,
      'use_dora': False,
      'modules_to_save': None,
      'rank_pattern': {},
      'alpha_pattern': {},
      **overrides,
    },
  )
  return folder


def _linear_shapes(config: dict) -> dict[str, tuple[int, int]]:
  """(out, in) of each linear weight, as torch stores it."""
  width, ffn = config['hidden_size'], config['intermediate_size']
  queries = config['num_attention_heads'] * config['head_dim']
  keys = config['num_key_value_heads'] * config['head_dim']
  return {
    'q_proj': (queries, width),
    'k_proj': (keys, width),
    'v_proj': (keys, width),
    'o_proj': (width, queries),
    'gate_proj': (ffn, width),
    'up_proj': (ffn, width),
    'down_proj': (width, ffn),
  }


def _random_tensors(config, rng) -> dict[str, np.ndarray]:
  """Weights large enough that logits and attention are far from uniform."""
  width = config.hidden_size
  norms = ['input_layernorm', 'post_attention_layernorm']
  if config.model_type != 'gemma':
    norms += ['pre_feedforward_layernorm', 'post_feedforward_layernorm']
  tensors = {
    'model.embed_tokens.weight': rng.normal(0, 0.3, (config.vocab_size, width)),
    'model.norm.weight': rng.normal(0, 0.1, width),
  }
  shapes = _linear_shapes(config.to_dict())
  for layer in range(config.num_hidden_layers):
    prefix = f'model.layers.{layer}'
    for module, (rows, columns) in shapes.items():
      tensors[f'{prefix}.{_ALL_MODULES[module]}.{module}.weight'] = rng.normal(
        0, 1 / math.sqrt(columns), (rows, columns)
      )
    for norm in norms:
      tensors[f'{prefix}.{norm}.weight'] = rng.normal(0, 0.1, width)
    if config.model_type == 'gemma3_text':
      for norm in ('q_norm', 'k_norm'):
        tensors[f'{prefix}.self_attn.{norm}.weight'] = rng.normal(
          0, 0.1, config.head_dim
        )
  return tensors


def _write_shards(folder, tensors, shards) -> None:
  metadata = {'format': 'pt'}
  if shards == 1:
    safetensors_numpy.save_file(
      tensors, folder / 'model.safetensors', metadata=metadata
    )
    return
  names = sorted(tensors)
  weight_map = {}
  for shard in range(shards):
    file = f'model-{shard + 1:05d}-of-{shards:05d}.safetensors'
    part = {name: tensors[name] for name in names[shard::shards]}
    safetensors_numpy.save_file(part, folder / file, metadata=metadata)
    weight_map |= dict.fromkeys(part, file)
  size = sum(value.nbytes for value in tensors.values())
  _write_json(
    folder / 'model.safetensors.index.json',
    {'metadata': {'total_size': size}, 'weight_map': weight_map},
  )


def _write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n')
