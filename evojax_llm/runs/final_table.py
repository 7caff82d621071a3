"""The end of a run: who won, on what, and by how much."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
import shutil
from typing import Any

import numpy as np

import evojax_llm
from evojax_llm.fitness import ensembles
from evojax_llm.fitness import objectives
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.population import stack
from evojax_llm.runs import baseline_rows as rivals_lib
from evojax_llm.runs import finalists as roster_lib
from evojax_llm.runs import int8_base
from evojax_llm.runs import plots
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as problem_lib
from evojax_llm.runs import votes as ensemble_lib
from evojax_llm.tasks.scorers.registry import scorer_of

EVOLVED = 'evolved'
OF_EXPERTS = 'ensemble of experts'
OF_EVOLVED = 'ensemble of evolved'


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a run has to do with, and what of it the report needs.

  Attributes:
    config: the configuration.
    problem: what is evolved, and on what.
    evaluator: of the problem's tasks.
    heldout: an evaluator of tasks that the search knows nothing of, whose items
      stand in its `dev`; None where there are none.
    model: folder of the base.
    name: of the run.
    keep_best: of the strategy.
  """

  config: Any
  problem: problem_lib.Problem
  evaluator: Any
  heldout: Any
  model: str
  name: str
  keep_best: bool

  @property
  def has_test(self) -> bool:
    """Whether every task has items for the final report."""
    return all(task.test for task in self.problem.tasks)


def finish(
  run: record.RunFolder,
  asked: Asked,
  rivals: rivals_lib.Rivals,
  state: run_state.RunState,
  best: run_state.Best,
  bar: progress.Progress,
) -> None:
  """Exports the best member, reads test once, writes the report."""
  evaluator, problem = asked.evaluator, asked.problem
  _export(run, problem, best.genome, asked.model)

  groups = _ensembles(run, asked, rivals, state)
  rows = [dict(row) for row in rivals.rows]
  evolved = {
    'name': EVOLVED,
    'detail': f'member {int(best.id)}',
    'evaluations': int(state.evaluations),
    'dev': rivals_lib.summary(evaluator, problem, 'dev', best.task_scores),
  }
  # Experts stand with the baselines, members behind the best of them.
  counts = {
    OF_EXPERTS: len(problem.experts.names),
    OF_EVOLVED: int(state.evaluations),
  }
  for name in (OF_EXPERTS, EVOLVED, OF_EVOLVED):
    if name == EVOLVED:
      rows.append(evolved)
    elif name in groups:
      made = groups[name]
      rows.append(
        {
          'name': name,
          'detail': made.detail,
          'evaluations': counts[name] + made.evaluations,
          'dev': rivals_lib.summary(evaluator, problem, 'dev', made.dev),
        }
      )
  roster = _roster(asked, rivals, best, groups)
  tested = {}
  if asked.has_test:
    bar.begin(len(roster.names), 'test')
    scores = roster.read(evaluator, 'test', bar.update)
    ItemLog(run.path / 'test_items').append(0, range(len(roster.names)), scores)
    tested['test'] = (evaluator, 'test', scores)
  if asked.heldout is not None:
    bar.begin(len(roster.names), 'held-out tasks')
    scores = roster.read(asked.heldout, 'dev', bar.update)
    tested['heldout'] = (asked.heldout, 'dev', scores)
  bounds = {name: {'dev': made.bound} for name, made in groups.items()}
  for row in rows:
    row['test'] = None
    for split, (reader, items, scores) in tested.items():
      made = groups.get(row['name'])
      if made is None:
        place = (
          roster.member(int(best.id))
          if row['name'] == EVOLVED
          else roster.names.index(row['name'])
        )
        found = scores.task_scores[place]
      else:
        find = roster.expert if made.population is None else roster.member
        found, bounds[row['name']][split] = ensemble_lib.score(
          reader,
          items,
          made,
          scores.task_scores,
          scores.tasks,
          [find(member) for member in made.members],
        )
      row[split] = report.summarise(
        [task.name for task in reader.tasks],
        found,
        [len(chosen) for chosen in reader.items(items)],
        [scorer_of(task) for task in reader.tasks],
        reader.objective,
      )
  _write(run, asked, rows, state, best, roster.names, groups, bounds)


def _export(run, problem, genome, model: str) -> None:
  folder = run.path / 'best'
  # What a process that was killed right here may have left.
  for left in [folder, *run.path.glob('.best.*.tmp')]:
    shutil.rmtree(left, ignore_errors=True)
  problem.space.export(genome, folder, problem.config, model, model)


