"""One PEFT adapter folder: its configuration and its tensors, checked.

The scale of a module is alpha / r, or alpha / sqrt(r) if rank-stabilised (LoRA,
arXiv 2106.09685; rsLoRA, arXiv 2312.03732).
"""

from collections.abc import Sequence
import dataclasses
import math
import os
import re
import reprlib

import numpy as np

from evojax_llm.models.adapter_config import PeftConfig
from evojax_llm.models.adapter_config import read_config
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import listing
from evojax_llm.models.names import LM_HEAD
from evojax_llm.models.names import is_other_part

_MODULE = re.compile(
  r'^(?P<prefix>(?:(?:language_model|model|text_model)\.)*)'
  r'layers\.(?P<layer>\d{1,9})\.(?P<module>\w+(?:\.\w+)?)$'
)
_WRAPPER = r'^(?:base_model\.model\.)?'
_FACTOR = re.compile(
  _WRAPPER + r'(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<name>[^.]+))?'
  r'\.weight$'
)

# (block, projection), as ('self_attn', 'q_proj'); (name,) in no block.
Module = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Factors:
  """One module of one layer of one expert: `lora_A`, `lora_B`, scale."""

  a: np.ndarray
  b: np.ndarray
  scale: float


def read_adapter(
  folder: str | os.PathLike, config: ModelConfig
) -> dict[tuple[Module, int], Factors]:
  """Reads the factors of one adapter, by module and layer.

  Raises:
    ModelError: a folder, file or field that is missing or wrong; an adapter
      that is not plain LoRA on linear modules; tensors that do not fit
      adapter_config.json or the base.
  """
  path = existing_folder(folder, 'a PEFT adapter folder')
  peft = read_config(path)
  with TensorFiles.of_adapter(path) as files:
    stored = _stored_factors(files, config)
    modules = {module: _parse(files, module, config) for module in stored}
    _check_modules(files, peft, list(modules), config)
    # Before anything is read, which may take longer than patterns may.
    numbers = {module: peft.rank_and_alpha(module) for module in stored}
    factors = {}
    for module, pair in stored.items():
      names, layer = modules[module]
      rank, alpha = numbers[module]
      shape = config.places()[layer][2].linear_shapes(inputs=True)[names]
      _check_shapes(files, peft, module, pair, rank, shape)
      arrays = {}
      for factor, name in pair.items():
        # What is beyond f32 becomes infinity, and is refused with it.
        with np.errstate(over='ignore'):
          arrays[factor] = files.read(name).astype(np.float32)
        files.check_finite(name, arrays[factor])
      scale = alpha / (math.sqrt(rank) if peft.raw.get('use_rslora') else rank)
      # 0 times infinity, as in a mix without this expert, would be NaN.
      with np.errstate(over='ignore'):
        largest = np.float32(scale) * np.abs(arrays['B']).max(initial=1)
      if not np.isfinite(largest):
        raise ModelError(
          f'{peft.path}: the scale of {module} is {scale:g}, with which its '
          'lora_B is beyond float32; expected lora_alpha / r of about 1.'
        )
      factors[names, layer] = Factors(arrays['A'], arrays['B'], scale)
  return factors


def _stored_factors(
  files: TensorFiles, config: ModelConfig
) -> dict[str, dict[str, str]]:
  """Stored names of A and B by module; refuses all other tensors."""
  stored: dict[str, dict[str, str]] = {}
  adapters = set()
  for name in files.names:
    if is_other_part(re.sub(_WRAPPER, '', name)):
      continue  # An adapter of the vision side of a multimodal model.
    if 'lora_magnitude_vector' in name:
      raise ModelError(
        f'{files.path}: {name} is of DoRA, which is not supported; merge the '
        'adapter into its base instead.'
      )
    match = _FACTOR.match(name)
    if match is None and name.endswith(('embed_tokens.weight', LM_HEAD)):
      rows, base = files.shape(name)[:1], config.vocab_size
      raise ModelError(
        f'{files.path}: {name} has {rows[0] if rows else 0} rows, the base '
        f'{base}: the adapter was saved with its embedding, as PEFT does where '
        'the vocabulary was resized. Merge it into that base and give the '
        'merged model, or, if the embedding was not trained, save it again '
        'with save_embedding_layers=False.'
      )
    if match is None:
      raise ModelError(
        f'{files.path}: {name} is not a factor of a linear module; expected '
        'only *.lora_A.weight and *.lora_B.weight. Embeddings, biases and '
        'whole modules trained beside LoRA are not supported.'
      )
    adapters.add(match['name'])
    pair = stored.setdefault(match['module'], {})
    if match['factor'] in pair:
      raise ModelError(
        f'{files.path}: {name} and {pair[match["factor"]]} are the same '
        'tensor; expected one of them.'
      )
    pair[match['factor']] = name
  if len(adapters) > 1:
    raise ModelError(
      f'{files.path}: has factors of several adapters, '
      f'{listing(sorted(map(str, adapters)))}; expected one. Save each in a '
      'folder of its own.'
    )
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
  files: TensorFiles, module: str, config: ModelConfig
) -> tuple[Module, int]:
  """The keys in a layer, and the layer, of a module's name."""
  match = _MODULE.match(module)
  names = tuple(match['module'].split('.')) if match else None
  shapes = config.linear_shapes(inputs=True)
  known = dict.fromkeys(map(config.within_layer, shapes))
  if names not in known:
    raise ModelError(
      f'{files.path}: LoRA on {module}; expected only linear modules of the '
      f'layers: {", ".join(m[-1] for m in known)}.'
    )
  layer = int(match['layer'])
  if layer >= config.num_layers:
    raise ModelError(
      f'{files.path}: {module} is of layer {layer}; the base has '
      f'{config.num_layers} layers, 0 to {config.num_layers - 1}. The adapter '
      'belongs to another base.'
    )
  here = config.places()[layer][2].linear_shapes(inputs=True)
  if names not in here:
    raise ModelError(
      f'{files.path}: LoRA on {module}, which the base does not have: layer '
      f'{layer} has only {", ".join(m[-1] for m in here)}. The adapter belongs '
      'to another base.'
    )
  return names, layer


def _check_modules(
  files: TensorFiles,
  peft: PeftConfig,
  modules: Sequence[str],
  config: ModelConfig,
) -> None:
  """Refuses tensors of other modules than adapter_config.json names."""
  prefixes = {_MODULE.match(m)['prefix'] for m in modules}
  if len(prefixes) > 1:
    raise ModelError(
      f'{files.path}: modules stand under {sorted(prefixes)}; expected one.'
    )
  prefix = prefixes.pop()
  targets = peft.targets(
    f'{prefix}layers.{layer}.{".".join(module)}'
    for layer, (_, _, part) in enumerate(config.places())
    for module in part.linear_shapes(inputs=True)
  )
  if targets is None:
    return
  if not targets:
    fields = ('target_modules', 'exclude_modules', 'layers_to_transform')
    given = [f'{f} {reprlib.repr(v)}' for f in fields if (v := peft.raw.get(f))]
    raise ModelError(
      f'{peft.path}: {", ".join(given)} name no module of the base (such as '
      f'{modules[0]}); the file is that of another adapter.'
    )
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
      f'which {peft.path} does not name.'
    )


def _check_shapes(
  files: TensorFiles,
  peft: PeftConfig,
  module: str,
  pair: dict[str, str],
  rank: int,
  base_shape: tuple[int, int],
) -> None:
  """Refuses factors that fit neither the base nor their configuration."""
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
