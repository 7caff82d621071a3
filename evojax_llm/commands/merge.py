r"""Makes a model folder of a mergekit recipe.

  evojax-llm merge --recipe=ties.yaml --out=merged

with ties.yaml in mergekit's format:

  merge_method: ties
  base_model: models/base
  models:
    - model: models/code
      parameters: {weight: 0.6, density: 0.5}
    - model: models/base+adapters/math
      parameters: {weight: [0.2, 0.8], density: 0.5}
  dtype: bfloat16

Its 20 methods, slices, gradients and filters, on any folder of safetensors:
names and shapes of the tensors decide. Random masks depend on --random_seed,
the name of the tensor and the position of the model, so that a merge can be
made again; where a search wrote the recipe (mergekit.yaml beside its best
member), they are those that the member was scored with. The folder is that of
mergekit 0.1.5 within rounding, but
- the arithmetic is that of float32, whatever `dtype` says; in bfloat16 mergekit
  rounds each step, and the ranks by which della draws;
- where no filter of a weight (or t) matches a tensor, it is the base's, bit for
  bit; mergekit stops;
- of equal changes at the threshold of a density the first are kept; mergekit
  keeps any;
- an output matrix that is tied to the embedding is not stored beside it.

The plan is checked and shown before weights are read; --dry_run ends there, and
shows what each tensor is made of, by which numbers. The folder appears when it
is whole, with a model card and the recipe. What is not supported is refused by
name: `modules`, tokens that are added or moved, mixtures of experts, quantised
weights.
"""

from collections.abc import Sequence
import os
import pathlib
import re

from absl import flags

from evojax_llm.commands import command

_RECIPE = flags.DEFINE_string(
  'recipe', None, "YAML file of mergekit's format.", required=True
)
_OUT = flags.DEFINE_string('out', None, 'New folder to be written.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show the plan and end.')
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace the folder of an earlier merge.'
)
_RANDOM_SEED = flags.DEFINE_integer(
  'random_seed', None, "Of random masks, in place of the recipe's, or 0."
)
_SHARD_SIZE = flags.DEFINE_string(
  'shard_size', '5GB', 'Most of one file of weights, such as 500MB.'
)
_UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def main(_: Sequence[str]) -> None:
  from evojax_llm.recipes import merge
  from evojax_llm.runs import outputs
  from evojax_llm.runs.errors import UserError
  from evojax_llm.runs.errors import say

  size = re.fullmatch(r'(\d{1,12})([KMG]?B?)', _SHARD_SIZE.value.upper())
  unit = size and (size[2] + 'B' if size[2] in ('K', 'M', 'G') else size[2])
  if not size or not int(size[1]) or unit == 'B':
    raise UserError(
      f'Got --shard_size={_SHARD_SIZE.value}; expected a size such as 5GB.'
    )
  shard_bytes = int(size[1]) * _UNITS[unit]
  if not (_OUT.value or _DRY_RUN.value):
    raise UserError('--out is missing: a new folder. See --help.')
  plan = merge.plan(_RECIPE.value)
  if _DRY_RUN.value:
    print(f'{merge.describe(plan, shard_bytes)}\n\n{merge.tensors(plan)}')
    return
  out = pathlib.Path(os.path.expanduser(_OUT.value))
  read = [folder.path for folder in plan.folders.values()]
  outputs.prepare(out, [*read, _RECIPE.value])
  if any(out.resolve() in path.resolve().parents for path in read):
    raise UserError(f'--out={out} holds a folder that this command reads.')
  merge.check_new(out, _OVERWRITE.value)
  say(merge.describe(plan, shard_bytes))
  merge.merge(
    plan,
    out,
    shard_bytes=shard_bytes,
    seed=_RANDOM_SEED.value,
    overwrite=_OVERWRITE.value,
    progress=command.Progress(),
  )
  print(f'model written to {_OUT.value}')
