"""The front of a run with several objectives: found, measured, chosen from.

The front is made of the members of the last population that no other one
beats. A rule chooses the one that the run ends with, by dev:

  knee          the largest sum of objectives: the farthest from the line, or
                plane, between the ends of the front
  chebyshev     the one whose worst objective is the best
  mean          the best fitness, which is the run's objective over the tasks
  best_of:NAME  the best on this task or further objective

For the first two, each objective is scaled to the range that it has on the
front. Members that are equal by the rule are told apart by fitness, then age.

The hypervolume is that of the objectives as they are, all maximised, above a
reference point: zero on tasks whose score is a share, and the worst member of
the first population on other tasks and further objectives.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np

from evojax_llm import lookup
from evojax_llm.fitness import further
from evojax_llm.fitness import objectives
from evojax_llm.operators import pareto
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import plots
from evojax_llm.runs import record
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.tasks.scorers.registry import scorer_of

RULES = ('knee', 'chebyshev', 'mean')
_BEST_OF = 'best_of:'


@dataclasses.dataclass(frozen=True)
class Goals:
  """The objectives of a run: K tasks, then E further ones.

  Attributes:
    tasks: K names.
    further: E names.
    maximise: (K + E,) bool, whether more is better.
    shares: (K + E,) bool, whether zero is the worst that can be.
  """

  tasks: tuple[str, ...]
  further: tuple[str, ...]
  maximise: np.ndarray
  shares: np.ndarray

  @property
  def names(self) -> tuple[str, ...]:
    """All K + E names."""
    return self.tasks + self.further

  def extend(
    self,
    found: Any,
    evaluator: Any,
    space: Any,
    population: Any,
    members: Sequence[int],
  ) -> Any:
    """Returns an `Evaluation` whose task scores have E columns more."""
    if not self.further:
      return found
    more = further.columns(
      self.further, evaluator, space, population, members, found
    )
    scores = np.concatenate([found.task_scores, more], axis=1)
    return dataclasses.replace(found, task_scores=scores)

  def hypervolume(self, scores: np.ndarray, state: Any) -> float:
    """Returns that of members (M, K + E), as the tasks have them."""
    oriented = run_state.oriented(np.asarray(scores), self.maximise)
    return pareto.hypervolume(oriented, self._reference(state))

  def reference(self, state: Any) -> dict[str, float]:
    """Returns the reference point by name, as the tasks have their scores."""
    point = run_state.oriented(self._reference(state), self.maximise)
    return dict(zip(self.names, point, strict=True))

  def _reference(self, state):
    worst = np.asarray(sharding.to_host(state.strategy.reference))
    return np.where(self.shares, np.float32(0.0), worst)

  def monitors(self, state: Any) -> dict[str, Any]:
    """Returns the size of the front of a state and its hypervolume."""
    scores = _scores(state, self.maximise)
    kept = objectives.front(scores, self.maximise)
    volume = self.hypervolume(scores[kept], state)
    return {'front': len(kept), 'hypervolume': volume}


def goals(config: Any, setup: setup_lib.Setup, strategy: Any) -> Goals:
  """Returns the objectives of a configuration, which is checked here.

  Raises:
    UserError: an objective, or the rule of the choice, cannot be.
  """
  told = config.pareto
  tasks, scorers = setup.tasks, [scorer_of(task) for task in setup.tasks]
  with errors.as_user_error(ValueError, what='config.pareto.objectives'):
    names = further.parse(told.objectives)
    if names and not strategy.ends_in_front:
      raise ValueError(
        f'Got {told.objectives!r} for {config.strategy.name}, which seeks no '
        "front; expected a strategy that does, such as 'nsga2'."
      )
    further.check(names, tasks, setup.space)
  maximise = [scorer.maximise for scorer in scorers] + [False] * len(names)
  shares = [s.percent and s.maximise for s in scorers] + [False] * len(names)
  made = Goals(
    tuple(task.name for task in tasks),
    names,
    np.asarray(maximise, bool),
    np.asarray(shares, bool),
  )
  if not strategy.ends_in_front:
    return made
  if config.estimate.rule:
    raise errors.UserError(
      f'{config.strategy.name} ends with a front, of scores on all dev items: '
      'leave config.estimate off.'
    )
  if config.racing.rule:
    raise errors.UserError(
      'config.racing stops members by their mean, and '
      f'{config.strategy.name} keeps those that are good at one task: leave '
      'one off.'
    )
  rules = (*RULES, *(_BEST_OF + name for name in made.names))
  if told.choice not in rules:
    raise errors.UserError(
      f'Got config.pareto.choice {told.choice!r}'
      + lookup.expected(told.choice, rules)
    )
  return made


@dataclasses.dataclass(frozen=True)
class Front:
  """F members of a state that no other one beats, no two of equal scores.

  Attributes:
    goals: the objectives.
    ids: F ids, the best on the first objective first.
    scores: (F, K + E) f32 on dev, as the tasks have them.
    fitness: (F,) f32.
    population: genomes (F, ...).
    generations: F, when each was born.
    chosen: index of the one that the rule chooses.
    rule: its name.
    hypervolume: see the module.
    reference: by the names of objectives.
  """

  goals: Goals
  ids: list[int]
  scores: np.ndarray
  fitness: np.ndarray
  population: Any
  generations: list[int]
  chosen: int
  rule: str
  hypervolume: float
  reference: Mapping[str, float]

  @property
  def best(self) -> run_state.Member:
    """The member that the run ends with."""
    return run_state.Member(
      genome=stack.take(self.population, self.chosen),
      id=self.ids[self.chosen],
      fitness=self.fitness[self.chosen],
      task_scores=self.scores[self.chosen, : len(self.goals.tasks)],
      generation=self.generations[self.chosen],
    )

  def summary(self) -> dict[str, Any]:
    """Returns what front.json and summary.json say of it."""
    known = len(self.goals.tasks)
    rows = [
      {
        'id': id_,
        'fitness': self.fitness[i],
        'tasks': dict(zip(self.goals.tasks, self.scores[i], strict=False)),
        'objectives': dict(
          zip(self.goals.further, self.scores[i, known:], strict=True)
        ),
      }
      for i, id_ in enumerate(self.ids)
    ]
    return {
      'maximised': dict(
        zip(self.goals.names, self.goals.maximise, strict=True)
      ),
      'choice': self.rule,
      'chosen': self.ids[self.chosen],
      'hypervolume': self.hypervolume,
      'reference': self.reference,
      'members': rows,
    }

  def write(
    self, folder: pathlib.Path, space: Any, most: int, others: np.ndarray
  ) -> None:
    """Writes front.json, front.png and front/ID of `most` members at most.

    Those are the chosen one and others at equal distances along the front.
    `others` (M, K + E) are the scores of all members of the run.
    """
    shutil.rmtree(folder / 'front', ignore_errors=True)
    (folder / 'front').mkdir()
    exported = {self.chosen}
    along = np.linspace(0, len(self.ids) - 1, min(most, len(self.ids)))
    for i in dict.fromkeys(np.round(along).astype(int).tolist()):
      if len(exported) < most:
        exported.add(i)
    content = self.summary()
    for i, row in enumerate(content['members']):
      row['folder'] = f'front/{row["id"]}' if i in exported else None
    for i in sorted(exported):
      place = folder / 'front' / str(self.ids[i])
      genome = stack.take(self.population, i)
      space.export(genome, place)
      recipe = {'id': self.ids[i], 'recipe': space.recipe(genome)}
      record.write_json(place / 'recipe.json', recipe)
    plots.front(
      folder / 'front.png',
      self.goals.names,
      self.scores,
      others,
      self.goals.maximise,
      self.chosen,
      self.rule,
    )
    record.write_json(folder / 'front.json', content)


def find(state: run_state.RunState, prepared: Any) -> Front:
  """Returns the front of a state; scored anew where dev items were others.

  Of estimates too, so that nothing is chosen by them; the front is then that of
  the members by their scores on all dev items.

  Raises:
    UserError: all members failed.
  """
  goals, rule = prepared.goals, prepared.config.pareto.choice
  strategy, evaluator = prepared.strategy, prepared.evaluator
  scores = _scores(state, goals.maximise)
  kept = objectives.front(scores, goals.maximise)
  ids, fitness = (
    np.asarray(x)[kept]
    for x in sharding.to_host((state.strategy.ids, state.strategy.fitness))
  )
  population, scores = stack.take(state.strategy.population, kept), scores[kept]
  if prepared.config.resample or prepared.estimate:
    space, every = prepared.setup.space, np.arange(len(kept))
    found = setup_lib.score_few(evaluator, space, population)
    found = goals.extend(found, evaluator, space, population, every)
    scores, fitness = found.task_scores, found.fitness
    kept = objectives.front(scores, goals.maximise)
  else:
    kept = np.arange(len(kept))
  if not len(kept):
    raise errors.UserError(
      'No member of the last generation could be scored: there is no front.'
    )
  oriented = run_state.oriented(scores, goals.maximise)
  # The eldest of equal ones; the best on the first objective first.
  kept = kept[np.argsort(ids[kept])]
  _, first = np.unique(oriented[kept], axis=0, return_index=True)
  kept = kept[first[::-1]]
  ids = [int(i) for i in ids[kept]]
  scores, fitness = scores[kept], fitness[kept]
  born = [
    # A round has ids for all slots of an ask, used or not.
    0
    if id_ < strategy.population_size
    else 1 + (id_ - strategy.population_size) // strategy.num_proposals
    for id_ in ids
  ]
  return Front(
    goals,
    ids,
    scores,
    fitness,
    stack.take(population, kept),
    born,
    choose(rule, oriented[kept], goals.names, fitness, ids),
    rule,
    goals.hypervolume(scores, state),
    goals.reference(state),
  )


def choose(
  rule: str,
  scores: np.ndarray,
  names: Sequence[str],
  fitness: np.ndarray,
  ids: Sequence[int],
) -> int:
  """Returns the index of the member of a front that a rule chooses.

  Args:
    rule: see the module.
    scores: (F, K + E) of the front, maximised.
    names: of the K + E objectives.
    fitness: (F,).
    ids: F, the elder the lower.
  """
  low, high = scores.min(axis=0), scores.max(axis=0)
  scaled = (scores - low) / np.where(high > low, high - low, 1.0)
  # Where all are equal nothing is lost by any.
  scaled[:, high == low] = 1.0
  if rule.startswith(_BEST_OF):
    value = scores[:, list(names).index(rule.removeprefix(_BEST_OF))]
  elif rule == 'mean':
    value = fitness
  else:
    value = scaled.sum(axis=1) if rule == 'knee' else scaled.min(axis=1)
  # Sums of f32 that are equal but for rounding are equal.
  value = np.round(value.astype(np.float64), 6)
  return min(range(len(ids)), key=lambda i: (-value[i], -fitness[i], ids[i]))


def of_members(goals: Goals, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Returns the scores (M, K + E) of rows of members.jsonl."""
  values = [{**r['tasks'], **r.get('objectives', {})}.values() for r in rows]
  filled = [[np.nan if v is None else v for v in row] for row in values]
  return np.asarray(filled, np.float32).reshape(len(rows), len(goals.names))


def _scores(state: Any, maximise: np.ndarray) -> np.ndarray:
  """Scores (P, K + E) of those that are alive, NaN where one failed."""
  tasks, fitness = sharding.to_host(
    (state.strategy.tasks, state.strategy.fitness)
  )
  known = np.where(np.isfinite(fitness)[:, None], tasks, np.float32('nan'))
  return run_state.oriented(known, maximise)
