"""adapter_config.json: what of it is understood, and what is refused.

The rules that pick modules, ranks and scales are those of PEFT; the scale of
a module is alpha / r, or alpha / sqrt(r) if rank-stabilised (LoRA, arXiv
2106.09685; rsLoRA, arXiv 2312.03732).
"""

from collections.abc import Iterable
import dataclasses
import math
import pathlib
import re
from typing import Any

from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import read_json

# Fields that change the mathematics when set, and what to do about each.
_REFUSED = {
  'use_dora': 'DoRA; merge the adapter into its base instead',
  'use_qalora': 'QA-LoRA; train a plain LoRA',
  'lora_bias': 'a bias beside lora_B; train without it',
  'modules_to_save': 'whole modules trained beside LoRA; train without them',
  'fan_in_fan_out': 'weights stored as (in, out), which Gemma never does',
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


@dataclasses.dataclass(frozen=True)
class PeftConfig:
  """What of an adapter_config.json is needed.

  Attributes:
    path: the file, for messages.
    r: default rank.
    alpha: default alpha.
    rank_pattern: rank by pattern of module names.
    alpha_pattern: alpha by pattern of module names.
    use_rslora: scale is alpha / sqrt(r).
    raw: the whole file.
  """

  path: pathlib.Path
  r: int
  alpha: float
  rank_pattern: dict[str, int]
  alpha_pattern: dict[str, float]
  use_rslora: bool
  raw: dict[str, Any]

  def rank(self, module: str) -> int:
    """Rank of a module, by its name in the model the adapter was made for."""
    return _by_pattern(self.rank_pattern, module, self.r)

  def scale(self, module: str) -> float:
    """Factor of the product of a module's factors."""
    alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
    rank = self.rank(module)
    return alpha / (math.sqrt(rank) if self.use_rslora else rank)

  def targets(self, modules: Iterable[str]) -> set[str] | None:
    """Those modules that the configuration adapts; None if it does not say."""
    target = self.raw.get('target_modules')
    if target is None or target == 'all-linear':
      # PEFT resolves both against the model before it saves.
      return None
    chosen = {m for m in modules if self._is_target(target, m)}
    return chosen or None

  def _is_target(self, target: str | list[str], module: str) -> bool:
    exclude = self.raw.get('exclude_modules')
    if exclude and _names(exclude, module):
      return False
    if not _names(target, module):
      return False
    layers = self.raw.get('layers_to_transform')
    if isinstance(target, str) or layers in (None, []):
      return True
    patterns = self.raw.get('layers_pattern') or [r'[^.]*']
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
      match = re.match(rf'(?:^|.*?\.){pattern}\.(\d+)\.', module)
      if match:
        return int(match.group(1)) in (
          [layers] if isinstance(layers, int) else layers
        )
    return False


def _names(target: str | list[str], module: str) -> bool:
  """PEFT's rule: a string is a pattern, a list holds ends of names."""
  if isinstance(target, str):
    return bool(re.fullmatch(target, module))
  return any(module == t or module.endswith(f'.{t}') for t in target)


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
  """PEFT's rule: the first pattern that matches an end of the name."""
  for pattern, value in patterns.items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default


def read_peft_config(folder: pathlib.Path) -> PeftConfig:
  """Reads adapter_config.json of a LoRA adapter.

  Raises:
    ModelError: no file, broken JSON, a missing or wrong field, or a kind of
      adapter other than plain LoRA on linear modules.
  """
  path = folder / 'adapter_config.json'
  if not path.is_file():
    inside = sorted(p.parent for p in folder.glob('*/adapter_config.json'))
    hint = f' Did you mean {inside[0]}?' if inside else ''
    raise ModelError(
      f'{path}: no such file; expected a PEFT adapter folder.{hint}'
    )
  raw = read_json(path)
  peft_type = raw.get('peft_type')
  if peft_type != 'LORA':
    raise ModelError(
      f"{path}: peft_type is {peft_type!r}; expected 'LORA', the only kind "
      'of adapter that is supported.'
    )
  bias = raw.get('bias', 'none')
  if bias != 'none':
    raise ModelError(
      f"{path}: bias is {bias!r}; expected 'none'. Gemma has no biases; "
      'train without them.'
    )
  for field, meaning in _REFUSED.items():
    if raw.get(field):
      raise ModelError(
        f'{path}: {field} is {raw[field]!r}; not supported: {meaning}.'
      )
  init = raw.get('init_lora_weights', True)
  if isinstance(init, str) and init.startswith(_CHANGES_BASE):
    raise ModelError(
      f'{path}: init_lora_weights is {init!r}, which also changes the base '
      'weights. Convert it to a plain LoRA: PEFT does so when saving with '
      'path_initial_model_for_weight_conversion.'
    )
  config = PeftConfig(
    path=path,
    r=_number(path, raw, 'r', int),
    alpha=_number(path, raw, 'lora_alpha', float),
    rank_pattern=_patterns(path, raw, 'rank_pattern', int),
    alpha_pattern=_patterns(path, raw, 'alpha_pattern', float),
    use_rslora=bool(raw.get('use_rslora')),
    raw=raw,
  )
  _check_targets(config)
  return config


def _number(
  path: pathlib.Path, raw: dict[str, Any], field: str, kind: type
) -> Any:
  """A number of the file: a positive int, or any finite float."""
  value = raw.get(field)
  right = isinstance(value, int if kind is int else (int, float))
  if not right or isinstance(value, bool) or not math.isfinite(value):
    raise ModelError(
      f'{path}: {field} is {value!r}; expected a number '
      f'({"positive, whole" if kind is int else "finite"}).'
    )
  if kind is int and value <= 0:
    raise ModelError(f'{path}: {field} is {value}; expected 1 or more.')
  return kind(value)


def _patterns(
  path: pathlib.Path, raw: dict[str, Any], field: str, kind: type
) -> dict[str, Any]:
  """A table of numbers by pattern of module names."""
  table = raw.get(field) or {}
  if not isinstance(table, dict):
    raise ModelError(f'{path}: {field} is {table!r}; expected an object.')
  for pattern in table:
    _check_pattern(path, field, pattern)
  try:
    return {p: _number(path, table, p, kind) for p in table}
  except ModelError as error:
    raise ModelError(f'{error} (in {field})') from None


def _check_targets(config: PeftConfig) -> None:
  """Refuses fields that name modules in no way PEFT knows."""
  for field in ('target_modules', 'exclude_modules'):
    value = config.raw.get(field)
    if isinstance(value, str):
      _check_pattern(config.path, field, value)
    elif value is not None and not (
      isinstance(value, list) and all(isinstance(v, str) for v in value)
    ):
      raise ModelError(
        f'{config.path}: {field} is {value!r}; expected a list of names or a '
        'pattern.'
      )
  patterns = config.raw.get('layers_pattern') or []
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    _check_pattern(config.path, 'layers_pattern', pattern)


def _check_pattern(path: pathlib.Path, field: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ModelError(
      f'{path}: {field} has {pattern!r}, not a regular expression: {error}.'
    ) from None
