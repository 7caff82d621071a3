"""Fitness from few items: what a member would have scored on all of them.

A member is asked a few items of each task, the anchors. What it would have on
all I is estimated from its n answers y, of weights w that sum to one:

  mean      mean(y)
  weighted  s = sum(w y)
  pirt      e = n/I s + (1 - n/I) mean p(theta) over the items it was not asked,
            theta being its abilities in the model of `item_response`
  mpirt     the same where theta is a combination of those of the experts
  gmpirt    delta s + (1 - delta) mpirt

They are those of tinyBenchmarks (arXiv 2402.14992) and MERGE3 (arXiv
2502.10436). What items ask is learnt from members that have answered all.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.fitness import item_response
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.fitness.objectives import Objective
from evojax_llm.population import keys

RULES = ('mean', 'weighted', 'pirt', 'mpirt', 'gmpirt')
DRAWS = ('random', 'clustered')


@dataclasses.dataclass(frozen=True)
class Rules:
  """How fitness is estimated.

  Attributes:
    rule: one of RULES.
    anchors: items of each task, or below 1 a share of them.
    draw: 'random', or 'clustered' for those in the middle of groups of items
      that ask the same, with weights of the groups' sizes.
    seed: of the draw.
    dimension: D, of abilities.
    delta: of gmpirt.
  """

  rule: str
  anchors: float = 0.1
  draw: str = 'random'
  seed: int = 0
  dimension: int = 1
  delta: float = 0.5

  def __post_init__(self):
    if self.rule not in RULES or self.draw not in DRAWS:
      raise ValueError(
        f'Got rule {self.rule!r} and draw {self.draw!r}; expected one of '
        f'{RULES} and one of {DRAWS}.'
      )

  @property
  def mixes(self) -> bool:
    """Whether abilities are combinations of those of the experts."""
    return self.rule in ('mpirt', 'gmpirt')

  def count(self, items: int) -> int:
    """Returns how many of the items of a task are anchors."""
    wanted = self.anchors if self.anchors >= 1 else self.anchors * items
    return min(items, -int(-wanted // 1))


def check(rules: Rules, scorers: Sequence[Any], experts: int) -> None:
  """Refuses what cannot be estimated.

  Raises:
    ValueError: a score is no mean of shares, or there is nothing to combine.
  """
  for metric in scorers:
    if metric.corpus or not (metric.maximise and metric.percent):
      raise ValueError(
        f'Got the rule {rules.rule!r} for {metric.metric}; expected a score '
        'that is a mean of shares of right answers: leave estimates off.'
      )
  if rules.mixes and experts < 2:
    raise ValueError(
      f'Got the rule {rules.rule!r} for {experts} expert; expected two or more '
      "to combine. 'pirt' needs none."
    )
  if rules.anchors > 1 and rules.anchors != int(rules.anchors):
    raise ValueError(
      f'Got anchors {rules.anchors:g}; expected a share below 1 or a whole '
      'number of items.'
    )


@dataclasses.dataclass(frozen=True)
class TaskEstimator:
  """Estimates scores on the I items of a task.

  Attributes:
    rules: how.
    items: what they ask.
    anchors: (n,) i64 indices of the items that are asked, ascending.
    weights: (n,) f64 of the anchors; sum to one.
    experts: (N, D) f64 abilities of the experts.
  """

  rules: Rules
  items: item_response.Items
  anchors: np.ndarray
  weights: np.ndarray
  experts: np.ndarray

  def __call__(self, answers: np.ndarray) -> np.ndarray:
    """Returns estimated scores (M,) f64 of answers (M, n) to the anchors."""
    rule, answers = self.rules.rule, np.asarray(answers, np.float64)
    seen = answers @ self.weights
    if rule in ('mean', 'weighted'):
      return answers.mean(axis=1) if rule == 'mean' else seen
    asked, right = self.items.take(self.anchors), np.clip(answers, 0.0, 1.0)
    if self.rules.mixes:
      abilities = item_response.mixed(asked, right, self.experts)
    else:
      abilities = item_response.abilities(asked, right)
    count = len(self.items.difficulties)
    others = np.setdiff1d(np.arange(count), self.anchors)
    expected = self.items.take(others).probabilities(abilities)
    estimate = (answers.shape[1] * seen + expected.sum(axis=1)) / count
    if rule == 'gmpirt':
      delta = self.rules.delta
      return delta * seen + (1 - delta) * estimate
    return estimate


def make(
  rules: Rules,
  values: np.ndarray,
  experts: Sequence[int],
  task: int = 0,
  given: item_response.Items | None = None,
) -> TaskEstimator:
  """Makes the estimator of a task.

  Args:
    rules: how.
    values: (M, I) of members that were asked all items.
    experts: (N,) which of them are the experts.
    task: index of the task, which its draw depends on.
    given: what the items ask, where it is known.
  """
  values = np.clip(values, 0.0, 1.0)
  if given is None:
    items, abilities = item_response.fit(values, rules.dimension)
  else:
    items, abilities = given, item_response.abilities(given, values)
  anchors, weights = draw(rules, items, task)
  return TaskEstimator(rules, items, anchors, weights, abilities[experts])


def draw(
  rules: Rules, items: item_response.Items, task: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the anchors of a task: indices (n,), ascending, and weights (n,)."""
  size = len(items.difficulties)
  count = rules.count(size)
  seed = rules.seed, task, keys.purpose_code('anchors')
  random = np.random.default_rng(seed)
  if rules.draw == 'random':
    chosen = random.choice(size, count, replace=False)
    return np.sort(chosen), np.full(count, 1 / count)
  features = np.column_stack([items.slopes, items.difficulties])
  chosen = np.sort(_middles(features, count, random))
  nearest = _distances(features, features[chosen]).argmin(axis=1)
  nearest[chosen] = np.arange(count)  # also where others are just like it
  return chosen, np.bincount(nearest, minlength=count) / size


