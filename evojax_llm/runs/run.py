"""A run: from a configuration to a finished folder."""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from evojax_llm.engine import packed_split
from evojax_llm.fitness import ensembles
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.runs import baseline_rows as rivals_lib
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import evolution
from evojax_llm.runs import final_member
from evojax_llm.runs import final_table
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import int8_base
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as problem_lib
from evojax_llm.runs import warm_start as warm_start_lib
from evojax_llm.tasks import prompts


@dataclasses.dataclass(frozen=True)
class Search:
  """What runs that differ in their seed alone have in common.

  Attributes:
    config: the configuration.
    files: where its inputs are.
    problem: what is evolved, and on what.
    evaluator: scores members on its tasks.
    strategy: proposes them.
    racing: rules of a race, or None.
    abstract: shapes and types of a run's state.
    warm: members of an earlier run to begin with, or None.
    inputs: fingerprints of what is read.
  """

  config: Any
  files: inputs_lib.Files
  problem: problem_lib.Problem
  evaluator: Any
  strategy: Any
  racing: Any
  abstract: run_state.RunState
  warm: warm_start_lib.WarmStart | None
  inputs: dict[str, Any]

  @property
  def name(self) -> str:
    """What the run folder is called where nothing else is said."""
    return f'{self.files.name}_{self.config.name or self.config.strategy.name}'

  def first(self, seed: int) -> Any:
    """The initial population of a seed."""
    with errors.asked_for(ValueError, what='config.initial'):
      made = self.problem.space.initial(
        inputs_lib.recipe(self.config),
        self.config.strategy.population,
        jax.random.key(seed),
      )
    return made if self.warm is None else self.warm.before(made)

  def open_folder(
    self, workdir: str | os.PathLike, config: config_dict.ConfigDict
  ) -> record.RunFolder:
    """The folder of a run, new or to go on with; to be closed.

    Raises:
      UserError: it is in use, or of another run.
    """
    with errors.asked_for(checkpoint.CheckpointError, OSError):
      return record.RunFolder(workdir, config.to_dict(), self.inputs)

  def configured(self, seed: int) -> config_dict.ConfigDict:
    """The configuration of the run of one seed."""
    config = config_dict.ConfigDict(self.config.to_dict())
    config.seed, config.seeds = seed, 1
    return config


def prepare(config: Any, files: inputs_lib.Files) -> Search:
  """Reads what is asked for and plans the memory; compiles nothing.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: it cannot be done.
  """
  problem = problem_lib.load(config, files)
  with errors.asked_for(ValueError, what='config.ensemble.rule'):
    ensembles.check_rule(config.ensemble.rule)
  inputs = {
    'model': record.fingerprint(files.model),
    'adapters': [record.fingerprint(folder) for folder in files.adapters],
    'experts': [record.fingerprint(folder) for folder in files.experts],
    'tasks': [task.fingerprint() for task in problem.tasks],
  }
  if problem.heldout:
    inputs['heldout'] = [task.fingerprint() for task in problem.heldout]
  warm = None
  if config.warm_start:
    warm = warm_start_lib.load(config, problem, inputs)
    inputs['warm_start'] = warm.fingerprint
  strategy = problem_lib.make_strategy(config, problem)
  evaluator = problem_lib.make_evaluator(config, problem)
  search = Search(
    config=config,
    files=files,
    problem=problem,
    evaluator=evaluator,
    strategy=strategy,
    racing=problem_lib.make_racing(config, problem),
    abstract=None,
    warm=warm,
    inputs=inputs,
  )
  first = search.first(config.seed)
  params = strategy.default_params
  abstract = run_state.abstract_state(
    strategy,
    params,
    first.population,
    len(problem.tasks),
    sum(len(items) for items in evaluator.items('dev')),
  )
  heldout = problem_lib.heldout_tasks(config, problem)
  plan = _plan(evaluator, problem, heldout, strategy, params, abstract)
  errors.say(plan.describe())
  return dataclasses.replace(search, abstract=abstract)


def run(
  search: Search,
  seed: int,
  workdir: str | os.PathLike,
  rivals_of: pathlib.Path | None = None,
) -> pathlib.Path:
  """Makes a run, or goes on with it, to its end.

  Args:
    search: what is asked for.
    seed: of all randomness.
    workdir: the run folder, new or to go on with.
    rivals_of: the folder of another run of the search whose baselines hold for
      this one.

  Returns:
    The run folder.

  Raises:
    UserError: the folder is in use or of another run, or nobody of the
      initial population could be scored.
  """
  config = search.configured(seed)
  with contextlib.closing(search.open_folder(workdir, config)) as folder:
    if folder.finished:
      errors.say(f'{folder.path} is finished')
    else:
      if rivals_of is not None:
        rivals_lib.share(rivals_of, folder.path)
      _go_on(search, config, folder)
  return folder.path


