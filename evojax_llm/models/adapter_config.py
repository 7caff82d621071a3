"""The configuration of a PEFT adapter, adapter_config.json.

The rules that choose modules, ranks and alphas are those of PEFT. What is set
there and not known is refused by name: it may change what the adapter computes.
"""

from collections.abc import Iterable
import dataclasses
import os
import pathlib
import re
import reprlib
import time
from typing import Any

import regex

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import read_json

# Fields that are read, or that are about training and files only.
_KNOWN = frozenset(
  """
  alpha_pattern auto_mapping base_model_name_or_path bias corda_config
  ensure_weight_tying eva_config exclude_modules inference_mode
  init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha
  lora_dropout lora_ga_config megatron_config megatron_core merge_weights
  peft_type peft_version qalora_group_size r rank_pattern revision
  runtime_config target_modules task_type use_rslora velora_config
  """.split()
)
# Fields that change the mathematics when set, and what to do about each.
_REFUSED = {
  'use_dora': 'DoRA; merge the adapter into its base instead',
  'use_qalora': 'QA-LoRA; train a plain LoRA',
  'lora_bias': 'a bias beside lora_B; train without it',
  'modules_to_save': 'whole modules trained beside LoRA; train without them',
  'fan_in_fan_out': 'weights stored as (in, out), which no linear map here has',
  'layer_replication': 'a base with other layers; write that base out first',
  'trainable_token_indices': 'trained embeddings; train without them',
  'target_parameters': 'LoRA on bare parameters; target linear modules',
  'alora_invocation_tokens': 'aLoRA; train a plain LoRA',
  'use_bdlora': 'block-diagonal LoRA; train a plain LoRA',
  'arrow_config': 'routing between adapters; give the adapters one by one',
  'kasa_config': 'KaSA, which changes the base; train a plain LoRA',
  'monteclora_config': 'sampled adapters; train a plain LoRA',
}
# Initialisations that subtract the first adapter from the base weights.
_CHANGES_BASE = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')
# Patterns may backtrack for ever; all of a file have so long together.
_SECONDS = 5.0
_MOST_PATTERNS = 2_000


@dataclasses.dataclass(frozen=True)
class PeftConfig:
  """What an adapter_config.json says of modules, ranks and scales.

  Attributes:
    path: the file.
    raw: all of it.
    ranks: r by compiled pattern of module names.
    alphas: likewise lora_alpha.
    deadline: when matching patterns has taken too long.
  """

  path: pathlib.Path
  raw: dict[str, Any]
  ranks: dict[Any, int]
  alphas: dict[Any, float]
  deadline: float

  def rank_and_alpha(self, module: str) -> tuple[int, float]:
    """PEFT's rule: the first pattern that matches an end of the name."""
    return tuple(
      next(value for p, value in table.items() if self._matches(p, module))
      for table in (self.ranks, self.alphas)
    )

  def targets(self, modules: Iterable[str]) -> set[str] | None:
    """Those modules that the file names as adapted; None if it does not."""
    target = self.raw.get('target_modules')
    if target is None or target == 'all-linear':
      # PEFT resolves both against the model before it saves.
      return None
    return {m for m in modules if self._is_target(target, m)}

  def _is_target(self, target: str | list[str], module: str) -> bool:
    exclude = self.raw.get('exclude_modules')
    if exclude and self._names(exclude, module):
      return False
    if not self._names(target, module):
      return False
    layers = self.raw.get('layers_to_transform')
    if isinstance(target, str) or layers in (None, []):
      return True
    for pattern in _layer_patterns(self.raw) or [r'[^.]*']:
      pattern = regex.compile(rf'(?:^|.*?\.){pattern}\.(\d+)\.')
      match = self._matches(pattern, module)
      if match and match.groups()[-1]:
        layer = int(match.groups()[-1])
        return layer in ([layers] if isinstance(layers, int) else layers)
    return False

  def _names(self, target: str | list[str], module: str) -> bool:
    """PEFT's rule: a string is a pattern, a list holds ends of names."""
    if isinstance(target, str):
      return bool(self._matches(regex.compile(rf'(?:{target})$'), module))
    return any(module == t or module.endswith(f'.{t}') for t in target)

  def _matches(self, pattern: Any, module: str) -> Any:
    """Matches the beginning of a name within the time that is left."""
    try:
      left = self.deadline - time.monotonic()
      if left > 0:
        return pattern.match(module, timeout=left)
    except TimeoutError:
      pass
    raise ModelError(
      f'{self.path}: matching {module} with the pattern '
      f'{reprlib.repr(pattern.pattern)} takes for ever: there are repeats '
      'within repeats, or too many patterns. Write the names of modules.'
    )


def _layer_patterns(raw: dict[str, Any]) -> list[str]:
  patterns = raw.get('layers_pattern') or []
  return [patterns] if isinstance(patterns, str) else patterns


