"""A tuned model as a LoRA adapter of its base: the SVD of each change."""

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re

import numpy as np
from safetensors.numpy import save_file

from evojax_llm.models import folders
from evojax_llm.models import peft
from evojax_llm.models.errors import ModelError
from evojax_llm.recipes.model_folder import FLOATS
from evojax_llm.recipes.model_folder import ModelFolder


@dataclasses.dataclass(frozen=True)
class Extracted:
  """What an adapter has of a change.

  Attributes:
    rank: of the adapter.
    residuals: what is missing of each weight's change, as a share of its
      Frobenius norm, by name; 0 for no change.
    total: the same of all these changes together.
    left_out: relative changes of tensors that no adapter can hold, by name.
  """

  rank: int
  residuals: dict[str, float]
  total: float
  left_out: dict[str, float]

  def by_module(self) -> dict[str, list[float]]:
    """Returns the residuals of the layers by what is adapted in them."""
    modules: dict[str, list[float]] = {}
    for name, residual in self.residuals.items():
      module = re.sub(r'.*?\.\d+\.', '', name).removesuffix('.weight')
      modules.setdefault(module, []).append(residual)
    return modules


def extract(
  model: str,
  base: str,
  out: str | os.PathLike,
  rank: int,
  progress: Callable[[float], None] = lambda share: None,
) -> Extracted:
  """Writes the adapter of rank R that is nearest to a model's change.

  Args:
    model: folder of the tuned model.
    base: folder that it was tuned from, of the same names and shapes.
    out: a new or empty folder, which PEFT loads with the base.
    rank: at most; that of the largest matrix is enough for all of the change.
    progress: called with the share that is done.

  Raises:
    ModelError: the folders differ in their tensors, or `out` is not empty.
  """
  tuned, start = ModelFolder(model), ModelFolder(base)
  _check(tuned, start)
  shapes = {name: stored.shape for name, stored in start.tensors.items()}
  inside = {n for n in shapes if n.startswith(f'{start.stack}.')}
  weights = sorted(
    n for n in inside if len(shapes[n]) == 2 and n.endswith('.weight')
  )
  if not weights:
    raise ModelError(f'{start.path}: has no layers with matrices to adapt.')
  rank = min(rank, max(min(shapes[name]) for name in weights))
  projections = dict.fromkeys(n.split('.')[-2] for n in weights)
  prefix = f'{start.stack.rpartition(".")[0]}.'
  name = folders.model_name(start.path)
  if '/' not in name:  # Not of the hub: a path is what PEFT finds.
    name = str(start.path.absolute())
  config = peft.adapter_json(rank, rank, projections, name, prefix)
  with folders.new_folder(pathlib.Path(out)) as folder:
    tensors, residuals, lost, total = {}, {}, 0.0, 0.0
    for i, name in enumerate(weights):
      change = _change(tuned, start, name)
      left, sizes, right = np.linalg.svd(change, full_matrices=False)
      kept = min(rank, len(sizes))
      roots = np.sqrt(sizes[:kept])
      a = np.zeros((rank, change.shape[1]), np.float32)
      b = np.zeros((change.shape[0], rank), np.float32)
      a[:kept] = roots[:, None] * right[:kept]
      b[:, :kept] = left[:, :kept] * roots
      module = f'base_model.model.{name.removesuffix(".weight")}'
      tensors[f'{module}.lora_A.weight'] = a
      tensors[f'{module}.lora_B.weight'] = b
      # Not of the singular values: what rounding costs counts as well.
      missing = float(np.square(change - b @ a, dtype=np.float64).sum())
      own = float(np.square(change, dtype=np.float64).sum())
      residuals[name] = (missing / own) ** 0.5 if own else 0.0
      lost, total = lost + missing, total + own
      progress((i + 1) / len(weights))
    left_out = {}
    for name in sorted(set(shapes).difference(weights)):
      if start.dtype(name) in FLOATS and name in tuned.tensors:
        change = _change(tuned, start, name)
        if change.any():
          length = float(np.linalg.norm(start.read(name).astype(np.float32)))
          left_out[name] = float(np.linalg.norm(change)) / max(length, 1e-30)
    save_file(
      tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'}
    )
    folders.write_json(folder / 'adapter_config.json', config)
  whole = (lost / total) ** 0.5 if total else 0.0
  return Extracted(rank, residuals, whole, left_out)


def _change(tuned: ModelFolder, start: ModelFolder, name: str) -> np.ndarray:
  new, old = (x.read(name).astype(np.float32) for x in (tuned, start))
  change = new - old
  if not np.isfinite(change).all():
    raise ModelError(f'{name}: the change has NaN or infinity.')
  return change


def _check(tuned: ModelFolder, start: ModelFolder) -> None:
  """Refuses models of different kinds."""
  for one, other in ((tuned, start), (start, tuned)):
    inside = [n for n in one.tensors if n.startswith(f'{one.stack}.')]
    missing = [n for n in inside if n not in other.tensors]
    if missing:
      raise ModelError(
        f'{other.path}: lacks tensors of {one.path}: '
        f'{folders.listing(missing)}. A model and its base have the same.'
      )
  for name, stored in start.tensors.items():
    if name not in tuned.tensors:
      continue
    shape = tuned.tensors[name].shape
    if shape != stored.shape:
      raise ModelError(
        f'{tuned.path}: {name} has shape {shape}, that of {start.path} has '
        f'{stored.shape}. No adapter holds such a change; resize one of them.'
      )
    for folder in (tuned, start):
      if folder.dtype(name) not in FLOATS and name.startswith(start.stack):
        raise ModelError(
          f'{folder.path}: {name} is stored as {folder.dtype(name)}; expected '
          'floats.'
        )
