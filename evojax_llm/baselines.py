"""What a population has to beat: plain mixes of the experts, scored as it is.

Evolution is judged against the base, the best expert, and their average with
and without a larger mass. Convex merging can only dilute what the experts
learnt, so an average whose second factors B are scaled up is often stronger
than either (task arithmetic, arXiv 2212.04089, scales a sum in the same way); a
table without it proves little.

Which expert and which factor is chosen on `dev` alone.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AVERAGE_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0)
EXPERT_FACTORS = (0.5, 1.5, 2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Mix:
  """A mix of N experts: a = sum_n w_n a_n and b = factor sum_n w_n b_n.

  Attributes:
    weights: (N,) w, the same for a and b.
    factor: scales b; 0 gives the base.
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
    scores: its `dev` scores, a `Scores` of one member.
    evaluations: members scored on `dev` to choose it.
  """

  name: str
  detail: str
  mix: Mix
  scores: Any
  evaluations: int


def mix_experts(factors: Any, mixes: Sequence[Mix]) -> Any:
  """Adapter genomes (C, ...) of C mixes.

  Args:
    factors: the experts' adapter genomes, leading N.
    mixes: C mixes of N weights.
  """
  weights = jnp.asarray([mix.weights for mix in mixes], jnp.float32)
  scales = jnp.asarray([mix.factor for mix in mixes], jnp.float32)

  def leaf(path, expert_leaf):
    is_b = getattr(path[-1], 'key', None) == 'b'
    w = weights * scales[:, None] if is_b else weights
    return jnp.einsum(
      'cn,n...->c...',
      w,
      jnp.asarray(expert_leaf, jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )

  return jax.tree_util.tree_map_with_path(leaf, factors)


def choose_baselines(
  names: Sequence[str], score: Callable[[Sequence[Mix]], Any]
) -> list[Baseline]:
  """Scores the experts and their plain mixes on `dev`; chooses the baselines.

  Args:
    names: names of the N experts.
    score: scores C mixes on `dev` and returns a `Scores` of C members.

  Returns:
    base, best expert, average, scaled average and scaled best expert.
  """
  n = len(names)
  even = (1.0 / n,) * n
  experts = [Mix(_one_hot(i, n)) for i in range(n)]
  averages = [Mix(even, f) for f in (1.0, *AVERAGE_FACTORS)]
  first = [Mix(even, 0.0), *experts, *averages]
  scores = score(first)
  expert = 1 + _best(scores.fitness[1 : 1 + n])
  average = 1 + n + _best(scores.fitness[1 + n :])
  scaled = [Mix(first[expert].weights, f) for f in EXPERT_FACTORS]
  scaled_scores = score(scaled)
  rescaled = _best(scaled_scores.fitness)
  name = names[expert - 1]
  rows = [
    Baseline('base', '', first[0], one(scores, 0), 1),
    Baseline('best expert', name, first[expert], one(scores, expert), n),
    Baseline('average', '', first[1 + n], one(scores, 1 + n), 1),
    Baseline(
      'scaled average',
      f'B x {first[average].factor:g}',
      first[average],
      one(scores, average),
      len(averages),
    ),
  ]
  # A factor of 1 is the best expert itself, which has been scored.
  best, value = scaled[rescaled], one(scaled_scores, rescaled)
  if not scaled_scores.fitness[rescaled] > scores.fitness[expert]:
    best, value = first[expert], one(scores, expert)
  rows.append(
    Baseline(
      'scaled best expert',
      f'{name}, B x {best.factor:g}',
      best,
      value,
      n + len(scaled),
    )
  )
  return rows


def one(scores: Any, index: int) -> Any:
  """The `Scores` of one of M members; M becomes 1."""
  span = slice(index, index + 1)
  return dataclasses.replace(
    scores,
    fitness=scores.fitness[span],
    task_scores=scores.task_scores[span],
    reasons=scores.reasons[span],
    tasks=[
      dataclasses.replace(
        task,
        correct=task.correct[span],
        predictions=task.predictions[span],
        loglikelihoods=task.loglikelihoods and task.loglikelihoods[span],
      )
      for task in scores.tasks
    ],
  )


def _one_hot(index: int, length: int) -> tuple[float, ...]:
  return tuple(1.0 if i == index else 0.0 for i in range(length))


def _best(fitness: np.ndarray) -> int:
  """Index of the best; a failed member (NaN) only where all failed."""
  return int(np.argmax(np.where(np.isnan(fitness), -np.inf, fitness)))
