"""One PEFT adapter folder: its configuration and its tensors, checked.

The rules that choose modules, ranks and scales are those of PEFT; the scale
of a module is alpha / r, or alpha / sqrt(r) if rank-stabilised (LoRA, arXiv
2106.09685; rsLoRA, arXiv 2312.03732).
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import re
from typing import Any

import numpy as np

from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.folders import read_json
from evojax_llm.models.names import is_other_part

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

_MODULE = re.compile(
  r'^(?P<prefix>(?:(?:language_model|model|text_model)\.)*)'
  r'layers\.(?P<layer>\d+)\.(?P<block>\w+)\.(?P<projection>\w+)$'
)
_WRAPPER = r'^(?:base_model\.model\.)?'
_FACTOR = re.compile(
  _WRAPPER + r'(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight$'
)

# (block, projection), as ('self_attn', 'q_proj').
Module = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Factors:
  """One module of one layer of one expert: `lora_A`, `lora_B`, scale."""

  a: np.ndarray
  b: np.ndarray
  scale: float


def read_adapter(
  folder: str | os.PathLike, config: GemmaConfig
) -> dict[tuple[Module, int], Factors]:
  """Reads the factors of one adapter, by module and layer.

  Raises:
    ModelError: a folder, file or field that is missing or wrong; an adapter
      that is not plain LoRA on linear modules; tensors that do not fit
      adapter_config.json or the base.
  """
  path = existing_folder(folder, 'a PEFT adapter folder')
  peft = _read_config(path)
  with TensorFiles.of_adapter(path) as files:
    stored = _stored_factors(files)
    modules = {module: _parse(files, module, config) for module in stored}
    _check_modules(files, peft, list(modules), config)
    factors = {}
    for module, pair in stored.items():
      names, layer = modules[module]
      _check_shapes(files, peft, module, pair, config.linear_shapes()[names])
      a, b = (files.read(pair[x]).astype(np.float32) for x in 'AB')
      factors[names, layer] = Factors(a, b, peft.scale(module))
  return factors


@dataclasses.dataclass(frozen=True)
class _PeftConfig:
  """An adapter_config.json; `raw` is the whole file."""

  path: pathlib.Path
  r: int
  alpha: float
  rank_pattern: dict[str, int]
  alpha_pattern: dict[str, float]
  raw: dict[str, Any]

  def rank(self, module: str) -> int:
    """Rank of a module, by its name in the model the adapter was made for."""
    return _by_pattern(self.rank_pattern, module, self.r)

  def scale(self, module: str) -> float:
    """Factor of the product of a module's factors."""
    alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
    rank = self.rank(module)
    return alpha / (math.sqrt(rank) if self.raw.get('use_rslora') else rank)

  def targets(self, modules: Iterable[str]) -> set[str] | None:
    """Those modules that the file names as adapted; None if it does not."""
    target = self.raw.get('target_modules')
    if target is None or target == 'all-linear':
      # PEFT resolves both against the model before it saves.
      return None
    return {m for m in modules if self._is_target(target, m)} or None

  def _is_target(self, target: str | list[str], module: str) -> bool:
    exclude = self.raw.get('exclude_modules')
    if exclude and _names(exclude, module):
      return False
    if not _names(target, module):
      return False
    layers = self.raw.get('layers_to_transform')
    if isinstance(target, str) or layers in (None, []):
      return True
    for pattern in _layer_patterns(self.raw) or [r'[^.]*']:
      match = re.match(rf'(?:^|.*?\.){pattern}\.(\d+)\.', module)
      if match:
        return int(match.group(1)) in (
          [layers] if isinstance(layers, int) else layers
        )
    return False


def _layer_patterns(raw: dict[str, Any]) -> list[str]:
  patterns = raw.get('layers_pattern') or []
  return [patterns] if isinstance(patterns, str) else patterns


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


