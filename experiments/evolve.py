r"""Evolves a population of adapters, or of merges of them, on tasks.

  python -m experiments.evolve
  python -m experiments.evolve --workdir=runs/a --config.strategy.population=40
  python -m experiments.evolve \
      --config=experiments/genome/config.py:genome_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

Without flags: GENOME+ on the pocket model and its experts. --config names a
file with all settings, and --config.x=... changes one of them.

The run folder (a new one below runs/ without --workdir) gets config.json,
metrics.jsonl, members.jsonl, items/, checkpoints/ and, at the end, best/ (a
PEFT adapter), summary.json, summary.md and curve.png. A run that was
interrupted, at whatever moment, goes on when the same command is given with the
same --workdir, and ends as it would have.

The search sees the tasks' dev items. The test items are read once, at the end,
for the best member by dev and for the baselines.
"""

from collections.abc import Sequence
import contextlib
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging

from experiments import command
from experiments import problem as problem_lib
from experiments import settings

_CONFIG, _parse_flags = settings.define(
  pathlib.Path(__file__).parent / 'pocket' / 'config.py'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder, new or to go on with.'
)


@command.clean_errors
def main(_: Sequence[str]) -> None:
  config = _CONFIG.value
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step it takes
  files = problem_lib.locate(config)
  command.use_cores(files.model, config.strategy.population)

  # Only now, so that --help and misspelt names are answered at once.
  import jax

  from evojax_llm import checkpoint
  from evojax_llm import evolution
  from evojax_llm import progress
  from evojax_llm import record
  from experiments import quantised
  from experiments import results

  # What is asked for.
  problem = problem_lib.load(config, files)
  strategy = problem_lib.make_strategy(config, problem)
  params = strategy.default_params
  with problem_lib.asked_for(ValueError, what='config.initial'):
    first = problem.space.initial(
      problem_lib.recipe(config),
      config.strategy.population,
      jax.random.key(config.seed),
    )
  origins = results.origins(first, problem.space.names)
  abstract = evolution.abstract_state(
    strategy, params, first.population, len(problem.tasks)
  )
  evaluator = problem_lib.make_evaluator(config, problem)
  racing = problem_lib.make_racing(config)
  plan = results.plan(evaluator, problem, strategy, params, abstract)
  command.say(plan.describe())

  name = f'{files.name}_{config.name or config.strategy.name}'
  workdir = _WORKDIR.value or record.new_workdir('runs', name)
  with problem_lib.asked_for(checkpoint.CheckpointError, OSError):
    inputs = {
      'model': record.fingerprint(files.model),
      'adapters': [record.fingerprint(folder) for folder in files.adapters],
      'experts': [record.fingerprint(folder) for folder in files.experts],
      'tasks': [task.fingerprint() for task in problem.tasks],
    }
    run = record.RunFolder(workdir, config.to_dict(), inputs)

  with contextlib.closing(run):
    if run.finished:
      command.say(f'{run.path} is finished')
      results.show(run)
      return

    # Where an earlier process stopped.
    with problem_lib.asked_for(checkpoint.CheckpointError):
      found = run.checkpoints.restore(abstract)
    generation, state = found or (-1, None)
    run.rewind(generation)
    went_on = f', going on after generation {generation}' if found else ''
    command.say(f'run folder {run.path}{went_on}')

    ledger = evaluator.ledger
    bar = progress.Progress(
      config.strategy.generations,
      tokens=lambda: ledger.prompt_tokens + ledger.new_tokens,
      percent=evaluator.objective.percent,
    )
    if config.execution.base_dtype:
      quantised.report(run, config, problem)
    results.normalise(run, evaluator, problem)
    baselines = results.score_baselines(run, evaluator, problem, bar)
    if found:
      bar.resume(generation, float(state.best.fitness))

    drawn, scored = evaluator, None

    def redraw(number):
      nonlocal drawn
      drawn = evaluator.redraw(results.draw_of(config.dev_draw, number))

    def score(population, members):
      nonlocal generation, scored
      generation += 1
      bar.begin(len(members))
      if racing:
        scored = evaluator.race(
          problem.space,
          population,
          members,
          racing,
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
      problem_lib.asked_for(evolution.EvolutionError),
    ):
      rounds = evolution.evolve(
        strategy,
        params,
        score,
        first.population,
        seed=config.seed,
        generations=config.strategy.generations,
        patience=config.strategy.patience,
        state=state,
        redraw=redraw if config.resample else None,
        phase=watch.phase,
      )
      del first  # its memory is wanted for the search
      before = bar.tokens()
      for state, done in rounds:
        # Records first: a checkpoint stands for the lines up to its own.
        run.items.append(done.number, done.ids, scored)
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
        line = results.line(done, evaluator.objective.percent)
        bar.generation(done.number, done.best_fitness, line)

    if config.resample:
      state = results.on_first_items(evaluator, problem, state)
    results.finish(
      run, evaluator, problem, str(files.model), baselines, state, name, bar
    )
    results.show(run)


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=_parse_flags)
  except KeyboardInterrupt:
    print('\nstopped; with --workdir the run goes on', file=sys.stderr)
    sys.exit(130)
