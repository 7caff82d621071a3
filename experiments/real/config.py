r"""Searches over the experts that `experiments.real.build` has trained.

  python -m experiments.evolve --config=experiments/real/config.py
  python -m experiments.evolve --config=experiments/real/config.py:cma_es@DIR

The word after the colon is genome_plus (the default), model_swarms or cma_es;
DIR is the folder of the build, runs/real by default. Two tasks are searched on
at once and one is held out. All searches score 40 members on 20 dev items of
each task, and the baseline that learns reads 64 rows, which suits two CPU cores
and tells little; on an accelerator ask for more:

  --config.dev_limit=200 --config.test_limit=400 \
      --config.strategy.evaluations=200 --config.fine_tuning.steps=200 \
      --config.fine_tuning.batch=32 --config.execution.dtype=bfloat16
"""

import pathlib

from ml_collections import config_dict

from evojax_llm import lookup
from evojax_llm.systems import coefficients
from evojax_llm.systems import genome
from evojax_llm.systems import model_swarms
from experiments.real import parts

_SYSTEMS = {
  'genome_plus': genome,
  'model_swarms': model_swarms,
  'cma_es': coefficients,
}
FOLDER = 'runs/real'
# Short items, so that a member is scored in seconds on a CPU.
SEARCHED = ('arc_challenge', 'truthfulqa')
HELD_OUT = 'mmlu'
_EVALUATIONS = 40


def get_config(name: str = 'genome_plus') -> config_dict.ConfigDict:
  """Returns a preset, with changes as of `presets.of_preset`, of a build."""
  preset, _, folder = name.partition('@')
  system = preset.partition('+')[0] or 'genome_plus'
  if system not in _SYSTEMS:
    raise ValueError(
      f'Got preset {system!r}{lookup.expected(system, _SYSTEMS)}'
    )
  config = _SYSTEMS[system].get_config(preset or system)
  built = pathlib.Path(folder or FOLDER).expanduser()
  known = parts.read_experts(built)
  config.model = known['model']
  config.adapters = ','.join(
    str(built / 'experts' / expert) for expert in known['experts']
  )
  tasks = list(dict.fromkeys(e['task'] for e in known['experts'].values()))
  searched, held_out = SEARCHED, HELD_OUT
  if not {*searched, held_out} <= {*tasks}:
    searched, held_out = tasks[:-1][:2] or tasks, tasks[-1] * (len(tasks) > 1)
  files = {task: str(built / 'tasks' / f'{task}.json') for task in tasks}
  config.tasks = ','.join(files[task] for task in searched)
  config.heldout_tasks = files.get(held_out, '')
  config.dev_limit, config.test_limit = 20, 40
  config.strategy.population = 8
  config.strategy.evaluations = _EVALUATIONS
  # Ended by the evaluations.
  config.strategy.generations = _EVALUATIONS
  config.fine_tuning.steps, config.fine_tuning.batch = 16, 4
  config.fine_tuning.lr = 1e-3
  return config
