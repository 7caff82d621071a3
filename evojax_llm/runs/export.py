"""Exports the best member of a run as an adapter or a model."""

import contextlib
import pathlib
import shutil
import tempfile

import jax.numpy as jnp

from evojax_llm.genomes.space import Space
from evojax_llm.genomes.space import make_space
from evojax_llm.models import expression
from evojax_llm.models import hub
from evojax_llm.population import stack
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import record
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig


def export(
  run: pathlib.Path,
  out: pathlib.Path,
  merged: bool = False,
  allow_unfinished: bool = False,
) -> str:
  """Exports the best member of a run.

  Args:
    run: the run folder.
    out: a new folder.
    merged: write a model with an adapter folded into its weights.
    allow_unfinished: take the best of the last checkpoint of a run that has
      not finished.

  Returns:
    What was written: 'adapter' or 'model'.

  Raises:
    UserError: `out` is not new, or `run` not a run that can be exported.
    CheckpointError: a record or a checkpoint is damaged.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(
      f'--out={out} exists. Nothing is overwritten: name a new folder.'
    )
  if (run / 'sweep.json').is_file():
    trials = sorted(path.parent.name for path in run.glob('*/config.json'))
    raise UserError(
      f'--run={run} holds several runs: name one of them, {", ".join(trials)}.'
    )
  if not (run / 'config.json').is_file():
    raise UserError(
      f'--run={run} is not the folder of a run: it has no config.json.'
    )
  finished = (run / 'summary.json').is_file()
  if not finished and not allow_unfinished:
    raise UserError(
      f'The run in {run} has not finished. Go on with it, or take its best so '
      'far with --allow_unfinished.'
    )
  config = record.read_json(run / 'config.json')['config']
  config = RunConfig.from_config(config)
  files = inputs_lib.locate(config)
  space = setup_lib.load_space(config, files, with_params=False)
  whole = space.exports == 'model'
  with contextlib.ExitStack() as stack_:
    best = run / 'best'
    if not finished:
      folder = stack_.enter_context(tempfile.TemporaryDirectory())
      best = pathlib.Path(folder) / 'best'
      _export_so_far(run, config, space, best)
    if merged and not whole:
      _merge(files.model, best, out)
    else:
      shutil.copytree(best, out, dirs_exist_ok=True)
  return 'model' if whole or merged else 'adapter'


def _export_so_far(
  run: pathlib.Path, config: RunConfig, space: Space, folder: pathlib.Path
) -> None:
  """Writes the best member of a run's last checkpoint."""
  generation, state = checkpoint.Checkpoints(run / 'checkpoints').read()
  # As a run chooses it at the end.
  keep_best = config.strategy.options.get('keep_best', True)
  best = run_state.best_members(state, 1, keep_best)
  genome = stack.take(best.population, 0)
  space.export(genome, folder)
  errors.say(
    f'member {best.ids[0]}, the best after generation {generation}: '
    f'{100 * float(best.fitness[0]):.1f} % on dev'
  )


def _merge(
  model: pathlib.Path, adapter: pathlib.Path, out: pathlib.Path
) -> None:
  """Writes the model with the adapter folded into its weights."""
  # Summed in f32; every tensor is then stored in the type that it had.
  space = make_space('adapters', model, [adapter], dtype=jnp.float32)
  base = space.model()
  member = space.express(stack.take(space.experts(), jnp.int32(0)))
  merged = expression.fold(base.params, member)
  hub.save_checkpoint(out, merged, base.config, like=model)
