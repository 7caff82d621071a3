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
from evojax_llm.recipes import yaml_out
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import export
from evojax_llm.runs import int8_base
from evojax_llm.runs import plots
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import record_rows
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import summary_page
from evojax_llm.runs import votes
from evojax_llm.runs.finalists import Finalists
from evojax_llm.runs.preparation import Prepared
from evojax_llm.strategies import registry

# Baselines that the curve shows.
_LEVELS = ('base', 'best expert', 'soup', 'scaled average', report.OF_EXPERTS)


def is_whole(folder: pathlib.Path) -> bool:
  """Returns whether all of a finished run's report is there; says what not."""
  files = folder / 'summary.md', folder / 'curve.png'
  gone = [file.name for file in files if not file.exists()]
  if not list((folder / 'best').glob('*')):
    gone.append('best')
  if gone:
    errors.say(
      f'{", ".join(gone)} of {folder} is not there: the end of the run is made '
      'again'
    )
  return not gone


def show(folder: pathlib.Path) -> None:
  """Prints the table of a finished run."""
  path = folder / 'summary.json'
  summary = record.read_json(path)
  with record.damaged(path, record.AGAIN):
    lines = [
      report.table(summary['rows']),
      '',
      summary_page.tasks_foot(summary),
      '',
      *summary_page.better_lines(summary, str(folder)),
    ]
  print('\n'.join(lines))
  print(f'best member: {folder / "best"}\nreport: {folder / "summary.md"}')