def error(
  predicted: np.ndarray, scored: np.ndarray
) -> dict[str, int | float | None]:
  """Returns what M estimates (M,) were off from scores (M,).

  `members` that have both, `mean_absolute` of the differences, and Spearman's
  `rank_correlation`, None where one of them has no ranks.
  """
  both = np.isfinite(predicted) & np.isfinite(scored)
  one, other = np.asarray(predicted)[both], np.asarray(scored)[both]
  found = {'members': len(one), 'mean_absolute': None, 'rank_correlation': None}
  if len(one):
    found['mean_absolute'] = float(np.abs(one - other).mean())
    ranks = np.stack([_ranks(one), _ranks(other)])
    if (ranks.std(axis=1) > 0).all():
      found['rank_correlation'] = float(np.corrcoef(ranks)[0, 1])
  return found


def left_out(
  estimator: TaskEstimator,
  values: np.ndarray,
  experts: Sequence[int],
  given: bool = False,
) -> np.ndarray:
  """Returns estimates (N,) of experts by models that have not seen them.

  Arguments are those of `make`; the anchors stay as they are. Where items are
  given, abilities of the others alone are left.
  """
  values, found = np.clip(values, 0.0, 1.0), []
  for n, expert in enumerate(experts):
    others = np.delete(np.arange(len(values)), expert)
    items, abilities = estimator.items, np.delete(estimator.experts, n, 0)
    if not given and estimator.rules.rule not in ('mean', 'weighted'):
      whole = item_response.abilities(items, values[others])
      items, fitted = item_response.fit(
        values[others], estimator.rules.dimension, (items, whole)
      )
      kept = [i for i, other in enumerate(others) if other in experts]
      abilities = fitted[kept]
    alone = dataclasses.replace(estimator, items=items, experts=abilities)
    found.append(alone(values[[expert]][:, estimator.anchors])[0])
  return np.asarray(found)


