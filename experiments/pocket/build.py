"""Builds the pocket population: base, experts, task files and stages.

  python -m experiments.pocket.build --out=/tmp/pocket

Everything is generated and trained here, from one seed. --dense trains the
dense experts alone, from the base that is in the folder.
"""

from collections.abc import Sequence
import pathlib
import shutil
import time

from absl import flags
from absl import logging
import jax
import numpy as np

from evojax_llm import pocket
from evojax_llm.commands import command
from evojax_llm.models import hub
from experiments.pocket import data
from experiments.pocket import folders
from experiments.pocket import slices
from experiments.pocket import train

_OUT = flags.DEFINE_string(
  'out', None, 'Folder to write; the package itself when not given.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace a population that is already in the folder.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of all data and weights.')
_LAYERS = flags.DEFINE_integer('layers', 6, 'L, layers of the base.')
_WIDTH = flags.DEFINE_integer('width', 128, 'D, width of the base.')
_FFN = flags.DEFINE_integer('ffn', 320, 'F, feed-forward width of the base.')
_BASE_STEPS = flags.DEFINE_integer('base_steps', 1700, 'Steps of the base.')
_BASE_BATCH = flags.DEFINE_integer('base_batch', 128, 'Rows a base step.')
_EXPERT_STEPS = flags.DEFINE_integer('expert_steps', 400, 'Steps of experts.')
_EXPERT_BATCH = flags.DEFINE_integer('expert_batch', 32, 'Rows a step, each.')
_EXPERT_RATE = flags.DEFINE_float('expert_rate', 2e-3, 'Peak learning rate.')
_DENSE_RATE = flags.DEFINE_float(
  'dense_rate', 2e-4, 'Peak learning rate of dense experts.'
)
_NUM_DEV = flags.DEFINE_integer('num_dev', 200, 'Dev items a task.')
_NUM_TEST = flags.DEFINE_integer('num_test', 1000, 'Test items a task.')

_RANK = 8
_ALPHA = 16
_REUSE_BASE = flags.DEFINE_bool(
  'reuse_base', False, 'Keep the base that is in the folder.'
)
_DENSE = flags.DEFINE_bool(
  'dense', False, 'Train the dense experts alone and keep all else.'
)
_PARTS = ('base', 'experts', 'dense', 'tasks', 'stages.json')


def _clear(out: pathlib.Path) -> None:
  """Makes room in the folder, or refuses to."""
  parts = _PARTS[1:] if _REUSE_BASE.value else _PARTS
  parts = ('dense',) if _DENSE.value else parts
  found = [out / part for part in parts if (out / part).exists()]
  if found and not _OVERWRITE.value:
    raise command.UserError(
      f'{out} already holds {", ".join(p.name for p in found)}; expected a '
      'folder without. Give --out=FOLDER, or --overwrite to replace it.'
    )
  for path in found:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _base(folder: pathlib.Path, held_out: set[str]):
  """Trains and writes the base."""
  config = folders.start_base(
    folder, folders.base_config(_LAYERS.value, _WIDTH.value, _FFN.value)
  )
  logging.info('base: %d parameters', config.num_params)
  mixture = data.Mixture(slices.BASE_WEIGHTS, held_out, f'{_SEED.value}/base')
  recipe = train.Recipe(
    _BASE_STEPS.value, _BASE_BATCH.value, 2e-3, 100, _SEED.value
  )
  params = train.train_base(config, mixture, recipe)
  return config, folders.finish_base(folder, params, config)


def _accuracy(config, params, tasks) -> dict[str, float]:
  """Dev accuracy in per cent by task; options count as written answers."""
  return {
    name: 100
    * float(
      np.mean(
        train.exact_match(
          config,
          params,
          data.rows(data.examples_of(task, 'dev'), data.SCORED_LENGTH),
        )
      )
    )
    for name, task in tasks.items()
  }


def _adapters(out: pathlib.Path, config, params, held_out: set[str]) -> None:
  """Trains and writes the experts that are adapters."""
  experts, seed = slices.expert_slices(), _SEED.value
  mixtures = [
    data.Mixture(slices.expert_weights(own), held_out, f'{seed}/{name}')
    for name, own in experts.items()
  ]
  factors = train.train_experts(
    config,
    params,
    mixtures,
    train.Recipe(
      _EXPERT_STEPS.value, _EXPERT_BATCH.value, _EXPERT_RATE.value, 10, seed
    ),
    rank=_RANK,
    scale=_ALPHA / _RANK,
  )
  folders.write_experts(
    out / 'experts', list(experts), factors, config, _ALPHA / _RANK
  )


def _dense(out: pathlib.Path, config, params, tasks, held_out: set[str]):
  """Trains and writes the experts that are whole models."""
  experts, seed = slices.dense_slices(), _SEED.value
  mixtures = {
    name: data.Mixture(slices.expert_weights(own), held_out, f'{seed}/{name}')
    for name, own in experts.items()
  }
  recipe = train.Recipe(
    _EXPERT_STEPS.value, _EXPERT_BATCH.value, _DENSE_RATE.value, 10, seed
  )
  trained = train.train_models(config, params, mixtures, recipe)
  for name, one in zip(experts, trained, strict=True):
    folder = shutil.copytree(out / 'base', out / 'dense' / name)
    stored = folders.finish_base(folder, one, config)
    logging.info('%s, dev: %s', name, _show(_accuracy(config, stored, tasks)))


def main(_: Sequence[str]) -> None:
  """Builds the folder, or its dense experts alone."""
  start = time.monotonic()
  out = pathlib.Path(_OUT.value or pathlib.Path(pocket.__file__).parent)
  _clear(out)
  tasks = {
    name: data.task(name, _NUM_DEV.value, _NUM_TEST.value, _SEED.value)
    for name in slices.task_families()
  }
  held_out = set().union(*(data.prompts(task) for task in tasks.values()))
  if not _DENSE.value:
    (out / 'tasks').mkdir(parents=True)
    for name, task in tasks.items():
      data.write_task(out / 'tasks' / f'{name}.json', task)
    folders.write_json(out / 'stages.json', slices.stages())
    logging.info('wrote %d tasks', len(tasks))

  if _DENSE.value or _REUSE_BASE.value:
    config, params = hub.load_checkpoint(out / 'base')
  else:
    config, params = _base(out / 'base', held_out)
  logging.info('base, dev: %s', _show(_accuracy(config, params, tasks)))
  if not _DENSE.value:
    _adapters(out, config, params, held_out)
  _dense(out, config, params, tasks, held_out)
  size = sum(f.stat().st_size for f in out.rglob('*') if f.is_file())
  logging.info(
    'wrote %s, %.1f MB, in %.0f s', out, size / 1e6, time.monotonic() - start
  )


def _show(accuracy: dict[str, float]) -> str:
  return ' '.join(f'{name} {value:.0f}' for name, value in accuracy.items())


if __name__ == '__main__':
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  jax.config.update('jax_num_cpu_devices', 2)
  command.launch(main, quiet=False)