def _read_config(folder: pathlib.Path) -> _PeftConfig:
  """Reads adapter_config.json; refuses all but plain LoRA."""
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
  config = _PeftConfig(
    path=path,
    r=_number(path, raw, 'r', int),
    alpha=_number(path, raw, 'lora_alpha', float),
    rank_pattern=_patterns(path, raw, 'rank_pattern', int),
    alpha_pattern=_patterns(path, raw, 'alpha_pattern', float),
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


def _check_targets(config: _PeftConfig) -> None:
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
  for pattern in _layer_patterns(config.raw):
    _check_pattern(config.path, 'layers_pattern', pattern)


def _check_pattern(path: pathlib.Path, field: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ModelError(
      f'{path}: {field} has {pattern!r}, not a regular expression: {error}.'
    ) from None


def _stored_factors(files: TensorFiles) -> dict[str, dict[str, str]]:
  """Stored names of A and B by module; refuses all other tensors."""
  stored: dict[str, dict[str, str]] = {}
  for name in files.names:
    if is_other_part(re.sub(_WRAPPER, '', name)):
      continue  # An adapter of the vision side of a multimodal model.
    if 'lora_magnitude_vector' in name:
      raise ModelError(
        f'{files.path}: {name} is of DoRA, which is not supported; merge the '
        'adapter into its base instead.'
      )
    match = _FACTOR.match(name)
    if match is None:
      raise ModelError(
        f'{files.path}: {name} is not a factor of a linear module; expected '
        'only *.lora_A.weight and *.lora_B.weight. Embeddings, biases and '
        'whole modules trained beside LoRA are not supported.'
      )
    pair = stored.setdefault(match['module'], {})
    if match['factor'] in pair:
      raise ModelError(
        f'{files.path}: {name} and {pair[match["factor"]]} are the same '
        'tensor; expected one of them.'
      )
    pair[match['factor']] = name
  halves = [m for m, pair in stored.items() if len(pair) == 1]
  if halves:
    raise ModelError(
      f'{files.path}: only one of lora_A and lora_B is there for '
      f'{listing(halves)} ({len(halves)} in all); expected both.'
    )
  if not stored:
    raise ModelError(f'{files.path}: has no lora_A and lora_B tensors.')
  return stored


def _parse(
  files: TensorFiles, module: str, config: GemmaConfig
) -> tuple[Module, int]:
  """(block, projection) and layer of a module's name."""
  match = _MODULE.match(module)
  names = (match['block'], match['projection']) if match else None
  if names not in config.linear_shapes():
    raise ModelError(
      f'{files.path}: LoRA on {module}; expected only linear modules of the '
      f'layers: {", ".join(p for _, p in config.linear_shapes())}.'
    )
  layer = int(match['layer'])
  if layer >= config.num_layers:
    raise ModelError(
      f'{files.path}: {module} is of layer {layer}; the base has '
      f'{config.num_layers} layers, 0 to {config.num_layers - 1}. The adapter '
      'belongs to another base.'
    )
  return names, layer


def _check_modules(
  files: TensorFiles,
  peft: _PeftConfig,
  modules: Sequence[str],
  config: GemmaConfig,
) -> None:
  """Refuses tensors of other modules than adapter_config.json names."""
  prefixes = {_MODULE.match(m)['prefix'] for m in modules}
  if len(prefixes) > 1:
    raise ModelError(
      f'{files.path}: modules stand under {sorted(prefixes)}; expected one.'
    )
  prefix = prefixes.pop()
  targets = peft.targets(
    f'{prefix}layers.{layer}.{block}.{projection}'
    for layer in range(config.num_layers)
    for block, projection in config.linear_shapes()
  )
  if targets is None:
    return
  missing = sorted(targets.difference(modules))
  if missing:
    raise ModelError(
      f'{files.path}: factors are missing of {listing(missing)} '
      f'({len(missing)} of {len(targets)} modules that {peft.path.name} '
      f'names on a base of {config.num_layers} layers). The file is '
      'incomplete or the adapter belongs to another base.'
    )
  extra = [m for m in modules if m not in targets]
  if extra:
    raise ModelError(
      f'{files.path}: has factors of {listing(extra)} ({len(extra)} in all), '
      f'which target_modules of {peft.path} does not name.'
    )


def _check_shapes(
  files: TensorFiles,
  peft: _PeftConfig,
  module: str,
  pair: dict[str, str],
  base_shape: tuple[int, int],
) -> None:
  """Refuses factors that fit neither the base nor their configuration."""
  rank = peft.rank(module)
  d_in, d_out = base_shape
  for factor, expected in (('A', (rank, d_in)), ('B', (d_out, rank))):
    name = pair[factor]
    shape = files.shape(name)
    if shape == expected:
      files.dtype(name)
      continue
    of_base = 1 if factor == 'A' else 0
    if len(shape) == 2 and shape[of_base] == expected[of_base]:
      why = f'{peft.path} gives {module} rank {rank}'
    else:
      why = 'the adapter belongs to another base'
    raise ModelError(
      f'{files.path}: {name} has shape {shape}; expected {expected}: {why}.'
    )