def read_config(folder: pathlib.Path) -> PeftConfig:
  """Reads adapter_config.json.

  Raises:
    ModelError: there is none; it is not that of a plain LoRA; a field is of
      a wrong type, out of range, or set and not known.
  """
  path = folder / 'adapter_config.json'
  if not os.path.lexists(path):
    inside = sorted(p.parent for p in folder.glob('*/adapter_config.json'))
    hint = f' Did you mean {inside[0]}?' if inside else ''
    raise ModelError(
      f'{path}: no such file; expected a PEFT adapter folder.{hint}'
    )
  raw = read_json(path)

  def refuse(field: str, expected: str):
    raise ModelError(
      f'{path}: {field} is {reprlib.repr(raw.get(field))}; {expected}.'
    )

  if raw.get('peft_type') != 'LORA':
    refuse('peft_type', "expected 'LORA', the only kind that is supported")
  # Of a model without biases PEFT stores none, whatever stands here.
  if raw.get('bias') not in (None, 'none', 'all', 'lora_only'):
    refuse('bias', "expected 'none', 'all' or 'lora_only'")
  for field, value in raw.items():
    # NaN stands in no file, so that these are all that say "not set".
    if value is None or value is False or value in ({}, []):
      continue
    if field in _REFUSED:
      refuse(field, f'not supported: {_REFUSED[field]}')
    if field not in _KNOWN:
      refuse(
        field,
        'a field that is not known and may change what the adapter computes. '
        'Remove it if it does not',
      )
  if not isinstance(raw.get('use_rslora') or False, bool):
    refuse('use_rslora', 'expected true or false')
  init = raw.get('init_lora_weights')
  if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
    refuse(
      'init_lora_weights',
      'it also changes the base weights. Convert it to a plain LoRA: PEFT does '
      'so when saving with path_initial_model_for_weight_conversion',
    )
  for field in ('target_modules', 'exclude_modules', 'layers_pattern'):
    value = raw.get(field)
    texts = [value] if isinstance(value, str) else value
    if value is None:
      continue
    if not isinstance(texts, list) or {*map(type, texts)} - {str}:
      refuse(field, 'expected a list of names or a pattern')
    if isinstance(value, str) or field == 'layers_pattern':
      for pattern in texts:
        _check_pattern(path, field, pattern)
  layers = raw.get('layers_to_transform')
  for layer in layers if isinstance(layers, list) else [layers]:
    if layer is not None and type(layer) is not int:
      refuse('layers_to_transform', 'expected a number or a list of numbers')
  ranks = _patterns(path, raw, 'rank_pattern', 'r', int)
  alphas = _patterns(path, raw, 'alpha_pattern', 'lora_alpha', float)
  return PeftConfig(path, raw, ranks, alphas, time.monotonic() + _SECONDS)


def _number(
  path: pathlib.Path, raw: dict[str, Any], field: str, kind: type
) -> Any:
  """A number of the file: a positive int, or any finite float."""
  value = raw.get(field)
  right = isinstance(value, int if kind is int else int | float)
  if not right or isinstance(value, bool):
    raise ModelError(
      f'{path}: {field} is {reprlib.repr(value)}; expected a number '
      f'({"positive, whole" if kind is int else "finite"}).'
    )
  if kind is int and value <= 0:
    raise ModelError(f'{path}: {field} is {value}; expected 1 or more.')
  return kind(value)


def _patterns(
  path: pathlib.Path, raw: dict[str, Any], field: str, default: str, kind: type
) -> dict[Any, Any]:
  """A table of numbers by pattern, and last the number of all modules."""
  table = raw.get(field) or {}
  if not isinstance(table, dict) or len(table) > _MOST_PATTERNS:
    raise ModelError(
      f'{path}: {field} is {reprlib.repr(table)}; expected an object of '
      f'{_MOST_PATTERNS} patterns at most.'
    )
  last = {regex.compile(''): _number(path, raw, default, kind)}
  try:
    numbers = {p: _number(path, table, p, kind) for p in table}
  except ModelError as error:
    raise ModelError(f'{error} (in {field})') from None
  for pattern in table:
    _check_pattern(path, field, pattern)
  # Compiled once: regex remembers a few hundred only.
  wrapped = {rf'(.*\.)?({p})$': value for p, value in numbers.items()}
  return {regex.compile(p): v for p, v in wrapped.items()} | last


def _check_pattern(path: pathlib.Path, field: str, pattern: str) -> None:
  try:
    re.compile(pattern)
    regex.compile(pattern)
  except (re.error, regex.error, TypeError, OverflowError, RecursionError) as e:
    raise ModelError(
      f'{path}: {field} has {reprlib.repr(pattern)}, not a regular expression: '
      f'{e}.'
    ) from None
