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
from evojax_llm.fitness.item_log import take
from evojax_llm.population import stack
from evojax_llm.recipes import yaml_out
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import export
from evojax_llm.runs import finalists as finalists_lib
from evojax_llm.runs import fine_tuning
from evojax_llm.runs import front as front_lib
from evojax_llm.runs import plots
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import record_rows
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import summary_page
from evojax_llm.runs.estimation import Finals
from evojax_llm.runs.finalists import Ensemble
from evojax_llm.runs.finalists import Finalists
from evojax_llm.runs.preparation import Prepared
from evojax_llm.strategies import registry

# Baselines that the curve shows.
_LEVELS = ('base', 'best expert', 'soup', 'scaled average', report.OF_EXPERTS)


def is_whole(folder: pathlib.Path) -> bool:
  """Returns whether all of a finished run's report is there; says what not."""
  files = [folder / 'summary.md', folder / 'curve.png']
  if 'pareto' in (record.read_summary(folder) or ()):
    files += [folder / 'front.json', folder / 'front.png', folder / 'front']
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
  if 'pareto' in summary:
    print(f'front: {folder / "front.json"}')


@dataclasses.dataclass(frozen=True)
class Ending:
  """A run whose search is over."""

  run: record.RunFolder
  prepared: Prepared
  baselines: baselines_lib.Baselines
  state: run_state.RunState
  best: run_state.Member
  front: front_lib.Front | None = None
  finals: Finals | None = None  # where fitness was estimated

  def finish(self, bar: progress.Progress) -> None:
    """Exports the best member, reads test once, writes the report."""
    prepared = self.prepared
    evaluator, heldout = prepared.evaluator, prepared.heldout()
    self._export()
    if count := prepared.config.ensemble.size:
      bar.begin(count, 'votes')
    groups = self._groups()
    rows = self._rows(groups)
    finalists = self._finalists(groups)
    # What is read at the end: a label, the evaluator, and its split.
    ends = {}
    most = evaluator.plan.members_per_group
    if all(task.test for task in prepared.setup.tasks):
      ends['test'] = 'test', evaluator, 'test'
    if heldout is not None:
      ends['heldout'] = 'held-out tasks', heldout, 'dev'
    bounds = {name: {'dev': group.bound} for name, group in groups.items()}
    for row in rows:
      row['test'] = None
    for end, (label, reader, split) in ends.items():
      bar.begin(len(finalists.names), label)
      scores = finalists.score(reader, split, bar.update, most)
      if end == 'test':
        log = ItemLog(self.run.path / 'test_items')
        log.append(0, range(len(finalists.names)), scores)
      for row in rows:
        if group := groups.get(row['name']):
          task_scores, bounds[row['name']][end] = finalists_lib.score_vote(
            reader, split, group, scores, finalists.indices(group)
          )
        else:
          task_scores = scores.task_scores[finalists.index(row)]
        row[end] = report.of_split(reader, split, task_scores)
    tested = finalists.names if 'test' in ends else []
    self._write(rows, tested, groups, bounds)

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

  def _groups(self) -> dict[str, Ensemble]:
    """The best experts, and the best members that are alive or remembered."""
    prepared, options = self.prepared, self.prepared.config.ensemble
    if not options.size:
      return {}
    evaluator, scores = prepared.evaluator, self.baselines.expert_scores
    groups = {
      report.OF_EXPERTS: finalists_lib.choose(
        evaluator,
        options,
        range(len(scores)),
        scores,
        lambda experts: baselines_lib.expert_results(self.run, experts),
      )
    }
    members = run_state.best_members(
      self.state, options.size, prepared.strategy.keep_best
    )
    if len(members.ids) > 1:
      scores, results, count = self._answers(members)
      groups[report.OF_EVOLVED] = finalists_lib.choose(
        evaluator,
        options,
        members.ids,
        scores,
        lambda order: [take(result, order) for result in results],
        members.population,
        count,
      )
    return {name: group for name, group in groups.items() if group}

  def _answers(
    self, members: run_state.Members
  ) -> tuple[np.ndarray, Sequence[Any], int]:
    """Task scores and answers of members on dev, and how many were scored."""
    config, evaluator = self.prepared.config, self.prepared.evaluator
    ids, results, lost = members.ids, None, {}
    if self.finals:
      scored, first = self.finals.scores, range(len(ids))  # the best of them
      tasks = [take(result, first) for result in scored.tasks]
      return scored.task_scores[: len(ids)], tasks, 0
    # In GENOME's released code a member moves and keeps its id and its score.
    if config.strategy.options.get('rescore', True):
      lost = self.run.lost(int(self.state.generation))
      try:
        results = ensembles.gather(self.run.items.read(), ids)
      except ValueError as error:
        lost['items'] = str(error)
      tasks = {row['id']: row['tasks'] for row in self.run.members.read()}
      if results is not None and tasks.keys() >= set(ids):
        wanted = [[item.id for item in task] for task in evaluator.items('dev')]
        same = [result.ids for result in results] == wanted
        if same and not any(np.isnan(r.values).any() for r in results):
          scores = [list(tasks[member].values()) for member in ids]
          return np.asarray(scores, np.float32), results, 0
        lost = {}
      lost.pop('metrics.jsonl', None)
      for text in lost.values():
        errors.say(f'{text} The best members are scored again.')
    space = self.prepared.setup.space
    scores = setup_lib.score_few(evaluator, space, members.population)
    # What is lost was scored by the search, and that has been counted.
    counted = lost and not (config.racing.rule or config.resample)
    return scores.task_scores, scores.tasks, 0 if counted else len(ids)

  def _rows(self, groups: Mapping[str, Ensemble]) -> list[dict[str, Any]]:
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
    count += len(self.finals.members.ids) if self.finals else 0
    add(report.EVOLVED, f'member {best.id}', count, best.task_scores)
    add_group(report.OF_EVOLVED, count)
    return rows

  def _finalists(self, groups: Mapping[str, Ensemble]) -> Finalists:
    """All members that are asked for their answers at the end."""
    setup, best = self.prepared.setup, self.best
    experts, ids = [], [best.id]
    genomes = [stack.stack([best.genome])]
    if self.prepared.config.test_experts:
      experts = range(len(setup.experts.names))
    elif report.OF_EXPERTS in groups:
      experts = groups[report.OF_EXPERTS].members
    if group := groups.get(report.OF_EVOLVED):
      others = [i for i, id_ in enumerate(group.members) if id_ != best.id]
      if others:
        ids += [group.members[i] for i in others]
        genomes.append(stack.take(group.population, np.asarray(others)))
    return Finalists(
      setup,
      self.baselines.rows,
      experts,
      ids,
      stack.concatenate(*genomes),
      fine_tuning.read_row(self.run.path, self.baselines.rows, setup.experts),
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

  def _write(self, rows, tested, groups, bounds) -> None:
    """Writes curve.png, summary.md and summary.json."""
    evaluator, state = self.prepared.evaluator, self.state
    tasks = (*self.prepared.setup.tasks, *self.prepared.setup.heldout)
    objective, best, path = evaluator.objective, self.best, self.run.path
    members, metrics = self.run.members.read(), self.run.metrics.read()
    lineage = record_rows.lineage_of(best.id, members)
    own = next((row for row in lineage if row['id'] == best.id), {})
    recipe = {
      'operator': own.get('operator'),
      'parents': own.get('parents', []),
      'recipe': self.prepared.setup.space.recipe(best.genome),
    }
    search = self._search()
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
      'note': self.baselines.note,
      'better': summary_page.better(rows),
      'examples': {t.name: summary_page.example(t) for t in evaluator.tasks},
      'best': {
        'id': best.id,
        'generation': best.generation,
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
      'tested': tested,
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
      'base_dtype': base_and_adapters.read_int8(self.run),
    }
    if self.finals:
      summary['estimate'] = self.finals.summary
    if ends := self.run.earlier_ends():
      summary['earlier_ends'] = ends
    if lost := self.run.lost(int(state.generation)):
      summary['lost'] = list(lost.values())
    if self.front:
      every = front_lib.of_members(self.prepared.goals, members)
      most = self.prepared.config.pareto.exports
      self.front.write(path, self.prepared.setup.space, most, every)
      summary['pareto'] = self.front.summary()
      summary['front'] = summary['pareto'].pop('members')
    elif objective.name == 'pareto':
      # The members of all generations that no other one beats, by dev.
      vectors = [
        [math.nan if v is None else v for v in row['tasks'].values()]
        for row in members
      ]
      kept = objectives.front(vectors, objective.maximise)
      front = [{k: members[i][k] for k in ('id', 'tasks')} for i in kept]
      summary['front'] = front
    plots.curve(
      path / 'curve.png',
      metrics,
      levels(rows),
      objective.percent,
      _middle(members),
    )
    page = summary_page.markdown(record.plain(summary), str(path))
    record.write_text(path / 'summary.md', page)
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