@dataclasses.dataclass(frozen=True)
class Ending:
  """A run whose search is over."""

  run: record.RunFolder
  prepared: Prepared
  baselines: baselines_lib.Baselines
  state: run_state.RunState
  best: run_state.Member

  def finish(self, bar: progress.Progress) -> None:
    """Exports the best member, reads test once, writes the report."""
    evaluator, heldout = self.prepared.evaluator, self.prepared.heldout()
    self._export()
    if count := self.prepared.config.ensemble.size:
      bar.begin(count, 'votes')
    groups = self._groups()
    rows = self._rows(groups)
    finalists = self._finalists(groups)
    # What is read at the end: by name the evaluator, its split, and scores.
    ends = {}
    if self._has_test():
      ends['test'] = evaluator, 'test'
    if heldout is not None:
      ends['heldout'] = heldout, 'dev'
    bounds = {name: {'dev': group.bound} for name, group in groups.items()}
    for row in rows:
      row['test'] = None
    for end, (reader, split) in ends.items():
      label = 'test' if end == 'test' else 'held-out tasks'
      bar.begin(len(finalists.names), label)
      scores = finalists.read(reader, split, bar.update)
      if end == 'test':
        log = ItemLog(self.run.path / 'test_items')
        log.append(0, range(len(finalists.names)), scores)
      for row in rows:
        if group := groups.get(row['name']):
          task_scores, bounds[row['name']][end] = votes.score(
            reader, split, group, scores, finalists.indices(group)
          )
        else:
          task_scores = scores.task_scores[finalists.index(row)]
        row[end] = report.of_split(reader, split, task_scores)
    self._write(rows, finalists.names, groups, bounds)

  def _has_test(self) -> bool:
    return all(task.test for task in self.prepared.setup.tasks)

  def _export(self) -> None:
    folder = self.run.path / 'best'
    # What a process that was killed right here may have left.
    for left in [folder, *self.run.path.glob('.best.*.tmp')]:
      shutil.rmtree(left, ignore_errors=True)
    space, genome = self.prepared.setup.space, self.best.genome
    space.export(genome, folder)
    if space.exports == 'model':
      model, params = space.model(), space.express(genome).params
      export.tell_kept(params, model.config, model.folder)

  def _groups(self) -> dict[str, votes.Ensemble]:
    """The best experts, and the best members that are alive or remembered."""
    prepared, options = self.prepared, self.prepared.config.ensemble
    if not options.size:
      return {}
    members = run_state.best_members(
      self.state, options.size, prepared.strategy.keep_best
    )
    kept, lost = self._kept_answers(members.ids)
    groups = {
      report.OF_EXPERTS: votes.of_experts(
        prepared.evaluator,
        self.baselines.expert_scores,
        lambda experts: baselines_lib.expert_results(self.run, experts),
        options,
      ),
      report.OF_EVOLVED: votes.of_members(
        prepared.evaluator,
        prepared.setup.space,
        members,
        kept,
        options,
      ),
    }
    groups = {name: group for name, group in groups.items() if group}
    if lost and report.OF_EVOLVED in groups:
      # They were scored by the search, and that has been counted.
      groups[report.OF_EVOLVED] = dataclasses.replace(
        groups[report.OF_EVOLVED], evaluations=0
      )
    return groups

  def _kept_answers(self, ids: Sequence[int]) -> tuple[Any, bool]:
    """Task scores and answers of members as the run has kept them, or None.

    The second value is whether they were kept and are lost.
    """
    config = self.prepared.config
    # In GENOME's released code a member moves and keeps its id and its score.
    if not config.strategy.options.get('rescore', True):
      return None, False
    results, lost = None, self.run.lost(int(self.state.generation))
    try:
      results = ensembles.gather(self.run.items.read(), ids)
    except ValueError as error:
      lost['items'] = str(error)
    tasks = {row['id']: row['tasks'] for row in self.run.members.read()}
    if results is not None and tasks.keys() >= set(ids):
      scores = [list(tasks[member].values()) for member in ids]
      return (np.asarray(scores, np.float32), results), False
    lost.pop('metrics.jsonl', None)
    for text in lost.values():
      errors.say(f'{text} The best members are scored again.')
    return None, bool(lost) and not (config.racing.rule or config.resample)

  def _rows(self, groups: Mapping[str, votes.Ensemble]) -> list[dict[str, Any]]:
    """Rows of the table with their dev scores."""
    rows = [dict(kept) for kept in self.baselines.rows]

    def add(name, detail, count, task_scores):
      dev = report.of_split(self.prepared.evaluator, 'dev', task_scores)
      rows.append(dict(name=name, detail=detail, evaluations=count, dev=dev))

    def add_group(name, count):
      if group := groups.get(name):
        add(name, group.detail, count + group.evaluations, group.dev)

    # Experts stand with the baselines, members behind the best of them.
    add_group(report.OF_EXPERTS, len(self.prepared.setup.experts.names))
    count, best = int(self.state.evaluations), self.best
    add(report.EVOLVED, f'member {int(best.id)}', count, best.task_scores)
    add_group(report.OF_EVOLVED, count)
    return rows

  def _finalists(self, groups: Mapping[str, votes.Ensemble]) -> Finalists:
    """All members that are asked for their answers at the end."""
    setup, best = self.prepared.setup, self.best
    experts, ids = [], [int(best.id)]
    genomes = [stack.stack([best.genome])]
    if self.prepared.config.test_experts:
      experts = range(len(setup.experts.names))
    elif report.OF_EXPERTS in groups:
      experts = groups[report.OF_EXPERTS].members
    if group := groups.get(report.OF_EVOLVED):
      others = [i for i, id_ in enumerate(group.members) if id_ != ids[0]]
      if others:
        ids += [group.members[i] for i in others]
        indices = np.asarray(others, np.int32)
        genomes.append(stack.take(group.population, indices))
    return Finalists(
      setup, self.baselines.rows, experts, ids, stack.concatenate(*genomes)
    )

  def _search(self) -> dict[str, Any]:
    """What searched, on what."""
    config, strategy = self.prepared.config, self.prepared.config.strategy
    known = registry.options(strategy.name)
    return {
      'strategy': strategy.name,
      'population': strategy.population,
      'options': strategy.options,
      # Of these, what is set and is not the strategy's default.
      'changed': {
        name: value
        for name, value in _set(strategy.options).items()
        if name not in known or known[name].default != value
      },
      'space': config.space,
      'experts': self.prepared.setup.experts.names,
    }

  def _recipe(self, lineage: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the best member is, and what it was made of."""
    own = next((row for row in lineage if row['id'] == int(self.best.id)), {})
    return {
      'operator': own.get('operator'),
      'parents': own.get('parents', []),
      'recipe': self.prepared.setup.space.recipe(self.best.genome),
    }

  def _write(self, rows, names, groups, bounds) -> None:
    """Writes curve.png, summary.md and summary.json."""
    evaluator, state = self.prepared.evaluator, self.state
    tasks = (*self.prepared.setup.tasks, *self.prepared.setup.heldout)
    objective, best, path = evaluator.objective, self.best, self.run.path
    members, metrics = self.run.members.read(), self.run.metrics.read()
    lineage = record_rows.lineage_of(int(best.id), members)
    search, recipe = self._search(), self._recipe(lineage)
    # What best/ holds, for whoever has that folder alone.
    files = self.prepared.files
    note = yaml_out.write(
      path / 'best',
      recipe['recipe'],
      files.model,
      files.adapters,
      files.experts,
    )
    record.write_json(
      path / 'best' / 'recipe.json', {**recipe, **search, 'mergekit': note}
    )
    seconds: dict[str, float] = {}
    for row in metrics:
      for part, spent in row['seconds'].items():
        seconds[part] = round(seconds.get(part, 0.0) + spent, 4)
    summary = {
      'name': self.prepared.name,
      'version': evojax_llm.__version__,
      'search': search,
      'objective': objective.name,
      'rows': rows,
      'better': summary_page.better(rows),
      'examples': {t.name: summary_page.example(t) for t in evaluator.tasks},
      'best': {
        'id': int(best.id),
        'generation': int(best.generation),
        'fitness': np.asarray(best.fitness)[()],
        **recipe,
      },
      'ensembles': {
        name: {
          'rule': group.rule,
          'members': group.members,
          'fitness': group.fitness,
          'dev_fitness_by_size': group.by_size,
          # Of a vote that knows which member is right: a bound, no result.
          'oracle': bounds[name],
        }
        for name, group in groups.items()
      },
      'tested': names if self._has_test() else [],
      'lineage': lineage,
      'generations': int(state.generation),
      'evaluations': int(state.evaluations),
      'failed': sum(row['failed'] for row in metrics),
      'tokens': sum(row['tokens'] for row in metrics),
      'seconds': seconds,
      # Of the process that ended the run, baselines and test included.
      'ledger': evaluator.ledger.as_dict(),
      # Bad rows and overlapping dev items of task files, where some were.
      'left_out': {t.name: t.left_out for t in tasks if t.left_out},
      'base_dtype': int8_base.read(self.run),
    }
    if lost := self.run.lost(int(state.generation)):
      summary['lost'] = list(lost.values())
    if objective.name == 'pareto':
      summary['front'] = _front(objective, members)
    plots.curve(
      path / 'curve.png',
      metrics,
      levels(rows),
      objective.percent,
      _middle(members),
    )
    record.write_text(
      path / 'summary.md',
      summary_page.markdown(record.plain(summary), str(path)),
    )
    # Last: a folder with a summary.json is a finished run.
    record.write_json(path / 'summary.json', summary)


def levels(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the fitness of rows beside the curve, the best one among them."""
  scores = {
    row['name']: row['dev']['fitness']['score']
    for row in rows
    if row['dev']['fitness']['score'] is not None
  }
  best = max(scores, key=scores.__getitem__, default=None)
  return {
    name: score
    for name, score in scores.items()
    if name in _LEVELS or (name == best and name != report.EVOLVED)
  }


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
  """Options that are not None, in groups likewise."""
  groups = {
    k: _set(v) if isinstance(v, dict) else v for k, v in options.items()
  }
  return {k: v for k, v in groups.items() if v not in (None, {})}


def _middle(members: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
  """By generation the quartiles of the fitness of its members."""
  by_generation: dict[int, list[float]] = {}
  for row in members:
    fitness = by_generation.setdefault(row['generation'], [])
    fitness += [] if row['fitness'] is None else [row['fitness']]
  return {
    number: np.quantile(fitness, [0.25, 0.75])
    for number, fitness in by_generation.items()
    if fitness
  }


def _front(objective: Any, members: Sequence[Mapping[str, Any]]) -> Any:
  """The members of all generations that no other one beats, by dev."""
  vectors = [
    [math.nan if v is None else v for v in row['tasks'].values()]
    for row in members
  ]
  kept = objectives.front(vectors, objective.maximise)
  return [{k: members[i][k] for k in ('id', 'tasks')} for i in kept]