def _go_on(search: Search, config: Any, run: record.RunFolder) -> None:
  """From where an earlier process stopped, if one did, to the report."""
  evaluator, problem, strategy = (
    search.evaluator,
    search.problem,
    search.strategy,
  )
  first = search.first(config.seed)
  origins = _origins(first, problem.space.names)
  with errors.asked_for(checkpoint.CheckpointError):
    found = run.checkpoints.restore(search.abstract)
  generation, state = found or (-1, None)
  run.rewind(generation)
  went_on = f', going on after generation {generation}' if found else ''
  errors.say(f'run folder {run.path}{went_on}')

  ledger = evaluator.ledger
  bar = progress.Progress(
    config.strategy.generations,
    tokens=lambda: ledger.prompt_tokens + ledger.new_tokens,
    percent=evaluator.objective.percent,
  )
  if config.execution.base_dtype:
    int8_base.report(run, config, problem)
  rivals_lib.normalise(run, evaluator, problem)
  rivals = rivals_lib.score_baselines(run, evaluator, problem, bar)
  if found:
    bar.resume(generation, float(state.strategy.memory.best_fitness))

  drawn, scored = evaluator, None

  def redraw(number):
    nonlocal drawn
    drawn = evaluator.redraw(_draw_of(config.dev_draw, number))

  def score(population, members):
    nonlocal generation, scored
    generation += 1
    bar.begin(len(members))
    if search.racing:
      scored = evaluator.race(
        problem.space,
        population,
        members,
        search.racing,
        jax.random.key(config.seed),
        generation,
        progress=bar.update,
      )
    else:
      scored = drawn.evaluate(
        problem.space, population, members, 'dev', progress=bar.update
      )
    return scored

  with (
    progress.Stopwatch() as watch,
    errors.asked_for(evolution.EvolutionError),
  ):
    rounds = evolution.evolve(
      strategy,
      problem.space,
      score,
      population=None if found else first.population,
      seed=config.seed,
      generations=config.strategy.generations,
      patience=config.strategy.patience,
      state=state,
      redraw=redraw if config.resample else None,
      maximise=evaluator.objective.maximise,
      phase=watch.phase,
    )
    del first  # its memory is wanted for the search
    before = bar.tokens()
    for state, done in rounds:
      # Records first: a checkpoint stands for the lines up to its own.
      run.items.append(done.number, done.ids[: done.scored], scored)
      run.write(
        record.member_rows(
          done, strategy.operator_names, problem.task_names, origins
        ),
        record.metrics_row(
          done, problem.task_names, watch.take(), bar.tokens() - before
        ),
      )
      before = bar.tokens()
      with watch.phase('checkpoint'):
        run.checkpoints.save(done.number, state)
      line = _line(done, evaluator.objective.percent)
      bar.generation(done.number, done.best_fitness, line)

  best = final_member.settle(
    state, strategy, evaluator, problem.space, other_items=config.resample
  )
  asked = final_table.Asked(
    config=config,
    problem=problem,
    evaluator=evaluator,
    heldout=problem_lib.make_heldout(config, problem),
    model=str(search.files.model),
    name=search.name,
    keep_best=strategy.keep_best,
  )
  final_table.finish(run, asked, rivals, state, best, bar)


def _plan(
  evaluator: Any,
  problem: problem_lib.Problem,
  heldout: Sequence[Any],
  strategy: Any,
  params: Any,
  abstract: run_state.RunState,
) -> Any:
  """Plans the memory of a run, for the longest prompts that it will read.

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
  # An item that does not fit must show now and not when all is done.
  late = [(task, task.dev) for task in heldout]
  if all(task.test for task in problem.tasks):
    late += zip(problem.tasks, evaluator.items('test'), strict=True)
  encoded = [
    prompts.encode_items(
      task,
      items,
      problem.tokenizer,
      chat=evaluator.chat,
      max_length=evaluator.max_length,
    )
    for task, items in late
  ]
  for length, new_tokens in packed_split.longest_rows(encoded):
    made.rows(length, new_tokens)
  return made


def _origins(first: Any, experts: Sequence[str]) -> list[dict[str, Any]]:
  """Operator, parents and experts of each member of an initial population."""
  rows = []
  for operator, parents in zip(first.operators, first.parents, strict=True):
    known = [int(p) for p in parents if p != lineage.NO_MEMBER]
    row = {'operator': operator}
    row['parents'] = [p - len(experts) for p in known if p >= len(experts)]
    row['experts'] = [experts[p] for p in known if p < len(experts)]
    rows.append(row)
  return rows


def _line(generation: evolution.Generation, percent: bool = True) -> str:
  """A generation in a few words, its best apart."""
  failed = f', {generation.failed} failed' if generation.failed else ''
  mean = report.number(generation.mean_fitness, percent)
  sign = ' %' if percent else ''
  return f'mean {mean}{sign}  {len(generation.ids)} scored{failed}'


def _draw_of(draw: int, generation: int) -> int:
  """The draw of dev items of a generation of a run that draws them anew."""
  # The first one's is the run's own; no other run's is near.
  return draw + (generation << 20)


def _bytes(tree: Any) -> int:
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
