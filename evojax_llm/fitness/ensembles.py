"""Group decisions: the answers of several members made into one.

GENOME+ (arXiv 2503.01155) ends in a vote of its best members, Model Swarms
(arXiv 2410.11163) reports one. Every rule names, item by item, the member whose
answer stands; the value of the decision is that member's value on the item,
whatever the scorer. No rule sees the gold answer but `bound`, which
must be reported as such.

Members are ordered by `dev`, which decides ties and the number of members. The
released code of GENOME ranks by test scores, gives half a point for ties that
contain the gold answer, and counts any member's right answer on DROP; none of
this is done here.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.fitness.item_log import GenerationItems
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.fitness.item_log import take
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item

# M members, best by dev first; each a prediction an item, None for no answer.
Predictions = Sequence[Sequence[str | None]]


def majority(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """Chooses the answer of most members; of equally many, of the best by dev.

  Returns:
    (items,) i32, the best member that gave the winning answer. Members without
      an answer have no vote; where none has an answer, the best member stands.

  Raises:
    ValueError: there are no members, or lists of different lengths.
  """
  return weighted(predictions, np.ones(len(fitness)))


def weighted(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """Chooses as `majority`, a vote counting as much as its member's fitness.

  A failed member's vote (fitness not finite, or negative) counts nothing.
  """
  votes = np.where(np.isfinite(fitness), np.maximum(fitness, 0.0), 0.0)

  def stands(answers: Sequence[str | None]) -> int:
    counts: dict[str, float] = {}
    first: dict[str, int] = {}
    for m, answer in enumerate(answers):
      if answer is not None:
        counts[answer] = counts.get(answer, 0.0) + votes[m]
        first.setdefault(answer, m)
    # Answers stand in the order of their best member, and max takes the first
    # of equals.
    return first[max(first, key=counts.__getitem__)] if first else 0

  items = _by_item(predictions, fitness)
  return np.array([stands(answers) for answers in items], np.int32)


def medoid(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """Chooses the answer that is most like all others: for free text.

  Likeness is the F1 of character trigrams, so that two members that answer
  nearly the same support each other, where a vote would count two answers.
  """

  def stands(answers: Sequence[str | None]) -> int:
    grams = [_trigrams(answer) for answer in answers]
    likeness = [
      sum(_f1(one, two) for two in grams) if one else -1.0 for one in grams
    ]
    return int(np.argmax(likeness))

  items = _by_item(predictions, fitness)
  return np.array([stands(answers) for answers in items], np.int32)


AUTO = 'auto'
RULES: Mapping[str, Callable[[Predictions, np.ndarray], np.ndarray]] = {
  'majority': majority,
  'weighted': weighted,
  'medoid': medoid,
}


@dataclasses.dataclass(frozen=True)
class Group:
  """M members, the best by dev first, and what they did on a split.

  Attributes:
    fitness: (M,) f32 on dev, none of them NaN.
    task_scores: (M, K) f32 on the split.
    results: K results on the split, whose `values` (M, items) and `predictions`
      are read.
  """

  fitness: np.ndarray
  task_scores: np.ndarray
  results: Sequence[Any]

  def take(self, slots: Sequence[int]) -> 'Group':
    """Returns the group of the members in these slots."""
    slots = list(slots)
    results = [take(result, slots) for result in self.results]
    return Group(self.fitness[slots], self.task_scores[slots], results)


def decide(
  rule: str,
  group: Group,
  scorers: Sequence[Scorer],
  items: Sequence[Sequence[Item]],
) -> np.ndarray:
  """Returns scores (K,) f32 of the answers that stand, by the K scorers.

  The rule 'auto' is the medoid where items have more than two values, so that
  answers are texts, and the majority elsewhere. Of a task without predictions,
  such as a perplexity, the score is the best member's.

  Raises:
    ValueError: the rule is unknown.
  """
  scores = group.task_scores[0].copy()
  for k, stands in enumerate(standing(rule, group, scorers)):
    if stands is None:
      continue
    values = np.asarray(group.results[k].values)
    predictions = np.array(group.results[k].predictions, object)
    stand = stands, np.arange(values.shape[1])
    verdicts = Verdicts(
      predictions.reshape(values.shape)[stand],
      values[stand].astype(np.float64),
      np.ones(values.shape[1]),
    )
    scores[k] = scorers[k].aggregate(items[k], verdicts)
  return scores


def standing(
  rule: str, group: Group, scorers: Sequence[Scorer]
) -> list[np.ndarray | None]:
  """Returns (items,) of each task, the members whose answers stand.

  None for a task without predictions. See `decide`.
  """
  check_rule(rule)
  stands = []
  for scorer, result in zip(scorers, group.results, strict=True):
    predictions = result.predictions
    if all(answer is None for answers in predictions for answer in answers):
      stands.append(None)
      continue
    chosen = rule
    if rule == AUTO:
      chosen = 'majority' if scorer.binary else 'medoid'
    stands.append(RULES[chosen](predictions, group.fitness))
  return stands


def choose_size(
  rule: str,
  group: Group,
  scorers: Sequence[Scorer],
  items: Sequence[Sequence[Item]],
  objective: Callable[[np.ndarray], np.ndarray],
) -> tuple[int, np.ndarray]:
  """Returns the number of members that decides best on `dev`.

  The group is of M members with what they did on `dev`, the best first; the
  objective makes fitness (M,) of task scores (M, K).

  Returns:
    k, the smallest of the best sizes, and the task scores (M, K) f32 of the
      sizes 1 .. M.
  """
  sizes = range(1, len(group.fitness) + 1)
  by_size = np.stack(
    [decide(rule, group.take(range(n)), scorers, items) for n in sizes]
  )
  fitness = np.nan_to_num(objective(by_size), nan=-np.inf)
  return int(np.argmax(fitness)) + 1, by_size


def bound(group: Group, scorers: Sequence[Scorer]) -> np.ndarray:
  """Returns scores (K,) f32 if the best answer of any member stood.

  An upper bound that knows the gold answers, never a result. NaN for a task
  whose score is more than the mean of its items.
  """
  scores = []
  for scorer, result in zip(scorers, group.results, strict=True):
    best = np.max if scorer.maximise else np.min
    values = np.asarray(result.values)
    scores.append(np.nan if scorer.corpus else best(values, axis=0).mean())
  return np.array(scores, np.float32)


def gather(
  generations: Iterable[GenerationItems], members: Sequence[int]
) -> list[TaskItems] | None:
  """Gathers K results of M members, by id, from the log of items.

  None where the log has not all of them, or had them on other items.
  """
  known: dict[int, list[TaskItems]] = {}
  for generation in generations:
    for slot, member in enumerate(generation.members.tolist()):
      if member in members:
        known[member] = [take(task, [slot]) for task in generation.tasks]
  if set(known) != set(members):
    return None
  gathered = []
  for parts in zip(*(known[member] for member in members), strict=True):
    if any(part.ids != parts[0].ids for part in parts):
      return None
    joined = {
      name: np.concatenate([getattr(part, name) for part in parts])
      for name in ('values', 'predictions', 'asked')
    }
    gathered.append(dataclasses.replace(parts[0], **joined))
  return gathered


def check_rule(rule: str) -> None:
  """Raises ValueError where there is no such rule."""
  if rule not in (AUTO, *RULES):
    raise ValueError(
      f'Got ensemble rule {rule!r}; expected one of {(AUTO, *RULES)}.'
    )


def _by_item(predictions: Predictions, fitness: np.ndarray) -> list[tuple]:
  """Returns the M answers to each item."""
  lengths = {len(answers) for answers in predictions}
  if len(predictions) != len(fitness) or len(lengths) != 1:
    raise ValueError(
      f'Got answers of {len(predictions)} members to {sorted(lengths)} items '
      f'and {len(fitness)} fitnesses; expected one fitness a member, and an '
      'answer (or None) of each member to every item.'
    )
  return list(zip(*predictions, strict=True))


def _trigrams(text: str | None) -> collections.Counter[str]:
  padded = f'  {text.strip().lower()}  ' if text is not None else ''
  return collections.Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def _f1(one: collections.Counter[str], two: collections.Counter[str]) -> float:
  total = one.total() + two.total()
  return 2.0 * (one & two).total() / total if total else 0.0
