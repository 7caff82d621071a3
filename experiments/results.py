"""What stands around the loop of a run: its plan, its rivals, its result."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import evojax_llm
from evojax_llm import baselines as baselines_lib
from evojax_llm import evolution
from evojax_llm import plot
from evojax_llm import progress
from evojax_llm import record
from evojax_llm import report
from evojax_llm.fitness import objectives
from evojax_llm.fitness import prompts
from evojax_llm.fitness import splits
from evojax_llm.fitness.groups import Expressed
from evojax_llm.fitness.scorers.table import scorer_of
from evojax_llm.population import lineage
from evojax_llm.population import stack
from experiments import problem as problem_lib
from experiments import quantised


def plan(
  evaluator: Any,
  problem: problem_lib.Problem,
  strategy: Any,
  params: Any,
  abstract: evolution.RunState,
) -> Any:
  """Plans the memory of a run, for the longest prompts of both splits.

  Raises:
    MemoryPlanError: it cannot fit.
    TaskError: an item cannot be put to the model.
  """
  asked = jax.eval_shape(
    lambda state: strategy.ask(jax.random.key(0), state, params)[0],
    abstract.strategy,
  )
  made = evaluator.prepare(
    problem.space,
    asked,
    members=min(strategy.population_size, stack.size(asked)),
    population_bytes=_bytes(abstract) + _bytes(asked),
  )
  if has_test(problem):
    # An item that does not fit must show now and not when all is done.
    encoded = [
      prompts.encode_items(
        task,
        items,
        problem.tokenizer,
        chat=evaluator.chat,
        max_length=evaluator.max_length,
      )
      for task, items in zip(
        problem.tasks, evaluator.items('test'), strict=True
      )
    ]
    for length, new_tokens in splits.longest_rows(encoded):
      made.rows(length, new_tokens)
  return made


def has_test(problem: problem_lib.Problem) -> bool:
  """Whether every task has items for the final report."""
  return all(task.test for task in problem.tasks)


def origins(first: Any, experts: Sequence[str]) -> list[dict[str, Any]]:
  """Operator, parents and experts of each member of an initial population."""
  rows = []
  for operator, parents in zip(first.operators, first.parents, strict=True):
    known = [int(p) for p in parents if p != lineage.NOBODY]
    row = {'operator': operator}
    row['parents'] = [p - len(experts) for p in known if p >= len(experts)]
    row['experts'] = [experts[p] for p in known if p < len(experts)]
    rows.append(row)
  return rows


def normalise(
  run: record.RunFolder, evaluator: Any, problem: problem_lib.Problem
) -> None:
  """Scores the experts for an objective that is normalised by them.

  Their scores are kept in experts.json, which a resumed run reads.

  Raises:
    CommandError: the objective cannot be normalised by these experts.
  """
  if not evaluator.objective.needs_experts:
    return
  path = run.path / 'experts.json'
  if path.exists():
    found = record.read_json(path)
  else:
    experts = problem.experts.experts()
    slots = max(stack.size(experts), evaluator.plan.members_per_group)
    members = np.arange(stack.size(experts))
    scores = evaluator.evaluate(
      problem.experts, stack.pad(experts, slots), members, 'dev'
    )
    record.write_json(path, scores.task_scores)
    found = record.read_json(path)
  with problem_lib.asked_for(ValueError, what='config.objective'):
    evaluator.normalise_by(np.asarray(found, np.float64))


def score_baselines(
  run: record.RunFolder,
  evaluator: Any,
  problem: problem_lib.Problem,
  bar: progress.Progress,
) -> list[dict[str, Any]]:
  """The baselines as rows of the table, without their test scores.

  They are kept in baselines.json, which a resumed run reads.
  """
  path = run.path / 'baselines.json'
  if path.exists():
    return record.read_json(path)

  def score(mixes):
    mixed = baselines_lib.mix_experts(problem.experts, mixes)
    # As many slots as a group of the search has, for which there is a program.
    slots = max(len(mixes), evaluator.plan.members_per_group)
    bar.begin(len(mixes), 'baselines')
    return evaluator.evaluate(
      problem.experts,
      stack.pad(mixed, slots),
      np.arange(len(mixes)),
      'dev',
      progress=bar.update,
    )

  rows = []
  for baseline in baselines_lib.choose_baselines(problem.experts.names, score):
    dev = _summary(evaluator, problem, 'dev', baseline.task_scores)
    rows.append(
      {
        'name': baseline.name,
        'detail': baseline.detail,
        'mix': dataclasses.asdict(baseline.mix),
        'evaluations': baseline.evaluations,
        'dev': dev,
      }
    )
    shown = _shown(dev['fitness'])
    detail = f' ({baseline.detail})' if baseline.detail else ''
    bar.line(f'{baseline.name}{detail}: {shown} on dev')
  record.write_json(path, rows)
  return record.read_json(path)


def _shown(entry: Mapping[str, Any]) -> str:
  if entry['score'] is None:
    return 'failed'
  sign = ' %' if entry['percent'] else ''
  return report.number(entry['score'], entry['percent']) + sign


def line(generation: evolution.Generation, percent: bool = True) -> str:
  """A generation in a few words, its best apart."""
  failed = f', {generation.failed} failed' if generation.failed else ''
  mean = report.number(generation.mean_fitness, percent)
  sign = ' %' if percent else ''
  return f'mean {mean}{sign}  {len(generation.ids)} scored{failed}'


def draw_of(draw: int, generation: int) -> int:
  """The draw of dev items of a generation of a run that draws them anew."""
  # The first one's is the run's own; no other run's is near.
  return draw + (generation << 20)


def on_first_items(
  evaluator: Any, problem: problem_lib.Problem, state: evolution.RunState
) -> evolution.RunState:
  """The state with its best member scored on the items of the baselines.

  Where every generation has other items, only this compares with them.
  """
  genome = jax.tree.map(lambda leaf: leaf[None], state.best.genome)
  slots = evaluator.plan.members_per_group
  scores = evaluator.evaluate(
    problem.space, stack.pad(genome, slots), np.arange(1)
  )
  best = state.best.replace(
    fitness=scores.fitness[0], task_scores=scores.task_scores[0]
  )
  return state.replace(best=best)


def finish(
  run: record.RunFolder,
  evaluator: Any,
  problem: problem_lib.Problem,
  model_folder: str,
  baselines: Sequence[Mapping[str, Any]],
  state: evolution.RunState,
  name: str,
  bar: progress.Progress,
) -> None:
  """Exports the best member, reads test once, and writes the report."""
  best = state.best
  folder = run.path / 'best'
  # What a process that was killed right here may have left.
  for left in [folder, *run.path.glob('.best.*.tmp')]:
    shutil.rmtree(left, ignore_errors=True)
  problem.space.export(
    best.genome, folder, problem.config, model_folder, model_folder
  )

  rows = [dict(row) for row in baselines]
  member_rows, metrics = run.members.read(), run.metrics.read()
  rows.append(
    {
      'name': 'evolved',
      'detail': f'member {int(best.id)}',
      'evaluations': int(state.evaluations),
      'dev': _summary(evaluator, problem, 'dev', best.task_scores),
    }
  )
  tests = [None] * len(rows)
  if has_test(problem):
    tests = _read_test(evaluator, problem, baselines, best.genome, bar)
  for row, test in zip(rows, tests, strict=True):
    row['test'] = test

  summary = {
    'name': name,
    'version': evojax_llm.__version__,
    'objective': evaluator.objective.name,
    'rows': rows,
    'best': {
      'id': int(best.id),
      'generation': int(best.generation),
      'fitness': np.asarray(best.fitness)[()],
    },
    'lineage': record.lineage_of(int(best.id), member_rows),
    'generations': int(state.generation),
    'evaluations': int(state.evaluations),
    'failed': sum(row['failed'] for row in metrics),
    'tokens': sum(row['tokens'] for row in metrics),
    'seconds': _total_seconds(metrics),
    # Of the process that ended the run, baselines and test included.
    'ledger': evaluator.ledger.as_dict(),
    'base_dtype': quantised.read(run),
  }
  if evaluator.objective.name == 'pareto':
    summary['front'] = _front(evaluator, member_rows)
  levels = {
    row['name']: row['dev']['fitness']['score']
    for row in baselines
    if row['name'] in ('base', 'best expert', 'scaled average')
    and row['dev']['fitness']['score'] is not None
  }
  plot.curve(
    run.path / 'curve.png', metrics, levels, evaluator.objective.percent
  )
  record.write_text(
    run.path / 'summary.md', report.markdown(record.plain(summary))
  )
  # Last: a folder with a summary.json is a finished run.
  record.write_json(run.path / 'summary.json', summary)


def show(run: record.RunFolder) -> None:
  """Prints the table of a finished run."""
  summary = record.read_json(run.path / 'summary.json')
  print(report.table(summary['rows']))
  print(
    f'\nbest member: {run.path / "best"}\nreport: {run.path / "summary.md"}'
  )


def _read_test(evaluator, problem, baselines, genome, bar):
  """Test scores of the baselines and the best member, in one call."""
  mixes = [baselines_lib.Mix(**row['mix']) for row in baselines]
  mixed = baselines_lib.mix_experts(problem.experts, mixes)
  space = problem.space
  if space is not problem.experts:
    # Members of two spaces are one population once they are adapters.
    mixed = jax.vmap(problem.experts.express)(mixed)
    genome, space = space.adapter(genome), Expressed()
  evolved = jax.tree.map(lambda leaf: leaf[None], genome)
  if space is not problem.space:
    mixed, evolved = _to_one_rank(mixed, evolved)
  both = stack.concatenate(mixed, evolved)
  bar.begin(stack.size(both), 'test')
  scores = evaluator.evaluate(space, both, split='test', progress=bar.update)
  return [
    _summary(evaluator, problem, 'test', task_scores)
    for task_scores in scores.task_scores
  ]


def _summary(evaluator, problem, split, task_scores):
  return report.summarise(
    problem.task_names,
    np.asarray(task_scores),
    [len(items) for items in evaluator.items(split)],
    [scorer_of(task) for task in problem.tasks],
    evaluator.objective,
  )


def _front(evaluator, member_rows):
  """The members of all generations that no other one beats, by dev."""
  vectors = [
    [math.nan if v is None else v for v in row['tasks'].values()]
    for row in member_rows
  ]
  kept = objectives.front(vectors, evaluator.objective.maximise)
  return [{k: member_rows[i][k] for k in ('id', 'tasks')} for i in kept]


def _to_one_rank(*trees):
  """Adapter populations with zero ranks added up to the largest rank."""

  def rank_axis(path):
    return -1 if path[-1].key == 'a' else -2

  flat = [jax.tree_util.tree_flatten_with_path(tree) for tree in trees]
  result = [[] for _ in trees]
  for entries in zip(*(leaves for leaves, _ in flat), strict=True):
    axis = rank_axis(entries[0][0])
    rank = max(leaf.shape[axis] for _, leaf in entries)
    for out, (_, leaf) in zip(result, entries, strict=True):
      pad = [(0, 0)] * leaf.ndim
      pad[axis] = (0, rank - leaf.shape[axis])
      out.append(jnp.pad(leaf, pad))
  return [
    jax.tree.unflatten(structure, leaves)
    for (_, structure), leaves in zip(flat, result, strict=True)
  ]


def _total_seconds(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  total: dict[str, float] = {}
  for row in metrics:
    for part, seconds in row['seconds'].items():
      total[part] = round(total.get(part, 0.0) + seconds, 4)
  return total


def _bytes(tree: Any) -> int:
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
