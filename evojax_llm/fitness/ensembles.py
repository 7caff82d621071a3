"""Group decisions: the answers of several members made into one.

GENOME+ (arXiv 2503.01155) ends in a vote of its best members, Model Swarms
(arXiv 2410.11163) reports one. Every rule here names, item by item, the member
whose answer stands. The value of the decision is then that member's value on
the item, whatever the scorer, and nobody looks at the gold answer. The one rule
that does, `oracle`, is an upper bound and must be reported as such.

Members are ordered by `dev`; so are ties decided, and so is the number of
members chosen. The released code of GENOME ranks by test scores, gives half a
point for ties that contain the gold answer, and counts any member's right
answer on DROP; none of this is done here.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

# M members, best by dev first; each a prediction an item, None for no answer.
Predictions = Sequence[Sequence[str | None]]


def majority(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """The answer of most members; of equally many, that of the best by dev.

  Args:
    predictions: M lists of an answer an item, the best member first.
    fitness: (M,) dev fitness; not used.

  Returns:
    (items,) i32, the best member that gave the winning answer. Members without
    an answer have no vote, unless nobody has one: then the best stands.

  Raises:
    ValueError: if there are no members, or lists of different lengths.
  """
  return weighted(predictions, np.ones(len(fitness)))


def weighted(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """As `majority`, a vote counting as much as its member's dev fitness.

  A failed member's vote (fitness not finite, or negative) counts nothing.
  """
  items = _check(predictions, fitness)
  votes = np.where(np.isfinite(fitness), np.maximum(fitness, 0.0), 0.0)
  stands = np.zeros(items, np.int32)
  for i in range(items):
    counts: dict[str, float] = {}
    first: dict[str, int] = {}
    for m, answers in enumerate(predictions):
      answer = answers[i]
      if answer is not None:
        counts[answer] = counts.get(answer, 0.0) + votes[m]
        first.setdefault(answer, m)
    if counts:
      # Answers stand in the order of their best member, and max takes the
      # first of equals.
      most = max(first, key=counts.__getitem__)
      stands[i] = first[most]
  return stands


def medoid(predictions: Predictions, fitness: np.ndarray) -> np.ndarray:
  """The answer that is most like all others: for free text.

  Likeness is the F1 of character trigrams, so that two members that say nearly
  the same support each other, where a vote would count two answers.
  """
  items = _check(predictions, fitness)
  stands = np.zeros(items, np.int32)
  for i in range(items):
    grams = [_trigrams(answers[i]) for answers in predictions]
    likeness = [
      sum(_f1(one, two) for two in grams) if one else -1.0 for one in grams
    ]
    stands[i] = int(np.argmax(likeness))
  return stands


def oracle(values: np.ndarray) -> np.ndarray:
  """The best answer that anybody gave: a bound, which knows the gold answer.

  Args:
    values: (M, items) f32, the larger the better.

  Returns:
    (items,) i32, the first member with the largest value.
  """
  return np.argmax(values, axis=0).astype(np.int32)


RULES: Mapping[str, Callable[[Predictions, np.ndarray], np.ndarray]] = {
  'majority': majority,
  'weighted': weighted,
  'medoid': medoid,
}


def decided(values: np.ndarray, stands: np.ndarray) -> np.ndarray:
  """Values (items,) of a decision: values (M, items) of those who stand."""
  return values[stands, np.arange(values.shape[1])]


def choose_size(
  rule: str,
  predictions: Sequence[Predictions],
  values: Sequence[np.ndarray],
  weights: Sequence[float],
  fitness: np.ndarray,
) -> tuple[int, np.ndarray]:
  """The number of members that decides best on `dev`.

  Args:
    rule: one of RULES.
    predictions: for each of K tasks, M lists of dev answers, best member first.
    values: for each task, (M, items) dev values.
    weights: (K,) weights of the tasks.
    fitness: (M,) dev fitness.

  Returns:
    k, the smallest of the best sizes, and (M,) the weighted mean dev value of
    each size 1 .. M.

  Raises:
    ValueError: if the rule is unknown.
  """
  if rule not in RULES:
    raise ValueError(f'Got ensemble {rule!r}; expected one of {tuple(RULES)}.')
  by_size = np.zeros(len(fitness))
  for size in range(1, len(fitness) + 1):
    for weight, answers, value in zip(
      weights, predictions, values, strict=True
    ):
      stands = RULES[rule](answers[:size], fitness[:size])
      by_size[size - 1] += weight * decided(value[:size], stands).mean()
  # Rounded, so that sums in another order cannot decide.
  return int(np.argmax(np.round(by_size, 6))) + 1, by_size


def _check(predictions: Predictions, fitness: np.ndarray) -> int:
  lengths = {len(answers) for answers in predictions}
  if len(predictions) != len(fitness) or len(lengths) != 1:
    raise ValueError(
      f'Got answers of {len(predictions)} members to {sorted(lengths)} items '
      f'and {len(fitness)} fitnesses; expected one fitness a member, and an '
      'answer (or None) of each member to every item.'
    )
  return lengths.pop()


def _trigrams(text: str | None) -> dict[str, int]:
  counts: dict[str, int] = {}
  padded = f'  {text.strip().lower()}  ' if text is not None else ''
  for i in range(len(padded) - 2):
    gram = padded[i : i + 3]
    counts[gram] = counts.get(gram, 0) + 1
  return counts


def _f1(one: dict[str, int], two: dict[str, int]) -> float:
  total = sum(one.values()) + sum(two.values())
  shared = sum(min(n, two.get(gram, 0)) for gram, n in one.items())
  return 2.0 * shared / total if total else 0.0
