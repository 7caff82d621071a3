"""The votes at the end of a run.

Members, their order and their number are chosen on `dev`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.population import stack
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.tasks.scorers.registry import scorer_of


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """A group of members that dev chose, whose answers are put together."""

  rule: str  # how it decides
  members: list[
    int
  ]  # k ids of members or indices of experts, best by dev first
  fitness: np.ndarray  # (k,) f32 on dev
  by_size: list[float]  # fitness on dev of the best 1, 2, ... together
  dev: np.ndarray  # (K,) f32 task scores on dev
  bound: float  # fitness on dev of an oracle that knows which member is right
  evaluations: int = 0  # members scored on dev for it, after the search
  population: Any = None  # genomes, leaves (k, ...); None for experts

  @property
  def detail(self) -> str:
    """The rule and the number of members, for the table."""
    if len(self.members) == 1:
      return 'no vote: 1 is best alone'
    rule = 'vote' if self.rule == ensembles.AUTO else self.rule
    return f'{rule} of {len(self.members)}'


def of_experts(
  evaluator: Any,
  task_scores: np.ndarray,
  read: Callable[[Sequence[int]], Sequence[Any]],
  options: Any,
) -> Ensemble | None:
  """Chooses among the best experts; None where fewer than two were scored.

  Args:
    evaluator: of the tasks.
    task_scores: (N, K) f32 of the experts on dev.
    read: returns what experts did on the dev items, task by task.
    options: `size` and `rule` of the configuration.
  """
  fitness = evaluator.objective(task_scores)
  order = _ranked(fitness)[: options.size]
  if len(order) < 2:
    return None
  group = ensembles.Group(fitness[order], task_scores[order], read(order))
  return _chosen(evaluator, options.rule, order, group)


def of_members(
  evaluator: Any,
  space: Any,
  candidates: run_state.Members,
  known: tuple[np.ndarray, Sequence[Any]] | None,
  options: Any,
) -> Ensemble | None:
  """Chooses among members; None where fewer than two were scored.

  Args:
    evaluator: of the run's tasks and dev items.
    space: of the members.
    candidates: M members.
    known: their task scores (M, K) f32 and what they did, task by task; with
      None, or answers to other items or not to all, they are scored again.
    options: `rule` of the configuration.
  """
  if len(candidates.ids) < 2:
    return None
  wanted = [[item.id for item in task] for task in evaluator.items('dev')]
  evaluations = 0
  if (
    known is None
    or [result.ids for result in known[1]] != wanted
    or any(np.isnan(result.values).any() for result in known[1])
  ):
    scores = setup_lib.score_few(evaluator, space, candidates.population)
    known, evaluations = (scores.task_scores, scores.tasks), len(candidates.ids)
  fitness = evaluator.objective(known[0])
  order = _ranked(fitness)
  if len(order) < 2:
    return None
  made = _chosen(
    evaluator,
    options.rule,
    [candidates.ids[i] for i in order],
    ensembles.Group(fitness, *known).take(order),
  )
  chosen = np.asarray(order[: len(made.members)], np.int32)
  return dataclasses.replace(
    made,
    evaluations=evaluations,
    population=stack.take(candidates.population, chosen),
  )


def group_of(
  scores: Any, indices: Sequence[int], fitness: np.ndarray
) -> ensembles.Group:
  """Returns members of an `Evaluation` as a group, with their dev fitness."""
  everyone = np.zeros(len(scores.task_scores)), scores.task_scores, scores.tasks
  group = ensembles.Group(*everyone).take(indices)
  return dataclasses.replace(group, fitness=fitness)


def score(
  evaluator: Any,
  split: str,
  ensemble: Ensemble,
  scores: Any,
  indices: Sequence[int],
) -> tuple[np.ndarray, float]:
  """Scores what an ensemble decides on the items of a split.

  Args:
    evaluator: of the tasks.
    split: of the items.
    ensemble: k members.
    scores: of M members on the split, as `evaluate` returns them.
    indices: k indices of the ensemble's members into the M.

  Returns:
    (K,) f32 task scores, and the fitness of the oracle.
  """
  group = group_of(scores, indices, ensemble.fitness)
  scorers = [scorer_of(task) for task in evaluator.tasks]
  decided = ensembles.decide(
    ensemble.rule, group, scorers, evaluator.items(split)
  )
  return decided, _bound(evaluator, group, scorers)


def _chosen(
  evaluator: Any, rule: str, members: Sequence[int], group: ensembles.Group
) -> Ensemble:
  scorers = [scorer_of(task) for task in evaluator.tasks]
  size, by_size = ensembles.choose_size(
    rule, group, scorers, evaluator.items('dev'), evaluator.objective
  )
  return Ensemble(
    rule=rule,
    members=list(members[:size]),
    fitness=group.fitness[:size],
    by_size=evaluator.objective(by_size).tolist(),
    dev=by_size[size - 1],
    bound=_bound(evaluator, group.take(range(size)), scorers),
  )


def _bound(evaluator, group, scorers) -> float:
  scores = ensembles.bound(group, scorers)
  return float(evaluator.objective(scores[None])[0])


def _ranked(fitness: np.ndarray) -> list[int]:
  """Indices of members that did not fail, the best first, then the elder."""
  alive = np.flatnonzero(np.isfinite(fitness))
  return sorted(alive.tolist(), key=lambda i: (-fitness[i], i))
