"""PEFT LoRA adapter folders in and out.

A stored adapter adds scale * lora_B lora_A to a weight (out, in), with `lora_A`
(R, in) and `lora_B` (out, R). Here the factors are the transposed ones, a
(in, R) and b (R, out), stacked on layers L and experts N (LoRA, arXiv
2106.09685).
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models.adapter_files import Module
from evojax_llm.models.adapter_files import read_adapter
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.families import MULTIMODAL
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.folders import expert_names
from evojax_llm.models.folders import new_folder
from evojax_llm.models.folders import read_json
from evojax_llm.models.folders import write_json
from evojax_llm.models.hub import Model
from evojax_llm.models.model_files import get
from evojax_llm.models.model_files import put


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterSet:
  """Adapters of one base, brought to one rank and one scale.

  Attributes:
    names: (N,) names of the experts.
    factors: adapter tree of f32 numpy: a (N, L, in, R), b (N, L, R, out), b
      not scaled. Modules, layers and ranks that an expert lacks are zero.
    scale: tree of the same modules, (L,) f32: what b is multiplied by. It is
      that of the first expert with the module; an expert of another scale has
      the ratio in its b, so that its change is exactly a (scale b).
    rank: R, the largest rank of all.
  """

  names: tuple[str, ...]
  factors: dict[str, Any]
  scale: dict[str, Any]
  rank: int


def load_adapters(
  folders: Sequence[str | os.PathLike], model: Model | ModelConfig
) -> AdapterSet:
  """Loads PEFT LoRA folders that belong to one base.

  Args:
    folders: N adapter folders, of any rank, alpha and modules.
    model: the base, or its configuration.

  Raises:
    ModelError: no folder is given; a folder or file is missing, truncated or
      a pickle; the adapter is not plain LoRA on linear modules, belongs to
      another base, or its tensors do not fit its configuration.
  """
  if isinstance(folders, str | os.PathLike):
    raise ModelError(
      f'folders is {str(folders)!r}; expected a list of adapter folders.'
    )
  if not folders:
    raise ModelError('No adapter folder is given; expected one or more.')
  config = getattr(model, 'config', model)
  experts = [read_adapter(folder, config) for folder in folders]
  names = expert_names(folders)
  first: dict[bytes, str] = {}
  for name, expert in zip(names, experts, strict=True):
    content = hashlib.blake2b()
    for key in sorted(expert):
      content.update(f'{key} {expert[key].scale}'.encode())
      content.update(np.ascontiguousarray(expert[key].a))
      content.update(np.ascontiguousarray(expert[key].b))
    same = first.setdefault(content.digest(), name)
    if same != name:
      logging.warning(
        '%s is the same adapter as %s: it counts twice in every mix.',
        name,
        same,
      )
  rank = max(f.a.shape[0] for e in experts for f in e.values())
  factors: dict[str, Any] = {}
  scales: dict[str, Any] = {}
  for path, (d_in, d_out) in config.linear_shapes(inputs=True).items():
    module, layers = config.within_layer(path), config.module_layers(path)
    if not any((module, layer) in e for e in experts for layer in layers):
      continue
    scale = _common_scale(experts, module, layers)
    a = np.zeros((len(experts), len(layers), d_in, rank), np.float32)
    b = np.zeros((len(experts), len(layers), rank, d_out), np.float32)
    for n, expert in enumerate(experts):
      for i, layer in enumerate(layers):
        f = expert.get((module, layer))
        if f is None:
          continue
        r = f.a.shape[0]
        a[n, i, :, :r] = f.a.T
        b[n, i, :r] = f.b.T
        if f.scale != scale[i]:
          with np.errstate(over='ignore', invalid='ignore'):
            b[n, i] *= np.float32(f.scale / scale[i])
          if not np.isfinite(b[n, i]).all():
            raise ModelError(
              f'{folders[n]}: its scale {f.scale:g} and that of another '
              f'adapter ({scale[i]:g}) are too far apart for float32; '
              'expected lora_alpha / r of about 1 in both.'
            )
    put(factors, path, {'a': a, 'b': b})
    put(scales, path, scale.astype(np.float32))
  return AdapterSet(
    names=names,
    factors={'layers': factors},
    scale={'layers': scales},
    rank=rank,
  )


def _common_scale(
  experts: list[dict], module: Module, layers: Sequence[int]
) -> np.ndarray:
  """(L,) f64 scale of the first expert that has the module in a layer.

  A scale of 0 cannot be carried by a ratio: the first other one counts. A
  layer that no expert adapts gets the scale of the first layer that has one.
  """
  scale = np.zeros(len(layers), np.float64)
  for i, layer in enumerate(layers):
    for expert in experts:
      if scale[i] == 0 and (module, layer) in expert:
        scale[i] = expert[module, layer].scale
  given = scale[scale != 0]
  return np.where(scale == 0, given[0], scale) if given.size else scale


def save_adapter(
  folder: str | os.PathLike,
  factors: dict[str, Any],
  scale: dict[str, Any],
  config: ModelConfig,
  base_model_name: str,
  base_folder: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes one adapter as a folder that PEFT loads.

  The rank is the least that holds the member: columns that change nothing are
  left out. There is one rank and one alpha, since other readers than PEFT do
  not know patterns; where scales differ they go into lora_B.

  Args:
    folder: a new or empty folder; appears whole or not at all.
    factors: adapter tree of one member: a (L, in, R) and b (L, R, out), b not
      scaled. Written as f32.
    scale: tree of the same modules, (L,).
    config: the base's.
    base_model_name: the base's name in the written file.
    base_folder: the base's folder; if it is multimodal, PEFT finds the layers
      under another name.

  Returns:
    The folder's path.

  Raises:
    ModelError: `folder` is not empty, or the factors do not fit the base or
      are not finite.
  """
  prefix = 'model.'
  if base_folder is not None:
    path = existing_folder(base_folder, 'the folder of the base')
    if read_json(path / 'config.json').get('model_type') in MULTIMODAL:
      prefix = 'model.language_model.'
  kept = _least_factors(factors, scale, config)
  if not kept:
    raise ModelError('The adapter has no factors; expected one module or more.')
  rank = max(1, *(len(b) for _, b, _ in kept.values()))
  common, *others = {s for _, b, s in kept.values() if len(b)} or {1.0}
  alpha = round(common * rank)
  # Whole, as PEFT declares it. Where that is no alpha of this scale, and where
  # there are several, lora_B is scaled.
  in_b = bool(others) or np.float32(alpha / rank) != np.float32(common)
  if in_b:
    alpha = rank
  tensors = {}
  for (module, layer), (a, b, s) in kept.items():
    name = '.'.join(module)
    key = f'base_model.model.{prefix}layers.{layer}.{name}'
    missing = ((0, rank - len(b)), (0, 0))
    b = b * np.float32(s) if in_b else b
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
      raise ModelError(
        f'The factors of {name} of layer {layer} have NaN or '
        'infinite numbers; expected finite ones. Nothing is written.'
      )
    tensors[f'{key}.lora_A.weight'] = np.pad(a, missing)
    tensors[f'{key}.lora_B.weight'] = np.ascontiguousarray(np.pad(b, missing).T)
  projections = dict.fromkeys(module[-1] for module, _ in kept)
  raw = adapter_json(rank, alpha, projections, base_model_name, prefix)
  with new_folder(folder) as path:
    save_file(
      tensors, path / 'adapter_model.safetensors', metadata={'format': 'pt'}
    )
    write_json(path / 'adapter_config.json', raw)
  return pathlib.Path(folder)


