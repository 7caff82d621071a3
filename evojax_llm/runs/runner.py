"""One search: from what is prepared to a finished folder."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from evojax_llm.population import hosts
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import estimation
from evojax_llm.runs import evolution
from evojax_llm.runs import final_table
from evojax_llm.runs import finalists
from evojax_llm.runs import front as front_lib
from evojax_llm.runs import known_models
from evojax_llm.runs import no_signal
from evojax_llm.runs import preparation
from evojax_llm.runs import progress
from evojax_llm.runs import record
from evojax_llm.runs import record_rows
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import report

# A genome of so many numbers at most is written down in members.jsonl.
_FEW_NUMBERS = 256
# A run that goes on may have to do the work of so many seconds again, where it
# was none of the engine's.
_MOST_REPEATED = 60.0


def run_prepared(
  prepared: preparation.Prepared,
  workdir: str | os.PathLike,
  share: pathlib.Path | None = None,
) -> pathlib.Path:
  """Makes a run of what is prepared, or goes on with it, to its end.

  `share` is the folder of another run with the same experts, tasks, items and
  execution, whose baselines are taken over.

  Raises:
    UserError: the folder is in use or of another run, or no member of the
      initial population could be scored.
  """
  with opened(workdir, prepared) as folder:
    if not is_done(folder):
      if share is not None:
        baselines_lib.share(share, folder.path)
      running = _Run(prepared, folder)
      with running.watch, running.bar, prepared.at_home():
        running.go_on()
  return folder.path


@contextlib.contextmanager
def opened(
  workdir: str | os.PathLike, prepared: Any
) -> Iterator[record.RunFolder]:
  """Opens the folder of what is prepared, with its config, inputs and files.

  Raises:
    UserError: the folder is in use or of another run.
  """
  what = f'The run folder {workdir} cannot be made'
  with errors.as_user_error(OSError, what=what):
    folder = record.RunFolder(
      workdir,
      prepared.config.to_dict(),
      prepared.inputs,
      recorded_inputs.paths(prepared.files),
    )
  with contextlib.closing(folder):
    yield folder


def is_done(folder: record.RunFolder) -> bool:
  """Returns whether a run has come to its end, and says so."""
  done = folder.finished and final_table.is_whole(folder.path)
  if done:
    errors.say(f'{folder.path} is finished')
  return done


class _Run:
  """One run, in its folder."""

  def __init__(self, prepared: preparation.Prepared, folder: record.RunFolder):
    self.prepared, self.folder = prepared, folder
    config = self.config = prepared.config
    self.evaluator = prepared.evaluator
    self.ledger = self.evaluator.ledger
    self.watch = progress.Stopwatch()
    self.bar = progress.Progress(
      config.strategy.generations,
      self.ledger,
      self.watch,
      percent=self.evaluator.objective.percent,
      evaluations=config.strategy.evaluations,
    )
    # What the search scores with; its items change in a run that resamples.
    self.drawn = self.evaluator
    self.scored: Any = None
    # Of the members that were scored last.
    self.recipes: list[Any] = []
    self.models: list[str] | None = None
    # None where members are scored on some items, or these change.
    self.known: known_models.KnownModels | None = None
    self.estimation: estimation.Estimation | None = None
    self.number = -1

  def go_on(self) -> None:
    """From where an earlier process stopped, if one did, to the report."""
    prepared, folder = self.prepared, self.folder
    restored = folder.checkpoints.restore(prepared.abstract)
    if restored and self.was_cut_short(*restored):
      errors.say(f'generation {restored[0]} had no budget: it is made again')
      folder.checkpoints.drop(restored[0])
      restored = folder.checkpoints.restore(prepared.abstract)
    self.number, state = restored or (-1, None)
    if not restored and (folder.path / 'summary.json').exists():
      raise errors.CheckpointError(
        f'{folder.path} has no checkpoint from which the end of the run could '
        'be made again. Run it in a new workdir.'
      )
    if not restored and folder.metrics.read():
      errors.say('there is no checkpoint: the run begins again')
    folder.rewind(self.number)
    after = f', going on after generation {self.number}' if restored else ''
    errors.say(f'run folder {folder.path}{after}')
    for what in folder.lost(self.number).values():
      errors.say(f'warning: {what}')

    if self.config.execution.base_dtype:
      base_and_adapters.report_int8(folder, prepared)
    baselines_lib.normalise(folder, prepared)
    baselines = baselines_lib.score_baselines(folder, prepared, self.bar)
    self.estimation = estimation.prepare(folder, prepared, baselines)
    if restored:
      best = float(state.strategy.memory.best_fitness)
      self.bar.resume(self.number, best, int(state.evaluations))
    state = self.search(state)
    front = finals = None
    if prepared.strategy.ends_in_front:
      front = front_lib.find(state, prepared)
      best = front.best
    elif self.estimation or prepared.config.pick_items:
      births = {row['id']: row['generation'] for row in folder.members.read()}
      if self.estimation:
        best, finals = self.estimation.settle(state, prepared, births)
      else:
        best, state = finalists.pick(state, prepared, births)
    else:
      best = finalists.settle(state, prepared)
    ending = final_table.Ending(
      folder, prepared, baselines, state, best, front, finals
    )
    ending.finish(self.bar)

  def was_cut_short(self, number: int, state: Any) -> bool:
    """Whether a budget, which is larger now, ended within a generation."""
    most = self.config.strategy.evaluations
    return (most is None or most > int(state.evaluations)) and any(
      row['generation'] == number and row.get('reason') == evolution.SPENT
      for row in self.folder.members.read()
    )

  def search(self, state: Any) -> Any:
    """Evolves to the end, keeping each generation; returns the last state."""
    prepared, folder, config = self.prepared, self.folder, self.config
    initial, watch = prepared.initial(), self.watch
    goals = prepared.goals
    origins = _origins(initial, prepared.setup.space.names)
    ends = 'generations', 'evaluations', 'patience', 'tokens', 'seconds'
    limits = {name: getattr(config.strategy, name) for name in ends}
    # What earlier processes have spent counts.
    for row in folder.metrics.read():
      spent = row['tokens'], sum(row['seconds'].values())
      for name, count in zip(('tokens', 'seconds'), spent, strict=True):
        if limits[name] is not None:
          limits[name] = max(0, limits[name] - count)
    if not (prepared.racing or config.resample or self.estimation):
      self.known = known_models.KnownModels(folder)
    watch.take()  # what was compiled for the baselines
    rounds = evolution.evolve(
      prepared.strategy,
      prepared.setup.space,
      self.score,
      population=initial.population if state is None else None,
      params=prepared.params,
      seed=config.seed,
      **limits,
      count_tokens=lambda: self.ledger.tokens,
      state=state,
      redraw=self.redraw if config.resample else None,
      maximise=goals.maximise,
      refine=prepared.refinement,
      phase=watch.phase,
    )
    del initial  # its memory is wanted for the search
    before = self.ledger.tokens, self.ledger.gradient_tokens
    kept, saved = True, time.monotonic()
    # How much the engine had done for what is saved.
    work = None if state is None else (int(state.evaluations), before[1])

    def keep():
      with watch.phase('checkpoint'):
        folder.checkpoints.save(done.number, state)

    for state, done in rounds:
      if not done.number:
        self.look_for_signal()
      monitors = sharding.to_host(prepared.strategy.monitors(state.strategy))
      if prepared.strategy.ends_in_front:
        monitors |= goals.monitors(state)
      # Records first: a checkpoint stands for the lines up to its own.
      folder.items.append(done.number, done.ids[: done.scored], self.scored)
      names = prepared.strategy.operator_names
      spent = self.ledger.tokens, self.ledger.gradient_tokens
      lines = record_rows.member_rows(
        done,
        names,
        goals.tasks,
        origins,
        self.recipes,
        goals.further,
        self.notes(state),
      )
      for line, model in zip(lines, self.models or (), strict=False):
        line['model'] = model
      folder.members.append(lines)
      if self.known:
        self.known.add(lines)
      row = record_rows.metrics_row(
        done,
        goals.tasks,
        watch.take(),
        spent[0] - before[0],
        monitors,
        goals.further,
        spent[1] - before[1],
      )
      folder.metrics.append([row])
      before = spent
      # A generation that scored nothing new is cheaper made again than saved.
      now = done.evaluations, spent[1]
      kept = done.number % config.checkpoint_every == 0
      if kept and now == work:
        kept = hosts.agreed(time.monotonic() - saved > _MOST_REPEATED)
      if kept:
        keep()
        work, saved = now, time.monotonic()
      self.bar.generation(
        done.number,
        done.best_fitness,
        done.evaluations,
        _line(done, self.evaluator.objective.percent),
      )
    if not kept:
      keep()
    return state

  def notes(self, state: Any) -> list[dict[str, Any]]:
    """What is said of each slot of the latest ask."""
    strategy, refinement = self.prepared.strategy, self.prepared.refinement
    notes = list(strategy.notes(state.strategy))
    if refinement is not None:
      notes = notes or [{}] * strategy.num_proposals
      for slot, note in refinement.take().items():
        notes[slot] = notes[slot] | note
    return notes

  def look_for_signal(self) -> None:
    """Tells where generation 0 tells no members apart.

    Raises:
      UserError: it does not, and the configuration requires it.
    """
    text = no_signal.describe(self.drawn, self.scored)
    if text and self.config.require_signal:
      raise errors.UserError(text)
    if text:
      self.bar.line(
        f'{text}\nThe run goes on; --config.require_signal would end it here.'
      )

  def redraw(self, number: int) -> None:
    """Has the generation `number` score on other dev items."""
    # The first one's draw is the run's own; no other run's is near.
    draw = self.config.dev_draw + (number << 20)
    self.drawn = self.evaluator.redraw(draw)

  def score(self, population: Any, members: Any) -> Any:
    """Scores members of a population on dev, or races them."""
    self.number += 1
    self.bar.begin(len(members))
    space, racing = self.prepared.setup.space, self.prepared.racing
    asked, update = (space, population, members), self.bar.update
    names = self.drawn.models(space, population)
    self.models = names and [names[m] for m in members]
    self.recipes = self.recipes_of(population, members)
    if racing:
      key = jax.random.key(self.config.seed)
      self.scored = self.evaluator.race(
        *asked, racing, key, self.number, progress=update
      )
    elif self.estimation:
      self.scored = self.evaluator.estimate(
        *asked, self.estimation.estimator, progress=update
      )
    elif self.known:
      self.scored = self.known.evaluate(
        names,
        members,
        functools.partial(
          self.drawn.evaluate, space, population, progress=update
        ),
        self.drawn.objective,
      )
    else:
      self.scored = self.drawn.evaluate(*asked, progress=update)
    penalties = space.penalties(population)
    if penalties is not None:
      fitness = self.scored.fitness - penalties[np.asarray(members)]
      self.scored = dataclasses.replace(self.scored, fitness=fitness)
    return self.prepared.goals.extend(self.scored, self.evaluator, *asked)

  def recipes_of(self, population: Any, members: Any) -> list[Any]:
    """What members are in the terms of the space, where that is short."""
    space, noted = self.prepared.setup.space, [None] * len(members)
    if _numbers(population) > _FEW_NUMBERS:
      return []
    if self.known and self.models and space.decodes:
      noted = [self.known.recipe(name) for name in self.models]
    host = None if all(noted) else sharding.to_host(population)
    return [
      recipe or space.recipe(stack.take(host, i))
      for i, recipe in zip(members, noted, strict=True)
    ]


def _numbers(population: Any) -> int:
  """How many numbers a genome of a population has."""
  return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(population))


def _origins(initial: Any, experts: Sequence[str]) -> list[dict[str, Any]]:
  """Operator, parents and experts of each member of an initial population."""
  rows = []
  for operator, parents in zip(initial.operators, initial.parents, strict=True):
    known = [int(p) for p in parents if p != lineage.NO_MEMBER]
    row = {'operator': operator}
    row['parents'] = [p - len(experts) for p in known if p >= len(experts)]
    row['experts'] = [experts[p] for p in known if p < len(experts)]
    rows.append(row)
  return rows


def _line(generation: evolution.Generation, percent: bool) -> str:
  """Sums up a generation in a few words, its best apart."""
  beyond = generation.reasons.count(evolution.SPENT)
  failed = generation.failed - beyond
  counts = f'{generation.scored} scored'
  counts += f', {failed} failed' if failed else ''
  counts += f', {beyond} beyond the budget not scored' if beyond else ''
  mean = report.number(generation.mean_fitness, percent, ' %')
  return f'mean {mean}  {counts}'