def _ensembles(run, asked, rivals, state) -> dict[str, ensemble_lib.Ensemble]:
  """The best experts, and the best members that are alive or remembered."""
  options = asked.config.ensemble
  if not options.size:
    return {}
  found = run_state.best_members(state, options.size, asked.keep_best)
  made = {
    OF_EXPERTS: ensemble_lib.of_experts(
      asked.evaluator,
      rivals.expert_scores,
      lambda experts: rivals_lib.expert_results(run, experts),
      options,
    ),
    OF_EVOLVED: ensemble_lib.of_members(
      asked.evaluator,
      asked.problem.space,
      found,
      _known(run, found.ids, asked.config),
      options,
    ),
  }
  return {name: one for name, one in made.items() if one is not None}


def _known(run, ids, config):
  """Task scores and answers of members as the run has kept them."""
  # In GENOME's released code a member moves and keeps its id and its score.
  if not config.strategy.options.get('rescore', True):
    return None
  results = ensembles.gather(run.items.read(), ids)
  if results is None:
    return None
  by_id = {row['id']: row['tasks'] for row in run.members.read()}
  scores = [list(by_id[member].values()) for member in ids]
  return np.asarray(scores, np.float32), results


def _roster(asked, rivals, best, groups) -> roster_lib.Roster:
  """All who are asked for their answers at the end."""
  experts, ids = [], [int(best.id)]
  genomes = [stack.stack([best.genome])]
  if asked.config.test_experts:
    experts = range(len(asked.problem.experts.names))
  elif OF_EXPERTS in groups:
    experts = groups[OF_EXPERTS].members
  if OF_EVOLVED in groups:
    made = groups[OF_EVOLVED]
    others = [i for i, id_ in enumerate(made.members) if id_ != ids[0]]
    if others:
      ids += [made.members[i] for i in others]
      rows = np.asarray(others, np.int32)
      genomes.append(stack.take(made.population, rows))
  return roster_lib.Roster(
    asked.problem, rivals.rows, experts, ids, stack.concatenate(*genomes)
  )


def _write(
  run: record.RunFolder,
  asked: Asked,
  rows: Sequence[Mapping[str, Any]],
  state: run_state.RunState,
  best: run_state.Best,
  names: Sequence[str],
  groups: Mapping[str, ensemble_lib.Ensemble],
  bounds: Mapping[str, Mapping[str, float]],
) -> None:
  """curve.png, summary.md and summary.json."""
  evaluator = asked.evaluator
  member_rows, metrics = run.members.read(), run.metrics.read()
  summary = {
    'name': asked.name,
    'version': evojax_llm.__version__,
    'objective': evaluator.objective.name,
    'rows': rows,
    'best': {
      'id': int(best.id),
      'generation': int(best.generation),
      'fitness': np.asarray(best.fitness)[()],
    },
    'ensembles': {
      name: {
        'rule': made.rule,
        'members': made.members,
        'dev_fitness_by_size': made.by_size,
        # Who knows which member is right: a bound, and no result.
        'oracle': bounds[name],
      }
      for name, made in groups.items()
    },
    'tested': names if asked.has_test else [],
    'lineage': record.lineage_of(int(best.id), member_rows),
    'generations': int(state.generation),
    'evaluations': int(state.evaluations),
    'failed': sum(row['failed'] for row in metrics),
    'tokens': sum(row['tokens'] for row in metrics),
    'seconds': _total_seconds(metrics),
    # Of the process that ended the run, baselines and test included.
    'ledger': evaluator.ledger.as_dict(),
    'base_dtype': int8_base.read(run),
  }
  if evaluator.objective.name == 'pareto':
    summary['front'] = _front(evaluator, member_rows)
  levels = {
    row['name']: row['dev']['fitness']['score']
    for row in rows
    if row['name'] in ('base', 'best expert', 'soup', 'scaled average')
    and row['dev']['fitness']['score'] is not None
  }
  plots.curve(
    run.path / 'curve.png', metrics, levels, evaluator.objective.percent
  )
  record.write_text(
    run.path / 'summary.md', report.markdown(record.plain(summary))
  )
  # Last: a folder with a summary.json is a finished run.
  record.write_json(run.path / 'summary.json', summary)


def show(folder: pathlib.Path) -> None:
  """Prints the table of a finished run."""
  summary = record.read_json(folder / 'summary.json')
  print(report.table(summary['rows']))
  print(f'\nbest member: {folder / "best"}\nreport: {folder / "summary.md"}')


def _front(evaluator, member_rows):
  """The members of all generations that no other one beats, by dev."""
  vectors = [
    [math.nan if v is None else v for v in row['tasks'].values()]
    for row in member_rows
  ]
  kept = objectives.front(vectors, evaluator.objective.maximise)
  return [{k: member_rows[i][k] for k in ('id', 'tasks')} for i in kept]


def _total_seconds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  total: dict[str, float] = {}
  for row in metrics:
    for part, seconds in row['seconds'].items():
      total[part] = round(total.get(part, 0.0) + seconds, 4)
  return total
