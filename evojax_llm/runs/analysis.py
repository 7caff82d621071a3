"""What a finished run tells beside its scores: new skills, origins, paths.

The questions are those of Model Swarms (arXiv 2410.11163): what the evolved
member can that none of the experts could (correctness emergence), whether the
winner began as a favourite, and where the population went. All of it is read
from the records of the run.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from evojax_llm.fitness.item_log import GenerationItems


@dataclasses.dataclass(frozen=True)
class Emergence:
  """Items that are right or wrong, before and after.

  Attributes:
    items: all of them.
    unsolved: those that no expert had right.
    emerged: those of them that the evolved member has right.
    best_solved: those that the best expert had right.
    lost: those of them that the evolved member has wrong.
  """

  items: int
  unsolved: int
  emerged: int
  best_solved: int
  lost: int


def emergence(experts: np.ndarray, best: int, evolved: np.ndarray) -> Emergence:
  """What the evolved member can that no expert could, and what it forgot.

  Args:
    experts: (N, items) 0 or 1.
    best: index of the best expert.
    evolved: (items,) 0 or 1.
  """
  solved, right = np.asarray(experts) == 1, np.asarray(evolved) == 1
  nobody = ~solved.any(axis=0)
  return Emergence(
    items=len(right),
    unsolved=int(nobody.sum()),
    emerged=int((nobody & right).sum()),
    best_solved=int(solved[best].sum()),
    lost=int((solved[best] & ~right).sum()),
  )


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a member comes from.

  Attributes:
    path: ids from the initial member to it, along first parents; it alone
      where it was made of nobody, as members of random search and CMA-ES are.
    rank: of the initial member among all of them by dev fitness, 1 for the
      best; of equals all have the best rank. None where there is no such
      member.
    of: number of initial members that could be scored.
    experts: names of the experts in its whole ancestry, by their rank.
    expert_ranks: their ranks among the experts, likewise.
  """

  path: list[int]
  rank: int | None
  of: int
  experts: list[str]
  expert_ranks: list[int]


def origin(
  member: int,
  rows: Sequence[Mapping[str, Any]],
  expert_fitness: Mapping[str, float],
) -> Origin:
  """Follows a member back to the initial population.

  A member that moved is its own first parent; so the path is that of a particle
  where members move, and of the first parent where they are crossed.

  Args:
    member: its id.
    rows: of members.jsonl.
    expert_fitness: dev fitness by name.
  """
  by_id = {row['id']: row for row in rows}
  path = [member]
  while by_id[path[0]]['generation'] > 0 and by_id[path[0]]['parents']:
    path.insert(0, by_id[path[0]]['parents'][0])
  first = [
    row['fitness']
    for row in rows
    if row['generation'] == 0 and row['fitness'] is not None
  ]
  rank, start = None, by_id[path[0]]
  if start['generation'] == 0:
    # Who could not be scored comes behind all who could.
    worth = -math.inf if start['fitness'] is None else start['fitness']
    rank = 1 + sum(fitness > worth for fitness in first)
  found, queue, names = set(), [member], set()
  while queue:
    current = queue.pop()
    if current not in found and current in by_id:
      found.add(current)
      queue += by_id[current]['parents']
      names |= set(by_id[current].get('experts', ()))
  ranks = {name: _rank(expert_fitness, name) for name in names}
  ordered = sorted(names, key=lambda name: (ranks[name], name))
  return Origin(
    path=path,
    rank=rank,
    of=len(first),
    experts=ordered,
    expert_ranks=[ranks[name] for name in ordered],
  )


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """Members on the plane in which they differ most.

  Attributes:
    ids: M ids, in the order in which they were scored.
    generations: (M,) i32, when.
    points: (M, 2) f64.
    explained: (2,) shares of the variance that the two directions hold.
  """

  ids: list[int]
  generations: np.ndarray
  points: np.ndarray
  explained: np.ndarray


def trajectory(log: Iterable[GenerationItems]) -> Trajectory:
  """Principal components of what all members answered on dev.

  A member is the vector of its values on the items, each task scaled to unit
  variance; so members of any genome space can be drawn, and those that answer
  alike fall together. An item that a member was not asked counts as the mean.

  Args:
    log: of `item_log.ItemLog.read`.

  Raises:
    ValueError: fewer than three members were scored on the items of the first
      generation.
  """
  ids, generations, rows, names = [], [], [], None
  for generation in log:
    names = names or [task.ids for task in generation.tasks]
    if [task.ids for task in generation.tasks] != names:
      continue  # other items: no place on this plane
    ids += generation.members.tolist()
    generations += [generation.number] * len(generation.members)
    rows.append(
      [np.asarray(task.values, np.float64) for task in generation.tasks]
    )
  if len(ids) < 3:
    raise ValueError(
      f'Got {len(ids)} members with answers to the same items; expected three '
      'at least to draw a plane.'
    )
  columns = []
  for task in zip(*rows, strict=True):
    values = np.concatenate(task)
    centred = values - np.nanmean(values, axis=0, keepdims=True)
    centred = np.nan_to_num(centred)
    columns.append(
      centred / max(np.sqrt((centred**2).sum(axis=1).mean()), 1e-12)
    )
  matrix = np.concatenate(columns, axis=1)
  u, s, _ = np.linalg.svd(matrix, full_matrices=False)
  points = np.zeros((len(ids), 2))
  kept = min(2, len(s))
  points[:, :kept] = (u * s)[:, :kept]
  # A sign is nobody's: the first member lies on the left and below.
  points *= np.where(points[0] > 0, -1.0, 1.0)
  shares = np.zeros(2)
  shares[:kept] = (s**2 / max((s**2).sum(), 1e-12))[:kept]
  return Trajectory(ids, np.asarray(generations, np.int32), points, shares)


def _rank(fitness: Mapping[str, float], name: str) -> int:
  return 1 + sum(other > fitness[name] for other in fitness.values())
