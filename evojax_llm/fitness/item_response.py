"""Item-response estimates: members compare although they saw other items.

In the model of Rasch (1960) a member is right on an item with probability
sigmoid(c + ability - difficulty). Abilities and difficulties are those that
make what was seen most probable, each with a normal prior, so that they are
finite also where all answers are right; c is the log-odds of all answers.
Nothing is said of an item or a member that was never seen: it is average.

A race leaves gaps that are no accident: it goes on with the best. `accuracy`
fills them with what the model expects, as MERGE^3 does (arXiv 2502.10436,
mp-IRT), but for difficulties that are learnt from the run itself.
"""

import dataclasses

import numpy as np

_STEPS = 200
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class ItemResponse:
  """Estimates from what M members did on I items.

  Attributes:
    abilities: (M,) f64, 0 for the average member.
    difficulties: (I,) f64, 0 for the average item.
    offset: log-odds of the average member on the average item.
    values: (M, I) what they were made from.
  """

  abilities: np.ndarray
  difficulties: np.ndarray
  offset: float
  values: np.ndarray

  def expected(self) -> np.ndarray:
    """Returns (M, I) probabilities of a right answer."""
    return _sigmoid(
      self.offset + self.abilities[:, None] - self.difficulties[None]
    )

  def accuracy(self) -> np.ndarray:
    """Returns (M,) means over all items, expected ones where none was seen."""
    seen = np.isfinite(self.values)
    return np.where(seen, self.values, self.expected()).mean(axis=1)


def fit(values: np.ndarray, spread: float = 1.0) -> ItemResponse:
  """Estimates abilities and difficulties.

  Values are (M, I) 1 right, 0 wrong, NaN not asked, as `ItemLog.matrix` gives
  them; `spread` is the standard deviation of both priors.

  Raises:
    ValueError: other values, or nothing was seen.
  """
  values = np.asarray(values, np.float64)
  seen = np.isfinite(values)
  known = values[seen]
  if values.ndim != 2 or not known.size or not np.isin(known, (0, 1)).all():
    raise ValueError(
      f'values {values.shape} are not of members and items with 0, 1 and NaN, '
      'some of them 0 or 1: item-response estimates are of right and wrong.'
    )
  right = np.where(seen, values, 0.0)
  # As if one more answer were right and one more wrong.
  share = (right.sum() + 1) / (seen.sum() + 2)
  offset = float(np.log(share / (1 - share)))
  abilities, difficulties = np.zeros(len(values)), np.zeros(values.shape[1])
  penalty = 1 / spread**2
  for _ in range(_STEPS):
    moved = 0.0
    # A step of Newton's method in each of them alone, others held.
    for axis, parameters, sign in ((1, abilities, 1), (0, difficulties, -1)):
      p = _sigmoid(offset + abilities[:, None] - difficulties[None])
      gain = np.where(seen, right - p, 0.0).sum(axis=axis)
      slope = np.where(seen, p * (1 - p), 0.0).sum(axis=axis) + penalty
      step = (sign * gain - penalty * parameters) / slope
      parameters += step
      moved = max(moved, np.abs(step).max())
    if moved < _TOLERANCE:
      break
  return ItemResponse(abilities, difficulties, offset, values)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1.0 + np.tanh(0.5 * x))
