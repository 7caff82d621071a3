"""Measures the pocket population: what any evolution has to be better than.

  python -m experiments.pocket.results_table --out=/tmp/table

Writes table.md and table.json: dev and test accuracy of the base, each expert,
the uniform average, the average with B scaled, and the best expert with B
scaled, on every task and every stage. Whatever is chosen is chosen on dev.
"""

from collections.abc import Sequence
import json
import pathlib
import time

from absl import flags
from absl import logging
import jax

from evojax_llm import pocket
from evojax_llm.commands import command
from experiments.pocket import measure as measure_lib

_OUT = flags.DEFINE_string('out', None, 'Folder to write.', required=True)
_LIMIT = flags.DEFINE_integer('limit', None, 'Items of each split; all if none')


def main(_: Sequence[str]) -> None:
  """Measures everything and writes the files."""
  start = time.monotonic()
  measure = measure_lib.Measure(_LIMIT.value)
  labels = ['base', *measure.names, 'average']
  tasks = {}
  for name in pocket.task_names():
    tasks[name] = {
      split: measure(labels, name, split) for split in measure_lib.SPLITS
    }
    logging.info('%s, %.0f s', name, time.monotonic() - start)
  stages = {
    name: measure_lib.stage_row(measure, pocket.stage(name))
    for name in pocket.stage_names()
  }
  result = {'stages': stages, 'tasks': tasks}
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'table.json').write_text(json.dumps(result, indent=1) + '\n')
  text = measure_lib.markdown(result)
  (out / 'table.md').write_text(text)
  print(text)


if __name__ == '__main__':
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  command.launch(main, quiet=False)
