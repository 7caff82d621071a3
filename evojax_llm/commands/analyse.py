r"""Analyses a finished run beside its scores.

  evojax-llm analyse --run=runs/pocket_genome_plus

Writes into the run folder analysis.json, analysis.md, trajectory.png and
family.png:

* correctness emergence: of the items that no expert solved, those that the
  evolved member solves, and of those that the best expert solved, what it has
  lost; on dev, unless members move without being scored (rescore=False), and on
  test where the run read all experts (--config.test_experts);
* the origin: ranks of the initial member that the best one descends from and of
  the experts in its ancestry, where the algorithm records parents;
* the trajectory: all members on the plane in which their answers differ most;
* the family tree: who descends from whom, by generation and fitness.

No model is loaded.
"""

from collections.abc import Sequence
import pathlib

from absl import flags

from evojax_llm.commands import command
from evojax_llm.runs import errors

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)


def main(_: Sequence[str]) -> None:
  run = pathlib.Path(_RUN.value)
  if not (run / 'summary.json').is_file() or not (run / 'items').is_dir():
    raise command.UserError(
      f'--run={run} is not the folder of a finished run, with summary.json and '
      'items. Finish it first; of several seeds or stages, name the folder of '
      'one.'
    )

  from evojax_llm.runs import analysis

  with errors.as_user_error(ValueError):
    print(analysis.analyse(run))
