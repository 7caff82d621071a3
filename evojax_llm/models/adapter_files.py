"""The tensors of a PEFT adapter folder, checked against file and base."""

from collections.abc import Sequence
import dataclasses
import os
import re

import numpy as np

from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.names import is_other_part
from evojax_llm.models.peft_config import PeftConfig
from evojax_llm.models.peft_config import read_peft_config

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
  """One module of one layer of one expert, as stored."""

  a: np.ndarray
  b: np.ndarray
  scale: float


def read_adapter(
  folder: str | os.PathLike, config: GemmaConfig
) -> dict[tuple[Module, int], Factors]:
  """The factors of one adapter, checked against its file and its base."""
  path = existing_folder(folder, 'a PEFT adapter folder')
  peft = read_peft_config(path)
  with TensorFiles.of_adapter(path) as files:
    stored = _stored_factors(files)
    modules = {module: _parse(files, module, config) for module in stored}
    _check_targets(files, peft, list(modules), config)
    factors = {}
    for module, pair in stored.items():
      names, layer = modules[module]
      _check_shapes(files, peft, module, pair, config.linear_shapes()[names])
      a, b = (files.read(pair[x]).astype(np.float32) for x in 'AB')
      factors[names, layer] = Factors(a, b, peft.scale(module))
  return factors


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
    module = match['module']
    pair = stored.setdefault(module, {})
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


def _check_targets(
  files: TensorFiles,
  peft: PeftConfig,
  modules: Sequence[str],
  config: GemmaConfig,
) -> None:
  """Refuses a file that has not just the modules its configuration names."""
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
  peft: PeftConfig,
  module: str,
  pair: dict[str, str],
  base_shape: tuple[int, int],
) -> None:
  """Refuses factors that fit neither the base nor their configuration."""
  rank = peft.rank(module)
  d_in, d_out = base_shape
  for factor, expected in (('A', (rank, d_in)), ('B', (d_out, rank))):
    name = pair[factor]
    found = files.shape(name)
    if found == expected:
      files.dtype(name)
      continue
    of_base = 1 if factor == 'A' else 0
    if len(found) == 2 and found[of_base] == expected[of_base]:
      why = f'{peft.path} gives {module} rank {rank}'
    else:
      why = 'the adapter belongs to another base'
    raise ModelError(
      f'{files.path}: {name} has shape {found}; expected {expected}: {why}.'
    )