@dataclasses.dataclass(frozen=True)
class Estimator:
  """Estimates the scores of members on K tasks."""

  tasks: Sequence[TaskEstimator]

  @property
  def anchors(self) -> list[list[int]]:
    """Of each task, indices of the items to ask."""
    return [task.anchors.tolist() for task in self.tasks]

  def apply(self, scores: Evaluation, objective: Objective) -> Evaluation:
    """Returns scores of M members on the anchors as estimates of all items.

    What the members did on the anchors stays as it is.
    """
    columns = [
      estimate(result.values)
      for estimate, result in zip(self.tasks, scores.tasks, strict=True)
    ]
    task_scores = np.stack(columns, axis=1).astype(np.float32)
    task_scores[~np.isfinite(scores.task_scores)] = np.nan
    return dataclasses.replace(
      scores, fitness=objective(task_scores), task_scores=task_scores
    )


def items_of(
  content: Any, task: str, ids: Sequence[str]
) -> item_response.Items:
  """Reads what the items of a task ask, as estimate.json of a run has it.

  That is {'tasks': {task: {'items': {id: {'slopes': [...], 'difficulty': x}}}}}
  with a slope for each dimension.

  Raises:
    ValueError: naming the key that is missing or holds something else.
  """
  where, held = '', content
  for key in ('tasks', task, 'items'):
    held = held.get(key) if isinstance(held, Mapping) else None
    where += f'.{key}' if where else key
    if not isinstance(held, Mapping):
      raise ValueError(f'{where} is missing or no object.')
  if absent := [name for name in ids if name not in held]:
    raise ValueError(
      f'{where} lacks {len(absent)} of the {len(ids)} dev items, such as '
      f'{absent[0]!r}.'
    )
  rows = []
  for name in ids:
    entry = held[name] if isinstance(held[name], Mapping) else {}
    slopes, difficulty = entry.get('slopes'), entry.get('difficulty')
    row = [*slopes, difficulty] if isinstance(slopes, Sequence) else []
    fits = len(row) > 1 and all(
      isinstance(x, (int, float)) and np.isfinite(x) for x in row
    )
    if not fits or (rows and len(row) != len(rows[0])):
      wanted = f'{len(rows[0]) - 1} numbers' if rows else 'a list of numbers'
      raise ValueError(
        f'{where}.{name} is {str(held[name])[:80]}; expected slopes, {wanted}, '
        'and difficulty, a number.'
      )
    rows.append(row)
  table = np.asarray(rows, np.float64)
  return item_response.Items(table[:, :-1], table[:, -1])


def _middles(features, count, random):
  """Indices of items in the middle of clusters of (I, F) features: k-means."""
  chosen = [int(random.integers(len(features)))]
  nearest = np.full(len(features), np.inf)
  for _ in range(count - 1):
    last = _distances(features, features[chosen[-1:]])[:, 0]
    nearest = np.minimum(nearest, last)
    nearest[chosen] = 0.0
    if not nearest.any():
      nearest[np.setdiff1d(np.arange(len(features)), chosen)] = 1.0
    chosen.append(int(random.choice(len(features), p=nearest / nearest.sum())))
  centres = features[chosen]
  for _ in range(100):
    own = _distances(features, centres).argmin(axis=1)
    moved = np.stack(
      [
        features[own == c].mean(axis=0) if (own == c).any() else centres[c]
        for c in range(count)
      ]
    )
    if np.array_equal(moved, centres):
      break
    centres = moved
  taken: list[int] = []
  for distances in _distances(features, centres).T:
    distances[taken] = np.inf
    taken.append(int(distances.argmin()))
  return np.asarray(taken)


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  return np.square(one[:, None] - other[None]).sum(axis=2)


def _ranks(values: np.ndarray) -> np.ndarray:
  """Ranks of values (M,), their mean for those that are equal."""
  less = (values[:, None] > values[None]).sum(axis=1)
  equal = (values[:, None] == values[None]).sum(axis=1)
  return less + (equal - 1) / 2
