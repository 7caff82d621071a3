"""A plan carried out: tensor by tensor, shard by shard.

The host holds the parents of two tensors and what is made of them at a time.
Tensors of one size share a program, so that a model has as many as it has sizes
of matrices, whatever its depth.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models import folders
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.recipes import masks as masks_lib
from evojax_llm.recipes import presort
from evojax_llm.recipes.model_folder import FLOATS
from evojax_llm.recipes.plan import Output
from evojax_llm.recipes.plan import Plan

SHARD_BYTES = 5 * 10**9
_INDEX = 'model.safetensors.index.json'
_CHUNK = 1 << 26
# Loops over rows are a quarter faster than over one long row.
_ROW = 512

Progress = Callable[[float], None]


def shards(
  outputs: Sequence[Output], shard_bytes: int = SHARD_BYTES
) -> list[list[Output]]:
  """Returns the tensors of each file, of so many bytes or of one tensor."""
  found: list[list[Output]] = [[]]
  size = 0
  for output in outputs:
    if found[-1] and size + output.size > shard_bytes:
      found.append([])
      size = 0
    found[-1].append(output)
    size += output.size
  return found


def write_weights(
  plan: Plan,
  folder: pathlib.Path,
  shard_bytes: int = SHARD_BYTES,
  seed: int | None = None,
  progress: Progress = lambda share: None,
) -> None:
  """Writes model.safetensors, or shards with their index.

  Args:
    plan: what to merge.
    folder: where to.
    shard_bytes: of one file, unless a single tensor has more.
    seed: of random masks; see `masks`.
    progress: called with the share that is done.
  """
  files = shards(plan.outputs, shard_bytes)
  masks = masks_lib.Masks(plan, seed)
  weight_map, done = {}, 0
  for i, outputs in enumerate(files, start=1):
    name = 'model.safetensors'
    if len(files) > 1:
      name = f'model-{i:05d}-of-{len(files):05d}.safetensors'
    with (folder / name).open('wb') as f:
      f.write(_header(outputs))
      for output, value in _merged_ahead(plan, outputs, masks):
        if value is None:
          _copy(f, output)
        else:
          f.write(_bytes(value, output))
        done += output.size
        progress(done / max(1, plan.size))
    weight_map.update({output.name: name for output in outputs})
  if len(files) > 1:
    index = {'metadata': {'total_size': plan.size}, 'weight_map': weight_map}
    folders.write_json(folder / _INDEX, index)


def _header(outputs: Sequence[Output]) -> bytes:
  """The first bytes of a safetensors file."""
  entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  start = 0
  for output in outputs:
    entries[output.name] = {
      'dtype': output.dtype,
      'shape': list(output.shape),
      'data_offsets': [start, start + output.size],
    }
    start += output.size
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def _merged_ahead(
  plan: Plan, outputs: Sequence[Output], masks: masks_lib.Masks
) -> Iterator[tuple[Output, Any]]:
  """Yields tensors while the next is computed; None for bytes as stored."""
  before = value = None
  try:
    for output in outputs:
      value = None
      if output.options is not None:
        value = _start(plan, output, masks)
      elif not _as_stored(output):
        folder, name = output.parents[0]
        value = folder.read(name)
      if before:
        yield before
      before = output, value
    if before:
      yield before
  finally:
    # A program that still runs when the process ends takes it down.
    jax.block_until_ready(value)


def _as_stored(output: Output) -> bool:
  folder, name = output.parents[0]
  return folder.dtype(name) == output.dtype and name not in folder.factors


def _copy(f: BinaryIO, output: Output) -> None:
  folder, name = output.parents[0]
  stored, left = folder.tensors[name], folder.tensors[name].size
  with stored.file.open('rb') as source:
    source.seek(stored.offset)
    while left:
      data = source.read(min(left, _CHUNK))
      if not data:
        raise folders.ModelError(f'{stored.file}: has become shorter.')
      f.write(data)
      left -= len(data)


def _bytes(value: Any, output: Output) -> memoryview:
  """What is stored of a merged tensor, or of one that is cast.

  Raises:
    ModelError: it has numbers that are not finite in its type.
  """
  merged = isinstance(value, tuple)
  value, finite = value if merged else (value, True)
  with np.errstate(over='ignore'):
    array = np.asarray(value).astype(FLOATS[output.dtype], copy=False)
  if not finite or not merged and not np.isfinite(array).all():
    of = ', '.join(str(folder.path) for folder, _ in output.parents)
    raise folders.ModelError(
      f'{output.name}: has NaN, infinity or numbers beyond {array.dtype} when '
      f'it is made of {of}. One of them is damaged, or the type too narrow.'
    )
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _start(
  plan: Plan, output: Output, masks: masks_lib.Masks
) -> tuple[jax.Array, jax.Array]:
  """Starts the merge of a tensor; returns it, and whether it is finite."""
  merge = plan.recipe.method.merge
  options = dict(output.options)
  key, turned = masks.of(output.name) if merge.draws else (None, False)
  rows = merge.by_row and options.get('span') != 'tensor'
  if merge.by_row:
    options['axis'] = -2 if turned else -1
  cast = plan.recipe.dtype

  def read(tensor):
    folder, name = tensor
    value = folder.read(name)
    if cast:
      with np.errstate(over='ignore'):
        value = value.astype(FLOATS[cast], copy=False)
    if value.dtype == np.float64:  # The arithmetic is that of f32.
      value = value.astype(np.float32)
    # Where no row matters, tensors of one size are one program's.
    if turned or rows:
      return value.T if turned else value
    return value.reshape((-1,) if value.size % _ROW else (-1, _ROW))

  # Of f64 we compute f32; what is wider is done by the host.
  out = np.dtype(np.float32) if output.dtype == 'F64' else FLOATS[output.dtype]
  values = {
    name: np.asarray(v, np.float32) for name, v in output.values.items()
  }
  parents = [read(tensor) for tensor in output.parents]
  base = read(output.base) if output.base else None
  found = {}
  if jax.default_backend() == 'cpu':
    found = presort.find(
      merge, parents, base, values, options.get('axis', -1), key
    )
  return _merge(
    parents,
    base,
    values | found,
    key,
    merge=merge.name,
    options=tuple(options.items()),
    out=out,
    turned=turned,
  )


@functools.partial(
  jax.jit, static_argnames=('merge', 'options', 'out', 'turned')
)
def _merge(
  parents, base, values, key_data, *, merge, options, out, turned=False
):
  wide = jnp.stack([parent.astype(jnp.float32) for parent in parents])
  given = {**values, **dict(options)}
  if key_data is not None:
    given['key'] = jax.random.wrap_key_data(key_data, impl='threefry2x32')
  if base is not None:
    base = base.astype(jnp.float32)
  child = MERGES[merge](wide, base, **given).astype(out)
  child = child.T if turned else child
  wrong = ~jnp.isfinite(child.astype(jnp.float32))
  return child, tensors.counts([wrong])[0] == 0
