"""The end of a run: exports the best member, reads test, writes the report."""

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
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import int8_base
from evojax_llm.runs import plots
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import votes
from evojax_llm.runs.finalists import Finalists
from evojax_llm.runs.preparation import Prepared

EVOLVED = 'evolved'
OF_EXPERTS = 'ensemble of experts'
OF_EVOLVED = 'ensemble of evolved'
# Baselines that the curve shows.
_LEVELS = ('base', 'best expert', 'soup', 'scaled average')


def finish(
  run: record.RunFolder,
  prepared: Prepared,
  baselines: baselines_lib.Baselines,
  state: run_state.RunState,
  best: run_state.Member,
  bar: progress.Progress,
) -> None:
  """Exports the best member, reads test once, writes the report."""
  _Ending(run, prepared, baselines, state, best).finish(bar)


def show(folder: pathlib.Path) -> None:
  """Prints the table of a finished run."""
  summary = record.read_json(folder / 'summary.json')
  print(report.table(summary['rows']))
  print(f'\nbest member: {folder / "best"}\nreport: {folder / "summary.md"}')


@dataclasses.dataclass(frozen=True)
class _Ending:
  """A run whose search is over."""

  run: record.RunFolder
  prepared: Prepared
  baselines: baselines_lib.Baselines
  state: run_state.RunState
  best: run_state.Member

  def finish(self, bar: progress.Progress) -> None:
    prepared, best = self.prepared, self.best
    evaluator, heldout = prepared.evaluator, prepared.heldout()
    self._export()
    groups = self._groups()
    rows = self._rows(groups)
    finalists = self._finalists(groups)
    # What is read at the end: by name the evaluator, its split, and scores.
    ends = {}
    if self._has_test():
      bar.begin(len(finalists.names), 'test')
      scores = finalists.read(evaluator, 'test', bar.update)
      log = ItemLog(self.run.path / 'test_items')
      log.append(0, range(len(finalists.names)), scores)
      ends['test'] = evaluator, 'test', scores
    if heldout is not None:
      bar.begin(len(finalists.names), 'held-out tasks')
      scores = finalists.read(heldout, 'dev', bar.update)
      ends['heldout'] = heldout, 'dev', scores
    bounds = {name: {'dev': group.bound} for name, group in groups.items()}
    for row in rows:
      name = row['name']
      row['test'] = None
      for end, (reader, split, scores) in ends.items():
        if name in groups:
          group = groups[name]
          index = finalists.expert
          if group.population is not None:
            index = finalists.member
          task_scores, bounds[name][end] = votes.score(
            reader,
            split,
            group,
            scores.task_scores,
            scores.tasks,
            [index(member) for member in group.members],
          )
        elif name == EVOLVED:
          task_scores = scores.task_scores[finalists.member(int(best.id))]
        else:
          task_scores = scores.task_scores[finalists.names.index(name)]
        row[end] = report.of_split(reader, split, task_scores)
    self._write(rows, finalists.names, groups, bounds)

  def _has_test(self) -> bool:
    return all(task.test for task in self.prepared.setup.tasks)

  def _export(self) -> None:
    folder = self.run.path / 'best'
    # What a process that was killed right here may have left.
    for left in [folder, *self.run.path.glob('.best.*.tmp')]:
      shutil.rmtree(left, ignore_errors=True)
    self.prepared.setup.space.export(self.best.genome, folder)

  def _groups(self) -> dict[str, votes.Ensemble]:
    """The best experts, and the best members that are alive or remembered."""
    prepared, options = self.prepared, self.prepared.config.ensemble
    if not options.size:
      return {}
    members = run_state.best_members(
      self.state, options.size, prepared.strategy.keep_best
    )
    groups = {
      OF_EXPERTS: votes.of_experts(
        prepared.evaluator,
        self.baselines.expert_scores,
        lambda experts: baselines_lib.expert_results(self.run, experts),
        options,
      ),
      OF_EVOLVED: votes.of_members(
        prepared.evaluator,
        prepared.setup.space,
        members,
        self._kept_answers(members.ids),
        options,
      ),
    }
    return {name: group for name, group in groups.items() if group is not None}

  def _kept_answers(self, ids: Sequence[int]) -> Any:
    """Task scores and answers of members as the run has kept them, or None."""
    # In GENOME's released code a member moves and keeps its id and its score.
    if not self.prepared.config.strategy.options.get('rescore', True):
      return None
    results = ensembles.gather(self.run.items.read(), ids)
    if results is None:
      return None
    by_id = {row['id']: row['tasks'] for row in self.run.members.read()}
    scores = [list(by_id[member].values()) for member in ids]
    return np.asarray(scores, np.float32), results

  def _rows(self, groups: Mapping[str, votes.Ensemble]) -> list[dict[str, Any]]:
    """Rows of the table with their dev scores."""
    evaluator, best = self.prepared.evaluator, self.best
    evaluations = int(self.state.evaluations)

    def row(name, detail, count, task_scores):
      dev = report.of_split(evaluator, 'dev', task_scores)
      return dict(name=name, detail=detail, evaluations=count, dev=dev)

    # Experts stand with the baselines, members behind the best of them.
    rows = [dict(kept) for kept in self.baselines.rows]
    if group := groups.get(OF_EXPERTS):
      count = len(self.prepared.setup.experts.names) + group.evaluations
      rows.append(row(OF_EXPERTS, group.detail, count, group.dev))
    detail = f'member {int(best.id)}'
    rows.append(row(EVOLVED, detail, evaluations, best.task_scores))
    if group := groups.get(OF_EVOLVED):
      count = evaluations + group.evaluations
      rows.append(row(OF_EVOLVED, group.detail, count, group.dev))
    return rows

  def _finalists(self, groups: Mapping[str, votes.Ensemble]) -> Finalists:
    """All members that are asked for their answers at the end."""
    setup, best = self.prepared.setup, self.best
    experts, ids = [], [int(best.id)]
    genomes = [stack.stack([best.genome])]
    if self.prepared.config.test_experts:
      experts = range(len(setup.experts.names))
    elif OF_EXPERTS in groups:
      experts = groups[OF_EXPERTS].members
    if OF_EVOLVED in groups:
      group = groups[OF_EVOLVED]
      others = [i for i, id_ in enumerate(group.members) if id_ != ids[0]]
      if others:
        ids += [group.members[i] for i in others]
        indices = np.asarray(others, np.int32)
        genomes.append(stack.take(group.population, indices))
    return Finalists(
      setup, self.baselines.rows, experts, ids, stack.concatenate(*genomes)
    )

  def _write(self, rows, names, groups, bounds) -> None:
    """Writes curve.png, summary.md and summary.json."""
    evaluator, state = self.prepared.evaluator, self.state
    objective, best, path = evaluator.objective, self.best, self.run.path
    members, metrics = self.run.members.read(), self.run.metrics.read()
    summary = {
      'name': self.prepared.name,
      'version': evojax_llm.__version__,
      'objective': objective.name,
      'rows': rows,
      'best': {
        'id': int(best.id),
        'generation': int(best.generation),
        'fitness': np.asarray(best.fitness)[()],
      },
      'ensembles': {
        name: {
          'rule': group.rule,
          'members': group.members,
          'dev_fitness_by_size': group.by_size,
          # Of a vote that knows which member is right: a bound, no result.
          'oracle': bounds[name],
        }
        for name, group in groups.items()
      },
      'tested': names if self._has_test() else [],
      'lineage': record.lineage_of(int(best.id), members),
      'generations': int(state.generation),
      'evaluations': int(state.evaluations),
      'failed': sum(row['failed'] for row in metrics),
      'tokens': sum(row['tokens'] for row in metrics),
      'seconds': _total_seconds(metrics),
      # Of the process that ended the run, baselines and test included.
      'ledger': evaluator.ledger.as_dict(),
      'base_dtype': int8_base.read(self.run),
    }
    if objective.name == 'pareto':
      summary['front'] = _front(objective, members)
    levels = {
      row['name']: row['dev']['fitness']['score']
      for row in rows
      if row['name'] in _LEVELS and row['dev']['fitness']['score'] is not None
    }
    plots.curve(path / 'curve.png', metrics, levels, objective.percent)
    record.write_text(
      path / 'summary.md', report.markdown(record.plain(summary))
    )
    # Last: a folder with a summary.json is a finished run.
    record.write_json(path / 'summary.json', summary)


def _front(objective: Any, members: Sequence[Mapping[str, Any]]) -> Any:
  """The members of all generations that no other one beats, by dev."""
  vectors = [
    [math.nan if v is None else v for v in row['tasks'].values()]
    for row in members
  ]
  kept = objectives.front(vectors, objective.maximise)
  return [{k: members[i][k] for k in ('id', 'tasks')} for i in kept]


def _total_seconds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  total: dict[str, float] = {}
  for row in metrics:
    for part, seconds in row['seconds'].items():
      total[part] = round(total.get(part, 0.0) + seconds, 4)
  return total
