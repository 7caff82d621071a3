"""Objectives: from a member's scores on the tasks to the one that is maximised.

`OBJECTIVES` is the table, one function each, of the scores (M, K) of M members
and the `Objective`; the README says what each is. A NaN among a member's scores
stays one. What is normalised is normalised by the experts' scores, which are
measured once, before the search: a member's fitness must not depend on the
others. A function with the attribute `needs_experts` reads them; one with
`needs_maximised` has no meaning for metrics to be minimised.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm import lookup


@dataclasses.dataclass(frozen=True)
class Objective:
  """An objective over K tasks.

  Attributes:
    name: of the table, or of a function.
    weights: (K,) f32 weights of the tasks; sum to one.
    maximise: (K,) bool, whether more is better.
    percent: whether fitness is a share, shown in percent.
    experts: (N, K) scores of the experts, for what is normalised by them.
  """

  name: str
  weights: np.ndarray
  maximise: np.ndarray
  percent: bool = True
  experts: np.ndarray | None = None

  @property
  def needs_experts(self) -> bool:
    """Whether the experts must be scored first."""
    normalises = getattr(_function(self.name), 'needs_experts', False)
    return normalises and self.experts is None

  def normalised_by(self, experts: np.ndarray) -> 'Objective':
    """Returns the objective with the experts' scores.

    Raises:
      ValueError: no expert has scores on all tasks, or the best expert's score
        is not positive where it is divided by.
    """
    experts = np.asarray(experts, np.float64)
    experts = experts[np.isfinite(experts).all(axis=1)]
    if not len(experts):
      raise ValueError(
        f'{self.name} is normalised by the experts, and none of them could be '
        'scored on all tasks.'
      )
    if self.name == 'best_expert' and (_best(experts, self) <= 0).any():
      raise ValueError(
        'best_expert divides by the best score of the experts, which is '
        f'{_best(experts, self).tolist()} on the tasks; expected it to be '
        'positive on all. Take z_score.'
      )
    return dataclasses.replace(self, experts=experts)

  def __call__(self, scores: np.ndarray) -> np.ndarray:
    """Returns fitness (M,) f32, maximised, `rounded`, of task scores (M, K).

    NaN where it is not finite, as of a perplexity beyond a double: such a
    member cannot be compared.

    Raises:
      ValueError: the experts are needed and not known.
    """
    if self.needs_experts:
      raise ValueError(f'{self.name} needs the scores of the experts first.')
    with np.errstate(all='ignore'):
      fitness = _function(self.name)(np.asarray(scores, np.float64), self)
      fitness = rounded(fitness).astype(np.float32)
    return np.where(np.isfinite(fitness), fitness, np.float32('nan'))


def make_objective(
  name: str, weights: np.ndarray, metrics: Sequence[Any]
) -> Objective:
  """Makes an objective of K tasks, with weights (K,) f32 that sum to one.

  The name is of the table, or 'package.module:function'; of the K scorers
  `maximise` and `percent` are read.

  Raises:
    ValueError: the name is unknown, or has no meaning for metrics to be
      minimised.
  """
  maximise = np.array([metric.maximise for metric in metrics], bool)
  percent = all(metric.percent and metric.maximise for metric in metrics)
  function = _function(name)
  if not callable(function):
    raise ValueError(
      f'Got objective {name!r}, which is {function!r}; expected a function of '
      'scores (M, K) and an Objective.'
    )
  if getattr(function, 'needs_maximised', False) and not maximise.all():
    raise ValueError(
      f'{name} is of scores to be maximised, and a task has one to be '
      'minimised. Take z_score or best_expert.'
    )
  percent &= not getattr(function, 'needs_experts', False)
  return Objective(name, weights, maximise, percent)


def rounded(fitness: np.ndarray) -> np.ndarray:
  """Returns fitness (M,) to six significant digits, as f64.

  Scores are f32: the last bit of a mean of some depends on the machine and on
  how many members are scored at once, and would tell equal members apart.
  """
  return np.array([float(f'{value:.6g}') for value in np.ravel(fitness)])


def _oriented(scores: np.ndarray, objective: Objective) -> np.ndarray:
  """Scores of which more is better."""
  return np.where(objective.maximise, scores, -scores)


def _weighted_mean(scores: np.ndarray, objective: Objective) -> np.ndarray:
  return _oriented(scores, objective) @ objective.weights


def _harmonic_mean(scores: np.ndarray, objective: Objective) -> np.ndarray:
  counted = objective.weights > 0
  scores, weights = scores[:, counted], objective.weights[counted]
  mean = weights.sum() / (weights / scores).sum(axis=1)
  low = (scores <= 0).any(axis=1)
  return np.where(np.isnan(scores).any(axis=1), np.nan, np.where(low, 0, mean))


def _published_mean(scores: np.ndarray, objective: Objective) -> np.ndarray:
  """That of Model Swarms (arXiv 2410.11163), where scores of 0 are 0.01."""
  mean = _harmonic_mean(scores, objective)
  return np.where((scores == 0).all(axis=1), 0.01, mean)


def _minimum(scores: np.ndarray, objective: Objective) -> np.ndarray:
  return _oriented(scores, objective)[:, objective.weights > 0].min(axis=1)


def _z_score(scores: np.ndarray, objective: Objective) -> np.ndarray:
  experts = _oriented(objective.experts, objective)
  spread = experts.std(axis=0)
  spread[spread == 0] = 1
  z = (_oriented(scores, objective) - experts.mean(axis=0)) / spread
  return z @ objective.weights


def _best(experts: np.ndarray, objective: Objective) -> np.ndarray:
  return np.where(objective.maximise, experts.max(axis=0), experts.min(axis=0))


def _best_expert(scores: np.ndarray, objective: Objective) -> np.ndarray:
  best = _best(objective.experts, objective)
  ratio = np.where(objective.maximise, scores / best, best / scores)
  return ratio @ objective.weights


OBJECTIVES: dict[str, Callable[[np.ndarray, Objective], np.ndarray]] = {
  'weighted_mean': _weighted_mean,
  'harmonic_mean': _harmonic_mean,
  'harmonic_mean_as_published': _published_mean,
  'minimum': _minimum,
  'z_score': _z_score,
  'best_expert': _best_expert,
  'pareto': _weighted_mean,
}
_harmonic_mean.needs_maximised = _published_mean.needs_maximised = True
_z_score.needs_experts = _best_expert.needs_experts = True


def _function(name: str) -> Callable[[np.ndarray, Objective], np.ndarray]:
  return lookup.find(name, OBJECTIVES, 'objective')


def front(scores: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
  """Returns indices of the members that no other one beats, in order.

  Of scores (M, K), maximised (K,) or not. One beats another where it is at
  least as good on all tasks and better on one; members that failed never are in
  it.
  """
  scores = np.asarray(scores, np.float64)
  scores = np.where(np.asarray(maximise, bool), scores, -scores)
  alive = np.flatnonzero(~np.isnan(scores).any(axis=1))
  own = scores[alive]
  beats = (own[:, None] >= own).all(axis=2) & (own[:, None] > own).any(axis=2)
  return alive[~beats.any(axis=0)]


def task_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
  """Returns weights (K,) f32 that sum to one; equal ones by default."""
  w = np.asarray(np.ones(count) if weights is None else weights, np.float64)
  if w.shape != (count,) or not (w >= 0).all() or not w.sum() > 0:
    raise ValueError(
      f'weights are {weights}; expected {count} numbers of at least 0, not '
      'all 0.'
    )
  return (w / w.sum()).astype(np.float32)
