"""What a population has to beat: plain mixes of the experts, scored as it is.

Evolution is judged against the base, the best expert, and their average with
and without a larger mass. Convex merging can only dilute what the experts
learnt, so an average whose second factors B are scaled up is often stronger
than either (task arithmetic, arXiv 2212.04089, scales a sum in the same way); a
table without it proves little. The soup is the average of the best few experts:
as the greedy one of arXiv 2203.05482 it takes them in the order of their
fitness, but all its sizes are scored together and the best is taken.

Which expert, which factor and how many are in the soup is chosen on `dev`
alone.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

AVERAGE_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0)
EXPERT_FACTORS = (0.5, 1.5, 2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Mix:
  """A mix of N experts, as `mix` of a genome space makes it.

  Attributes:
    weights: (N,) of the experts.
    factor: scales what they change; 0 gives the base.
  """

  weights: tuple[float, ...]
  factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Baseline:
  """A row of the final table.

  Attributes:
    name: 'base', 'best expert', ...
    detail: what was chosen, for people.
    mix: how it is made of the experts.
    task_scores: (K,) its accuracies on `dev`.
    evaluations: members scored on `dev` to choose it.
  """

  name: str
  detail: str
  mix: Mix
  task_scores: np.ndarray
  evaluations: int


def mix_experts(space: Any, mixes: Sequence[Mix]) -> Any:
  """Genomes (C, ...) of C mixes of the experts of a space."""
  return space.mix(
    np.asarray([mix.weights for mix in mixes], np.float64),
    np.asarray([mix.factor for mix in mixes], np.float64),
  )


def choose_baselines(
  names: Sequence[str], score: Callable[[Sequence[Mix]], Any]
) -> list[Baseline]:
  """Scores the experts and their plain mixes on `dev`; chooses the baselines.

  Args:
    names: names of the N experts.
    score: scores C mixes on `dev` and returns an `Evaluation` of C members.

  Returns:
    base, best expert, average, soup, scaled average and scaled best expert.
  """
  n = len(names)
  even = (1.0 / n,) * n
  experts = [Mix(_one_hot(i, n)) for i in range(n)]
  averages = [Mix(even, f) for f in (1.0, *AVERAGE_FACTORS)]
  first = [Mix(even, 0.0), *experts, *averages]
  scores = score(first)
  expert = 1 + _best(scores.fitness[1 : 1 + n])
  average = 1 + n + _best(scores.fitness[1 + n :])
  soups = _soups(scores.fitness[1 : 1 + n])
  scaled = [Mix(first[expert].weights, f) for f in EXPERT_FACTORS]
  second = score(scaled + soups)
  mixes = first + scaled + soups
  fitness = np.concatenate([scores.fitness, second.fitness])
  task_scores = np.concatenate([scores.task_scores, second.task_scores])

  def row(name, detail, index, evaluations):
    return Baseline(name, detail, mixes[index], task_scores[index], evaluations)

  def choose(places):
    return places[_best(fitness[places])]

  # One expert, all of them and a factor of 1 have been scored before.
  behind = len(first) + len(scaled)
  soup = choose([expert, 1 + n, *range(behind, len(mixes))])
  rescaled = choose([expert, *range(len(first), behind)])
  name, size = names[expert - 1], np.count_nonzero(mixes[soup].weights)
  return [
    row('base', '', 0, 1),
    row('best expert', name, expert, n),
    row('average', '', 1 + n, 1),
    row('soup', f'best {size}', soup, n + 1 + len(soups)),
    row(
      'scaled average', f'x {first[average].factor:g}', average, len(averages)
    ),
    row(
      'scaled best expert',
      f'{name}, x {mixes[rescaled].factor:g}',
      rescaled,
      n + len(scaled),
    ),
  ]


def _soups(fitness: np.ndarray) -> list[Mix]:
  """Averages of the best 2, 3, ... experts by fitness (N,), but not of all."""
  n = len(fitness)
  alive = np.flatnonzero(~np.isnan(fitness))
  order = alive[np.argsort(-fitness[alive], kind='stable')]
  mixes = []
  for size in range(2, len(order) + 1):
    weights = np.zeros(n)
    weights[order[:size]] = 1.0 / size
    mixes.append(Mix(tuple(weights.tolist())))
  return mixes[: max(n - 2, 0)]


def _one_hot(index: int, length: int) -> tuple[float, ...]:
  return tuple(1.0 if i == index else 0.0 for i in range(length))


def _best(fitness: np.ndarray) -> int:
  """Index of the best; a failed member (NaN) only where all failed."""
  return int(np.argmax(np.where(np.isnan(fitness), -np.inf, fitness)))
