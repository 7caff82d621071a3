r"""Exports the best member of a run.

  python -m experiments.export --run=runs/pocket_genome_plus --out=best_adapter
  python -m experiments.export --run=runs/pocket_genome_plus --out=best_model \
      --merged

The result is a PEFT adapter folder, or with --merged a full model folder with
the adapter added to the base's weights, which transformers loads as it is. The
best of a run in the space `weights` is a model folder anyway.

A run that has not finished is exported with --allow_unfinished: then it is the
best member of its last checkpoint.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import shutil
import tempfile

from absl import app
from absl import flags

from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import setup as problem_lib
from experiments import command

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)
_OUT = flags.DEFINE_string(
  'out', None, 'New folder to be written.', required=True
)
_MERGED = flags.DEFINE_bool('merged', False, 'Write a full model folder.')
_ALLOW_UNFINISHED = flags.DEFINE_bool(
  'allow_unfinished', False, 'Take the best so far of a run that goes on.'
)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  run, out = pathlib.Path(_RUN.value), pathlib.Path(_OUT.value)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise command.UserError(
      f'--out={out} exists. Nothing is overwritten: name a new folder.'
    )
  if not (run / 'config.json').is_file():
    raise command.UserError(
      f'--run={run} is not the folder of a run: it has no config.json.'
    )
  seeds = sorted(path.name for path in run.glob('seed_*'))
  if seeds:
    raise command.UserError(
      f'--run={run} holds the runs of several seeds: name one of them, '
      f'{", ".join(seeds)}.'
    )
  finished = (run / 'summary.json').is_file()
  if not finished and not _ALLOW_UNFINISHED.value:
    raise command.UserError(
      f'The run in {run} has not finished. Go on with it, or take its best so '
      'far with --allow_unfinished.'
    )

  from evojax_llm.runs import checkpoint
  from evojax_llm.runs import record
  from evojax_llm.runs.run_config import RunConfig

  with errors.as_user_error(checkpoint.CheckpointError):
    config = record.read_json(run / 'config.json')['config']
    config = RunConfig.from_config(config)
    files = inputs_lib.locate(config)
    whole = config.space == 'weights'
    with contextlib.ExitStack() as stack:
      best = run / 'best'
      if not finished:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        best = pathlib.Path(folder) / 'best'
        _export_so_far(run, config, files, whole, best)
      if _MERGED.value and not whole:
        _merge(files.model, best, out)
      else:
        shutil.copytree(best, out, dirs_exist_ok=True)
  print(f'{"model" if whole or _MERGED.value else "adapter"} written to {out}')


def _export_so_far(
  run, config, files, whole: bool, folder: pathlib.Path
) -> None:
  """Writes the best member of a run's last checkpoint."""
  from evojax_llm.models import hub
  from evojax_llm.models import peft
  from evojax_llm.population import stack
  from evojax_llm.runs import checkpoint
  from evojax_llm.runs import run_state

  generation, state = checkpoint.Checkpoints(run / 'checkpoints').read()
  model = hub.load_config(files.model)[0]
  # As evolve chooses it at the end.
  keep_best = config.strategy.options.get('keep_best', True)
  best = run_state.best_members(state, 1, keep_best)
  genome = stack.take(best.population, 0)
  like = str(files.model)
  if whole:
    hub.save_checkpoint(folder, genome, model, like=like)
  else:
    adapters = peft.load_adapters(files.adapters, model)
    _, space = problem_lib.make_space(config, adapters)
    space.export(genome, folder, model, like, like)
  command.say(
    f'member {best.ids[0]}, the best after generation {generation}: '
    f'{100 * float(best.fitness[0]):.1f} % on dev'
  )


def _merge(
  model: pathlib.Path, adapter: pathlib.Path, out: pathlib.Path
) -> None:
  """Writes the model with the adapter folded into its weights."""
  import jax.numpy as jnp

  from evojax_llm.genomes.adapters import AdapterSpace
  from evojax_llm.models import hub
  from evojax_llm.models import lora
  from evojax_llm.models import peft
  from evojax_llm.population import stack

  # Summed in f32; every tensor is then stored in the type that it had.
  config, params = hub.load_checkpoint(model, jnp.float32)
  space = AdapterSpace(peft.load_adapters([adapter], config))
  member = stack.take(space.experts(), jnp.int32(0))
  merged = lora.fold(params, space.express(member))
  hub.save_checkpoint(out, merged, config, like=model)


if __name__ == '__main__':
  app.run(main)
