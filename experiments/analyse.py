r"""Says what a finished run did beside its scores.

  python -m experiments.analyse --run=runs/pocket_genome_plus

Writes into the run folder analysis.json, analysis.md and trajectory.png:

* correctness emergence: of the items that no expert solved, those that the
  evolved member solves, and what it forgot of what the best expert could; on
  dev, unless members move without being scored (rescore=False), and on test
  where the run read all experts (--config.test_experts);
* the winner's origin: the rank of the initial member that it descends from,
  and of the experts in its ancestry, where the algorithm tells of parents;
* the trajectory: all members on the plane in which their answers differ most.

Only records are read; no model is loaded.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from absl import app
from absl import flags
from absl import logging

from evojax_llm.runs import errors
from experiments import command

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  run = pathlib.Path(_RUN.value)
  if not (run / 'summary.json').is_file() or not (run / 'items').is_dir():
    raise command.UserError(
      f'--run={run} is not the folder of a finished run, with summary.json and '
      'items. Finish it first; of several seeds, name the folder of one.'
    )

  from evojax_llm.fitness.item_log import ItemLog
  from evojax_llm.runs import analysis
  from evojax_llm.runs import checkpoint
  from evojax_llm.runs import plots
  from evojax_llm.runs import record

  with errors.as_user_error(checkpoint.CheckpointError, ValueError):
    summary = record.read_json(run / 'summary.json')
    experts = record.read_json(run / 'baselines.json')['fitness']
    # None stands for an expert that could not be scored.
    fitness = {n: -math.inf if f is None else f for n, f in experts.items()}
    strategy = record.read_json(run / 'config.json')['config']['strategy']
    # Where members move and keep their scores, the log has answers of before.
    as_scored = strategy['options'].get('rescore', True)
    best = summary['best']['id']
    rows = _rows(summary['tested'], list(experts), best)
    emerged = {}
    for split, before, after in (
      ('dev', ItemLog(run / 'baseline_items'), ItemLog(run / 'items')),
      ('test', *[ItemLog(run / 'test_items')] * 2),
    ):
      those = range(1, 1 + len(experts)), best
      if split == 'dev' and not as_scored:
        continue
      if split == 'test':
        if rows is None:
          continue
        those = rows
      counted = _emergence(before, after, *those, fitness)
      if counted is not None:
        emerged[split] = dataclasses.asdict(counted)
    members = record.JsonLines(run / 'members.jsonl').read()
    came = analysis.origin(best, members, fitness)
    path = analysis.trajectory(ItemLog(run / 'items').read())
  places = {id_: place for place, id_ in enumerate(path.ids)}
  plots.trajectory(
    run / 'trajectory.png',
    path.points,
    path.generations,
    [places[id_] for id_ in came.path if id_ in places],
    path.explained,
  )
  found = {
    'best': best,
    'emergence': emerged,
    'origin': dataclasses.asdict(came),
    'explained': path.explained,
  }
  record.write_json(run / 'analysis.json', found)
  text = _markdown(record.plain(found))
  record.write_text(run / 'analysis.md', text)
  print(text)


def _rows(
  tested: Sequence[str], experts: Sequence[str], best: int
) -> tuple[list[int], int] | None:
  """Places of experts and best among those tested; None if some are not."""
  places = {name: place for place, name in enumerate(tested)}
  found = [places.get(f'expert {name}') for name in experts]
  # The best expert stands there under what it is.
  if found.count(None) > 1 or f'member {best}' not in places:
    return None
  rows = [places['best expert'] if p is None else p for p in found]
  return rows, places[f'member {best}']


def _emergence(
  before: Any,
  after: Any,
  experts: Sequence[int],
  best: int,
  fitness: dict[str, float],
) -> Any:
  """Counts over the tasks whose items are right or wrong; None without any."""
  import numpy as np

  from evojax_llm.fitness import ensembles
  from evojax_llm.runs import analysis

  old = ensembles.gather(before.read(), list(experts))
  new = ensembles.gather(after.read(), [best])
  if old is None or new is None:
    return None
  pairs = [
    (o.values, n.values[0])
    for o, n in zip(old, new, strict=True)
    if o.binary and o.ids == n.ids and not np.isnan(n.values).any()
  ]
  if not pairs:
    return None
  names = list(fitness)
  return analysis.emergence(
    np.concatenate([values for values, _ in pairs], axis=1),
    names.index(max(names, key=fitness.__getitem__)),
    np.concatenate([values for _, values in pairs]),
  )


def _markdown(found: dict[str, Any]) -> str:
  lines = [f'# Member {found["best"]}', '']
  for split, counts in found['emergence'].items():
    lines += [
      f'On {split} no expert solved {counts["unsolved"]} of {counts["items"]} '
      f'items; it solves {counts["emerged"]} of them'
      + _percent(counts['emerged'], counts['unsolved'])
      + f'. Of the {counts["best_solved"]} that the best expert solved it has '
      f'{counts["lost"]} wrong'
      + _percent(counts['lost'], counts['best_solved'])
      + '.',
      '',
    ]
  came = found['origin']
  if came['rank'] is None:
    lines += ['Its algorithm tells of no parents, so it has no origin.', '']
  else:
    lines += [
      f'It descends from initial member {came["path"][0]}, number '
      f'{came["rank"]} of {came["of"]} by dev, in {len(came["path"]) - 1} '
      'steps along first parents.',
      '',
    ]
  if came['experts']:
    told = ', '.join(
      f'{name} (number {rank})'
      for name, rank in zip(came['experts'], came['expert_ranks'], strict=True)
    )
    lines += [f'Experts in its ancestry, by their dev fitness: {told}.', '']
  lines += [
    'Members on the plane in which their dev answers differ most:',
    '',
    '![trajectory](trajectory.png)',
    '',
  ]
  return '\n'.join(lines)


def _percent(part: int, whole: int) -> str:
  return f' ({100 * part / whole:.0f} %)' if whole else ''


if __name__ == '__main__':
  app.run(main)
