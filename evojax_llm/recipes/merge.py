"""A recipe made into a model folder."""

from collections import Counter
import os
import pathlib
import shutil

from evojax_llm.models import folders
from evojax_llm.models.errors import ModelError
from evojax_llm.recipes import plan as plan_lib
from evojax_llm.recipes import recipe as recipe_lib
from evojax_llm.recipes import side_files
from evojax_llm.recipes import write
from evojax_llm.recipes.plan import Plan
from evojax_llm.recipes.recipe import DTYPES


def plan(recipe: str | os.PathLike) -> Plan:
  """Returns what a recipe comes to; no weight is read.

  Raises:
    RecipeError: it cannot be carried out; names the key.
    ModelError: a folder that it names is none, or not whole.
  """
  found = plan_lib.build(recipe_lib.read(recipe))
  side_files.check(found)
  return found


def merge(
  plan: Plan,
  out: str | os.PathLike,
  *,
  shard_bytes: int = write.SHARD_BYTES,
  seed: int | None = None,
  overwrite: bool = False,
  progress: write.Progress = lambda share: None,
) -> pathlib.Path:
  """Carries out a plan.

  Args:
    plan: of `plan`.
    out: a new or empty folder, which appears whole or not at all.
    shard_bytes: of one file of weights.
    seed: of random masks; None for that of the recipe, or 0.
    overwrite: whether the folder of an earlier merge may be replaced.
    progress: called with the share that is done.

  Returns:
    The folder.

  Raises:
    ModelError: `out` is there, or has too little room.
  """
  out = pathlib.Path(os.path.expanduser(out))
  check_new(out, overwrite)
  room = _room(out)
  if room < plan.size:
    raise ModelError(
      f'{out}: {gigabytes(plan.size)} are to be written, and '
      f'{gigabytes(room)} are free there.'
    )
  with folders.new_folder(out, overwrite) as folder:
    side_files.write(plan, folder)
    write.write_weights(plan, folder, shard_bytes, seed, progress)
  return out


def check_new(out: pathlib.Path, overwrite: bool) -> None:
  """Refuses to replace what no earlier merge has written.

  Raises:
    ModelError: `out` is a file, or not empty.
  """
  if not out.is_dir() or not any(out.iterdir()):
    if os.path.lexists(out) and not out.is_dir():
      raise ModelError(f'{out}: is no folder; name a new one.')
    return
  if not overwrite:
    raise ModelError(
      f'{out}: exists and is not empty; name another folder, or allow to '
      'replace it with --overwrite.'
    )
  if out.is_symlink() or not (out / side_files.RECIPE_FILE).is_file():
    raise ModelError(
      f'{out}: no merge has written it, since it has no '
      f'{side_files.RECIPE_FILE}; name another folder, or remove this one.'
    )


def _room(out: pathlib.Path) -> int:
  there = out.absolute()
  while not there.exists():
    there = there.parent
  return shutil.disk_usage(there).free


def gigabytes(size: int) -> str:
  """Returns a number of bytes for people."""
  for unit in ('bytes', 'kB', 'MB'):
    if size < 1000:
      return f'{size:.3g} {unit}'
    size /= 1000
  return f'{size:,.1f} GB'


def describe(plan: Plan, shard_bytes: int = write.SHARD_BYTES) -> str:
  """Returns the plan in words."""
  recipe = plan.recipe
  made = Counter(_kind(output, recipe.method.name) for output in plan.outputs)
  types = Counter(output.dtype for output in plan.outputs)
  names = {code: name for name, code in DTYPES.items()}
  files = len(write.shards(plan.outputs, shard_bytes))
  lines = [
    f'{recipe.method.name} of {len(plan.folders)} folders',
    *(
      f'  {folder.name}: {folder.layers} layers, {folder.path}'
      + (' (base)' if ref == recipe.base else '')
      for ref, folder in plan.folders.items()
    ),
    *_layers(plan),
    'tensors: ' + ', '.join(f'{n} {kind}' for kind, n in made.items()),
    f'reads {gigabytes(sum(o.reads for o in plan.outputs))}, writes '
    f'{gigabytes(plan.size)} in {files} file{"s" * (files > 1)}, as '
    + ', '.join(names.get(code, code) for code in types),
    *(f'note: {note}' for note in plan.notes),
  ]
  return '\n'.join(lines)


def tensors(plan: Plan) -> str:
  """Returns a line for each tensor: what is made of what, by which numbers."""
  lines = []
  for output in plan.outputs:
    what = f'as in {output.parents[0][0].name}'
    if output.options is not None:
      numbers = [f'{k}={_shown(v)}' for k, v in output.values.items()]
      numbers += [f'{k}={v}' for k, v in output.options]
      of = ', '.join(folder.name for folder, _ in output.parents)
      what = f'{plan.recipe.method.name} of {of}: {", ".join(numbers)}'
    lines.append(f'{output.name} {output.dtype}{list(output.shape)}: {what}')
  return '\n'.join(lines)


def _shown(value: float | tuple[float, ...]) -> str:
  if isinstance(value, tuple):
    return f'[{", ".join(f"{v:g}" for v in value)}]'
  return f'{value:g}'


def _kind(output: plan_lib.Output, method: str) -> str:
  if output.options is None:
    return 'as they are'
  return f'{method} of {len(output.parents)}' + ' and a base' * bool(
    output.base
  )


def _layers(plan: Plan) -> list[str]:
  """Runs of layers of the result, and the layers that they are made of."""
  runs: list[list] = []
  for i, made in enumerate(plan.layers):
    if runs:
      first, _, start = runs[-1]
      follows = [(f, n + i - first) for f, n in start]
      if follows == list(made):
        runs[-1][1] = i + 1
        continue
    runs.append([i, i + 1, made])
  return [
    f'layers {first} to {end - 1}: '
    + ', '.join(f'{f.name} {n} to {n + end - 1 - first}' for f, n in start)
    for first, end, start in runs
  ]
