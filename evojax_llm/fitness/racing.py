"""Racing: members that can no longer matter are not scored to the end.

The items are cut into blocks, and a generation's members are scored on block
after block, all of them on the same items. After 1, 2, 4, ... blocks some are
stopped. What is compared are differences on the same items, which vary far less
than accuracies do (Maron and Moore, 1994, Hoeffding races; Jamieson and
Talwalkar, arXiv 1502.07943, successive halving).

Two rules say which members stop, relative to the `keep` best so far:

  paired   those behind the last of the best by more than z standard errors of
           the difference; items to come are taken as drawn like those seen
  halving  the worse half of those that are left, whatever the distance

Blocks are drawn once a run and their order once a generation, by address, so
that a resumed run races as an unbroken one. A stopped member keeps its fitness,
but never more than the worst of those that were scored on everything: it cannot
outrank them by the luck of few items. A member that fails is out at once.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from evojax_llm.fitness import objectives
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.population import keys

RULES = ('paired', 'halving')


@dataclasses.dataclass(frozen=True)
class Racing:
  """How members race.

  Attributes:
    rule: 'paired' or 'halving'.
    rounds: there are 2 ** (rounds - 1) blocks, after which members may stop
      rounds - 1 times.
    keep: members that are scored on everything at least, if so many are left.
    z: standard errors of the rule 'paired'.
  """

  rule: str = 'paired'
  rounds: int = 3
  keep: int = 1
  z: float = 2.0

  def __post_init__(self):
    if self.rule not in RULES:
      raise ValueError(f'rule is {self.rule!r}; expected one of {RULES}.')
    if self.rounds < 1 or self.keep < 1 or not 0 <= self.z < math.inf:
      raise ValueError(
        f'rounds={self.rounds}, keep={self.keep}, z={self.z}; expected rounds '
        'and keep of at least 1 and a z of at least 0.'
      )


@dataclasses.dataclass
class Raced(Evaluation):
  """The outcome of a race of M members; see the module for those stopped.

  Attributes:
    seen: (M,) i32 items that the member was scored on; scores are means over
      them.
    saved: items that were not scored.
    values: of each task, (M, items) f64, NaN where not scored.
  """

  seen: np.ndarray
  saved: int
  values: list[np.ndarray]


# score(members (A,) of the M, items of each task): values (A, items) of each
# task, and why a member failed.
Score = Callable[
  [np.ndarray, list[list[int]]], tuple[list[np.ndarray], Sequence[str | None]]
]


def check(scorers: Sequence[Any], objective: str) -> None:
  """Raises ValueError where fitness is no mean over items to be maximised."""
  for metric in scorers:
    if metric.corpus or not metric.maximise:
      raise ValueError(
        f'{metric.metric} is no mean over items to be maximised, so that '
        'members cannot race for it: leave racing off.'
      )
  if objective not in ('weighted_mean', 'pareto'):
    raise ValueError(
      f'objective is {objective!r}; members race for a weighted mean alone: '
      'leave racing off.'
    )


def draw_blocks(
  lengths: Sequence[Sequence[int]], count: int, seed_key: jax.Array
) -> list[list[list[int]]]:
  """Deals the items of K tasks, of some lengths, into blocks of all lengths.

  Returns:
    Of each of at most `count` blocks and each task, indices of its items.
  """
  count = max(1, min(count, *map(len, lengths)))
  blocks = [[[] for _ in lengths] for _ in range(count)]
  for k, task in enumerate(lengths):
    random = _generator(seed_key, 0, k, 'racing items')
    # Items of a length in random order, then dealt a round at a time.
    order = sorted(
      range(len(task)), key=lambda i, r=random: (task[i], r.random())
    )
    for start in range(0, len(order), count):
      dealt = order[start : start + count]
      for block, item in zip(random.permutation(count), dealt, strict=False):
        blocks[block][k].append(item)
  return [[sorted(task) for task in block] for block in blocks]


def race(
  score: Score,
  members: int,
  blocks: Sequence[list[list[int]]],
  weights: np.ndarray,
  racing: Racing,
  seed_key: jax.Array,
  generation: int,
) -> Raced:
  """Scores M members block by block, and stops those that cannot matter.

  `weights` (K,) of the tasks in the fitness sum to one; `generation` orders the
  blocks.
  """
  sizes = np.array([[len(task) for task in block] for block in blocks]).sum(0)
  values = [np.full((members, n), np.nan) for n in sizes]
  reasons: list[str | None] = [None] * members
  running = np.arange(members)
  order = _generator(seed_key, generation, 0, 'racing').permutation(len(blocks))
  for done, index in enumerate(order, start=1):
    scored, failed = score(running, blocks[index])
    for k, items in enumerate(blocks[index]):
      values[k][np.ix_(running, items)] = scored[k]
    for member, reason in zip(running, failed, strict=True):
      reasons[member] = reason
    running = np.array([m for m in running if reasons[m] is None], np.int64)
    if done < len(order) and done & (done - 1) == 0:
      running = _survivors(values, running, weights, sizes, racing)
    if not len(running):
      break
  seen = np.sum([np.isfinite(v).sum(axis=1) for v in values], axis=0)
  task_scores = np.stack([*map(_mean, values)], axis=1)
  fitness = objectives.rounded(task_scores @ weights)
  if len(running):
    stopped = np.setdiff1d(np.arange(members), running)
    worst = fitness[running].min()
    fitness[stopped] = np.minimum(fitness[stopped], worst)
  out = np.array([reason is not None for reason in reasons], bool)
  fitness[out], task_scores[out] = np.nan, np.nan
  return Raced(
    fitness=fitness.astype(np.float32),
    task_scores=task_scores.astype(np.float32),
    tasks=[],
    reasons=reasons,
    seen=seen.astype(np.int32),
    saved=int(members * sizes.sum() - seen.sum()),
    values=values,
  )


def _survivors(values, running, weights, sizes, racing):
  """Returns the members that go on, in their order."""
  if len(running) <= racing.keep:
    return running
  tasks = zip(weights, values, strict=True)
  fitness = sum(w * _mean(v[running]) for w, v in tasks)
  # Of equals the first goes on, so that the order of members decides nothing
  # else.
  ranked = np.argsort(-fitness, kind='stable')
  if racing.rule == 'halving':
    best = max(racing.keep, -(-len(running) // 2))
    return np.sort(running[ranked[:best]])
  mark = running[ranked[racing.keep - 1]]
  gap, variance = np.zeros(len(running)), np.zeros(len(running))
  for w, v, size in zip(weights, values, sizes, strict=True):
    seen = np.isfinite(v[mark])
    count = int(seen.sum())
    if not count:
      continue
    difference = v[mark, seen] - v[np.ix_(running, np.flatnonzero(seen))]
    gap += w * difference.mean(axis=1)
    # An item without a difference is added: a few that are all alike do not
    # prove that the next one is. And what is asked is the mean over all items,
    # of which some were seen.
    more = np.pad(difference, [(0, 0), (0, 1)])
    spread = more.var(axis=1, ddof=1)
    variance += w**2 * spread / count * (1 - count / size)
  kept = gap <= racing.z * np.sqrt(variance)
  kept[ranked[: racing.keep]] = True
  return running[kept]


def _mean(values: np.ndarray) -> np.ndarray:
  """Returns means over the items that were seen, 0 where there are none."""
  seen = np.isfinite(values)
  total = np.where(seen, values, 0.0).sum(axis=1)
  return total / np.maximum(1, seen.sum(axis=1))


def _generator(
  seed_key: jax.Array, generation: int, index: int, purpose: str
) -> np.random.Generator:
  key = keys.key_for(seed_key, generation, index, purpose)
  return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