def _least_factors(
  factors: dict[str, Any], scale: dict[str, Any], config: ModelConfig
) -> dict[tuple[Module, int], tuple[np.ndarray, np.ndarray, float]]:
  """Returns (R, in), (R, out) and the scale of each module of each layer.

  R is what is left of the rank without products of zero.
  """
  kept = {}
  for path, pair in _pairs(factors['layers']):
    a, b = (np.asarray(pair[x], np.float32) for x in 'ab')
    _check_factors(config, path, a, b)
    layers = config.module_layers(path)
    scales = np.broadcast_to(
      np.asarray(get(scale['layers'], path), np.float64), (len(layers),)
    )
    module = config.within_layer(path)
    for i, layer in enumerate(layers):
      used = a[i].any(axis=0) & b[i].any(axis=1)
      kept[module, layer] = a[i].T[used], b[i][used], float(scales[i])
  # PEFT chooses modules by name: it expects them of all layers that have them.
  projections = {module[-1] for module, _ in kept}
  for path, (d_in, d_out) in config.linear_shapes(inputs=True).items():
    for layer in config.module_layers(path) if path[-1] in projections else ():
      nothing = (
        np.zeros((0, d_in), np.float32),
        np.zeros((0, d_out), np.float32),
      )
      kept.setdefault((config.within_layer(path), layer), (*nothing, 1.0))
  return kept


def _pairs(
  tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
  """Yields module and factors of an adapter tree."""
  if 'a' in tree:
    yield path, tree
  else:
    for name, node in tree.items():
      yield from _pairs(node, (*path, name))


def _check_factors(
  config: ModelConfig, module: tuple[str, ...], a: np.ndarray, b: np.ndarray
) -> None:
  """Refuses factors of a module that do not fit the base."""
  name = '.'.join(module)
  shapes = config.linear_shapes(inputs=True)
  if module not in shapes:
    raise ModelError(
      f'The adapter has factors of {name}; the base has only '
      f'{", ".join(map(".".join, shapes))}.'
    )
  d_in, d_out = shapes[module]
  rank = a.shape[-1]
  count = len(config.module_layers(module))
  expected = (count, d_in, rank), (count, rank, d_out)
  if (a.shape, b.shape) != expected:
    raise ModelError(
      f'The factors of {name} have shapes {a.shape} and {b.shape}; the base '
      f'expects (L, in, R) and (L, R, out) = {expected[0]} and {expected[1]}.'
    )


def adapter_json(
  rank: int,
  alpha: int,
  projections: Iterable[str],
  base_model_name: str,
  prefix: str,
) -> dict[str, Any]:
  """Returns adapter_config.json."""
  return {
    'alpha_pattern': {},
    'auto_mapping': None,
    'base_model_name_or_path': base_model_name,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
    'layers_pattern': None,
    'layers_to_transform': None,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'modules_to_save': None,
    'peft_type': 'LORA',
    'r': rank,
    'rank_pattern': {},
    # Names alone would pick the vision side of a multimodal base as well.
    'target_modules': (
      list(projections)
      if prefix == 'model.'
      else rf'.*language_model\..*\.({"|".join(projections)})'
    ),
    'task_type': 'CAUSAL_LM',
    'use_dora': False,
    'use_rslora': False,
  }
