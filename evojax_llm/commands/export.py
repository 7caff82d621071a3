r"""Exports the best member of a run.

  evojax-llm export --run=runs/pocket_genome_plus --out=best_adapter
  evojax-llm export --run=runs/pocket_genome_plus --out=best_model \
      --merged

The result is a PEFT adapter folder, or with --merged a full model folder with
the adapter added to the base's weights, which transformers loads as it is. The
best of a run in the space `weights` is a model folder anyway.

A run that has not finished is exported with --allow_unfinished: then it is the
best member of its last checkpoint.
"""

from collections.abc import Sequence
import pathlib

from absl import flags

from evojax_llm.commands import command

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', None, 'New folder to be written.', required=True
)
_MERGED = flags.DEFINE_bool('merged', False, 'Write a full model folder.')
_ALLOW_UNFINISHED = flags.DEFINE_bool(
  'allow_unfinished', False, 'Take the best so far of a run that goes on.'
)


def main(_: Sequence[str]) -> None:
  run, out = pathlib.Path(_RUN.value), pathlib.Path(_OUT.value)
  from evojax_llm.runs import checkpoint
  from evojax_llm.runs import errors
  from evojax_llm.runs import export

  with errors.as_user_error(checkpoint.CheckpointError):
    kind = export.export(run, out, _MERGED.value, _ALLOW_UNFINISHED.value)
  print(f'{kind} written to {out}')


if __name__ == '__main__':
  command.launch(main)
