"""Searches and baselines on the tasks of one stage, at equal evaluations."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import time
import types
from typing import Any

import jax
import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness import item_log
from evojax_llm.genomes import initial
from evojax_llm.population import stack
from evojax_llm.runs import baselines
from evojax_llm.runs import errors
from evojax_llm.runs import evolution
from evojax_llm.runs import final_member
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import votes as ensemble_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks.scorers.registry import scorer_of

_Row = dict[str, Any]


class Contest:
  """The arms of a comparison on the tasks of one stage.

  Args:
    config: gives model, experts, tasks and items.
    stage: the name of the tasks, for rows.
    arms: configurations by name.
    budget: members that a search scores.
    ensemble: members that vote at most; 0 for no vote.
  """

  def __init__(
    self,
    config: Any,
    stage: str,
    arms: Mapping[str, Any],
    budget: int,
    ensemble: int,
  ):
    config = RunConfig.from_config(config)
    self._arms = {n: RunConfig.from_config(arm) for n, arm in arms.items()}
    files = self._files = inputs_lib.locate(config)
    self._stage, self._budget = stage, budget
    self._options = types.SimpleNamespace(size=ensemble, rule=ensembles.AUTO)
    self._problem = setup_lib.load(config, files)
    self._whole = setup_lib.make_evaluator(config, self._problem)
    self._heldout = setup_lib.make_heldout(config, self._problem)
    self._evaluators: dict[int, Any] = {}
    self._spaces: dict[str, tuple[Any, Any]] = {}
    for name in arms:
      self._check(name)

  def _check(self, name: str) -> None:
    """Refuses an arm that cannot begin, before any other has run."""
    config, experts = self._arms[name], self._problem.experts.names
    with errors.as_user_error(ValueError, what=name):
      self._made(name)
      initial.make_rows(
        len(experts),
        inputs_lib.recipe(config),
        config.strategy.population,
        jax.random.key(0),
      )

  def check_draws(self, count: int) -> None:
    """Refuses several draws of dev items where all of them are the same."""
    drawn = [self._whole.redraw(draw).items('dev') for draw in range(count)]
    if count > 1 and all(items == drawn[0] for items in drawn):
      raise UserError(
        f'--draws={count} of {self._stage} are all the same, as a draw has all '
        'dev items: ask for fewer items with --dev_limit, or for one draw.'
      )

  def _evaluator(self, draw: int) -> Any:
    """The evaluator on a draw of dev items."""
    if draw not in self._evaluators:
      self._evaluators[draw] = self._drawn(draw)
    return self._evaluators[draw]

  def _drawn(self, draw: int) -> Any:
    evaluator = self._whole.redraw(draw)
    if evaluator.objective.needs_experts:
      experts = self._problem.experts
      scores = evaluator.evaluate(experts, experts.experts())
      evaluator.normalise_by(scores.task_scores)
    return evaluator

  def _made(self, name: str) -> tuple[Any, Any]:
    """Space and strategy of an arm; made once, since they carry programs."""
    if name not in self._spaces:
      config = self._arms[name]
      base = self._problem.experts.model()
      space = setup_lib.load_space(config, self._files, base)
      problem = dataclasses.replace(self._problem, space=space)
      strategy = setup_lib.make_strategy(config, problem)
      self._spaces[name] = space, strategy
    return self._spaces[name]

  def baselines(self, draw: int) -> list[_Row]:
    """Rows of the baselines on a draw, and of the experts' vote."""
    evaluator, experts = self._evaluator(draw), self._problem.experts
    population = experts.experts()
    asked = []

    def score(mixes):
      mixed = baselines.mix_experts(experts, mixes)
      asked.append(evaluator.evaluate(experts, mixed))
      return asked[-1]

    chosen = baselines.choose_baselines(experts.names, score)
    everybody = stack.concatenate(
      baselines.mix_experts(experts, [b.mix for b in chosen]), population
    )
    tested = self._read(evaluator, experts, everybody)
    rows = [
      self._row(draw, b.name, None, b.evaluations, b.task_scores, tested, [i])
      for i, b in enumerate(chosen)
    ]
    first = asked[0]
    group = ensembles.Group(first.fitness, first.task_scores, first.tasks)
    made = self._options.size and ensemble_lib.of_experts(
      evaluator,
      first.task_scores[1 : 1 + len(experts.names)],
      lambda members: group.take([1 + n for n in members]).results,
      self._options,
    )
    if made:
      places = [len(chosen) + n for n in made.members]
      rows.append(
        self._row(
          draw,
          'ensemble of experts',
          None,
          len(experts.names),
          made.dev,
          tested,
          places,
          made,
        )
      )
    return rows

  def search(self, draw: int, name: str, seed: int) -> list[_Row]:
    """Rows of a search: the member it ends with, and the vote of its best."""
    evaluator, config = self._evaluator(draw), self._arms[name]
    space, strategy = self._made(name)
    first = space.initial(
      inputs_lib.recipe(config),
      config.strategy.population,
      jax.random.key(seed),
    )
    before, began = dict(evaluator.ledger.seconds), time.perf_counter()
    budgeted = _Answers(evaluator, space)
    rounds = evolution.evolve(
      strategy,
      space,
      budgeted,
      population=first.population,
      seed=seed,
      evaluations=self._budget,
      maximise=evaluator.objective.maximise,
    )
    with errors.as_user_error(evolution.EvolutionError, what=name):
      for state, done in rounds:
        budgeted.keep(done.ids)
        last = state
    seconds = {
      part: round(spent - before.get(part, 0.0), 3)
      for part, spent in evaluator.ledger.seconds.items()
    }
    seconds['all'] = round(time.perf_counter() - began, 3)

    best = final_member.settle(last, strategy, evaluator, space)
    genomes, ids = [stack.stack([best.genome])], [int(best.id)]
    made = None
    if self._options.size:
      found = run_state.best_members(
        last, self._options.size, strategy.keep_best
      )
      known = None
      # In GENOME's released code a member moves and keeps its id and score.
      if config.strategy.options.get('rescore', True):
        known = budgeted.known(found.ids)
      made = ensemble_lib.of_members(
        evaluator, space, found, known, self._options
      )
    if made is not None:
      others = [i for i, id_ in enumerate(made.members) if id_ != ids[0]]
      if others:
        rows = np.asarray(others, np.int32)
        genomes.append(stack.take(made.population, rows))
        ids += [made.members[i] for i in others]
    tested = self._read(evaluator, space, stack.concatenate(*genomes))
    count = int(last.evaluations)
    rows = [
      self._row(
        draw, name, seed, count, best.task_scores, tested, [0], None, seconds
      )
    ]
    if made is not None:
      places = [ids.index(member) for member in made.members]
      count += made.evaluations
      rows.append(
        self._row(
          draw, f'{name}, vote', seed, count, made.dev, tested, places, made
        )
      )
    return rows

  def _read(self, evaluator: Any, space: Any, population: Any) -> dict:
    """Scores of some members on test and on held-out tasks."""
    # On the host, where groups of any number of members are cut alike.
    population = jax.device_get(population)
    tested = {
      'test': (
        evaluator,
        'test',
        evaluator.evaluate(space, population, split='test'),
      )
    }
    if self._heldout is not None:
      tested['heldout'] = (
        self._heldout,
        'dev',
        self._heldout.evaluate(space, population),
      )
    return tested

  def _row(
    self,
    draw: int,
    name: str,
    seed: int | None,
    evaluations: int,
    dev: Any,
    tested: Mapping[str, Any],
    places: Sequence[int],
    made: ensemble_lib.Ensemble | None = None,
    seconds: Mapping[str, float] | None = None,
  ) -> _Row:
    """A row: one member, or the group `made`, at places of those tested."""
    evaluator = self._evaluator(draw)
    found = {}
    for split, (reader, items, scores) in tested.items():
      found[split] = scores.task_scores[places[0]]
      if made is not None:
        found[split], _ = ensemble_lib.score(
          reader, items, made, scores.task_scores, scores.tasks, places
        )
    items = sum(len(task) for task in evaluator.items('dev'))
    heldout = None
    if 'heldout' in found:
      heldout = _fitness(self._heldout, found['heldout'])
    return {
      'stage': self._stage,
      'draw': draw,
      'name': name,
      'seed': seed,
      'evaluations': evaluations,
      'items': evaluations * items,
      'members': len(places),
      'dev': _fitness(evaluator, dev),
      'test': _fitness(evaluator, found['test']),
      'test_by_task': dict(
        zip(self._problem.task_names, found['test'].tolist(), strict=True)
      ),
      'heldout': heldout,
      'percent': self._percent(),
      'seconds': seconds,
    }

  def _percent(self) -> dict[str, Any]:
    """Which scores of a row are shares; of `heldout` None if it has none."""
    scorers = [scorer_of(task) for task in self._problem.tasks]
    return {
      'fitness': self._whole.objective.percent,
      'heldout': self._heldout and self._heldout.objective.percent,
      'tasks': {
        name: scorer.percent
        for name, scorer in zip(self._problem.task_names, scorers, strict=True)
      },
    }


class _Answers:
  """Scores members and remembers their answers."""

  def __init__(self, evaluator: Any, space: Any):
    self._evaluator, self._space = evaluator, space
    self._last: Any = None
    self._log: list[item_log.GenerationItems] = []
    self._task_scores: dict[int, np.ndarray] = {}

  def __call__(self, population: Any, members: np.ndarray) -> Any:
    self._last = self._evaluator.evaluate(self._space, population, members)
    return self._last

  def keep(self, ids: Sequence[int]) -> None:
    """Says who was scored in the last call."""
    scores = self._last
    ids = np.asarray(ids[: len(scores.fitness)], np.int32)
    self._log.append(
      item_log.GenerationItems(len(self._log), ids, scores.tasks)
    )
    rows = zip(ids.tolist(), scores.task_scores, strict=True)
    self._task_scores.update(rows)

  def known(self, ids: Sequence[int]) -> tuple[np.ndarray, Any] | None:
    """Task scores and answers of members; None where some are missing."""
    results = ensembles.gather(self._log, ids)
    if results is None:
      return None
    return np.stack([self._task_scores[i] for i in ids]), results


def _fitness(evaluator: Any, task_scores: Any) -> float:
  return float(evaluator.objective(np.asarray([task_scores]))[0])
