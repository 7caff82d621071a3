"""config.json of a model folder, read and checked."""

import os
import reprlib
from typing import Any

from evojax_llm.models import families
from evojax_llm.models.config import LAYER_TYPES
from evojax_llm.models.config import MODEL_FOLDER
from evojax_llm.models.config import PATH
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import import_transformers
from evojax_llm.models.folders import read_json

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
  'global_head_dim': (int, 2, _INT32),
  'num_kv_shared_layers': (int, 0, 10_000),
  'max_position_embeddings': (int, 1, _INT32),
  'num_labels': (int, 0, 1_000_000),
  'query_pre_attn_scalar': (float, 1e-6, 1e9),
  'rms_norm_eps': (float, 0, 1),
}
_NUMBERS_OR_NULL = {
  'sliding_window': (int, 1, _INT32),
  'num_global_key_value_heads': (int, 1, _INT32),
  'hidden_size_per_layer_input': (int, 0, _INT32),
  'vocab_size_per_layer_input': (int, 1, _INT32),
  'partial_rotary_factor': (float, 0, 1),
  'sliding_window_pattern': (int, 1, _INT32),
  '_sliding_window_pattern': (int, 1, _INT32),
  'attn_logit_softcapping': (float, 1e-6, 1e9),
  'final_logit_softcapping': (float, 1e-6, 1e9),
  'rope_theta': (float, 1, 1e12),
  'rope_local_base_freq': (float, 1, 1e12),
  'factor': (float, 1e-6, 1e9),
}


def load_config(
  folder: str | os.PathLike, path: bool = False
) -> tuple[ModelConfig, Any]:
  """Reads config.json through transformers' AutoConfig.

  Args:
    folder: a folder of a family; of a multimodal model the text part is read.
    path: whether it is a folder of `path_files`, of whose layers the model is.

  Returns:
    The configuration, and the transformers configuration it was read from.

  Raises:
    ModelError: no folder or file, broken JSON, a field out of range, another
      or a quantised model.
  """
  file = existing_folder(folder, MODEL_FOLDER) / 'config.json'
  raw = read_json(file)
  known = (*families.FAMILIES, *families.MULTIMODAL)
  kind = raw.get('model_type')
  if path:
    known = tuple(model_type + PATH for model_type in known)
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
    return families.config_from_hf(hf_config), hf_config
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


def rope_fields(parameters: dict[str, Any]) -> dict[str, Any]:
  """Returns rotary embeddings as transformers 5 and as 4 spell them.

  Of the other's spelling each reads nothing, and takes its defaults.

  Args:
    parameters: of transformers 5, of all layers or by type of layer.
  """
  sliding = parameters.get('sliding_attention')
  full = parameters.get('full_attention') or sliding or parameters
  if full.get('rope_type') == 'proportional':  # Of no model that 4 knows.
    return {'rope_parameters': parameters}
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
