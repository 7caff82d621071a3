r"""Exports a row of a run's table: the evolved member, a baseline, a vote.

  evojax-llm export --run=runs/pocket_genome_plus --out=best_adapter
  evojax-llm export --run=runs/pocket_genome_plus --out=best_model \
      --merged
  evojax-llm export --run=runs/pocket_genome_plus --out=average \
      --row='scaled average'

The result is a PEFT adapter folder, or with --merged a full model folder with
the adapter added to the base's weights, which transformers loads as it is. Runs
in the space `weights` give a model folder anyway; in the space `layer_path` the
layers that are used and the path through them, which score and generate take,
or with --merged a model with a layer for every hop. README.md in it is a model
card. --row=vote writes the members that vote, each in a folder of its own, and
vote.json, which says how they decide.

A model is stored in the types of its base, and what a type keeps of the change
is told; --dtype=float32 keeps all. --max_rank brings a wide adapter to a lower
rank, the nearest there is, and tells how near.

A run that has not finished is exported with --allow_unfinished: then it is the
best member of its last checkpoint.
"""

from collections.abc import Sequence

from absl import flags

from evojax_llm.commands import source

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', None, 'New folder to be written.', required=True
)
_MERGED = flags.DEFINE_bool('merged', False, 'Write a full model folder.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16', 'float16'],
  "Type of a model's tensors; by default each has that of the base.",
)
_MAX_RANK = flags.DEFINE_integer(
  'max_rank', None, 'Highest rank of an adapter.', lower_bound=1
)
source.define_row()


def main(_: Sequence[str]) -> None:
  from evojax_llm.runs import export

  options = export.Options(_MERGED.value, _DTYPE.value, _MAX_RANK.value)
  kind = export.export(
    _RUN.value,
    _OUT.value,
    flags.FLAGS.row,
    **source.allowed(),
    options=options,
  )
  print(f'{kind} written to {_OUT.value}')
