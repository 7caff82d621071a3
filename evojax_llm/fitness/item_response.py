"""The item-response model: what members can do, and what items ask of them.

A member with abilities theta (D,) is right on an item of slopes a (D,) and
difficulty b with probability sigmoid(a . theta - b), the two-parameter logistic
model (Birnbaum 1968; of several dimensions as in MERGE3, arXiv 2502.10436).
There are few members to learn items from, so that everything has a normal
prior: abilities around 0, slopes around 1 in the first dimension and 0 in the
others, difficulties around that of the average answer. Estimates are those of
the highest posterior, finite also where all answers are right; nothing is said
of an item or a member that was never seen: it is average.

Values are between 0 (wrong) and 1 (right), NaN where an item was not asked; one
in between counts as that share of a right answer.
"""

import dataclasses

import numpy as np

# Standard deviations of the priors.
_ABILITY, _SLOPE, _DIFFICULTY = 1.0, 0.5, 1.0
# Of weights of members, around that of their mean.
_WEIGHT = 1.0
# A logit beyond it is as good as certain.
_CLIP = 30.0
_STEPS, _SWEEPS, _TOLERANCE = 60, 400, 1e-7
# Of any parameter in one of Newton's steps, which may overshoot far away.
_LONGEST = 1.0


@dataclasses.dataclass(frozen=True)
class Items:
  """What I items ask: slopes (I, D) f64 and difficulties (I,) f64."""

  slopes: np.ndarray
  difficulties: np.ndarray

  def take(self, indices: np.ndarray) -> 'Items':
    """Returns those of some items."""
    return Items(self.slopes[indices], self.difficulties[indices])

  def probabilities(self, abilities: np.ndarray) -> np.ndarray:
    """Returns (M, I) probabilities of a right answer, of abilities (M, D)."""
    return _sigmoid(abilities @ self.slopes.T - self.difficulties)


def fit(
  values: np.ndarray,
  dimension: int = 1,
  start: tuple[Items, np.ndarray] | None = None,
) -> tuple[Items, np.ndarray]:
  """Estimates what I items ask, and abilities (M, D), of values (M, I).

  Items and members are estimated in turn, each by steps of Newton's method,
  until neither moves; `start` is where to begin.

  Raises:
    ValueError: values are not such, or nothing was seen.
  """
  values = np.asarray(values, np.float64)
  known = values[np.isfinite(values)]
  if values.ndim != 2 or not known.size or ((known < 0) | (known > 1)).any():
    raise ValueError(
      f'Got values {values.shape} for item-response estimates; expected those '
      'of members and items between 0 and 1, NaN where not asked, some asked.'
    )
  # As if one more answer were right and one more wrong.
  share = (known.sum() + 1) / (known.size + 2)
  middle = np.zeros(dimension + 1)
  middle[0], middle[-1] = 1.0, -np.log(share / (1 - share))
  precision = np.full(dimension + 1, _SLOPE**-2)
  precision[-1] = _DIFFICULTY**-2
  if start is None:
    parameters = np.tile(middle, (values.shape[1], 1))
    abilities = _directions(values, dimension)
  else:
    parameters = np.concatenate(
      [start[0].slopes, start[0].difficulties[:, None]], axis=1
    )
    abilities = start[1]
  for _ in range(_SWEEPS):
    # An item's parameters (a, b) weigh (theta, -1) of the members.
    design = np.concatenate([abilities, -np.ones((len(values), 1))], axis=1)
    new = _posterior(design, values.T, middle, precision, parameters, steps=1)
    items = Items(new[:, :-1], new[:, -1])
    moved = _abilities(items, values, abilities, steps=1)
    change = max(
      np.abs(moved - abilities).max(), np.abs(new - parameters).max()
    )
    parameters, abilities = new, moved
    if change < _TOLERANCE:
      break
  return items, abilities


def abilities(items: Items, values: np.ndarray) -> np.ndarray:
  """Returns the abilities (M, D) of members from values (M, I) on items."""
  begin = np.zeros((len(values), items.slopes.shape[1]))
  return _abilities(items, values, begin, _STEPS)


def mixed(items: Items, values: np.ndarray, parents: np.ndarray) -> np.ndarray:
  """Returns abilities (M, D) that are combinations of the parents' (N, D).

  The weights are those of the highest posterior around the parents' mean, from
  values (M, I) on items. MERGE3 begins at the mean and has no prior.
  """
  parents = np.asarray(parents, np.float64)
  count = len(parents)
  even = np.full(count, 1 / count)
  weights = _posterior(
    items.slopes @ parents.T,
    values,
    even,
    np.full(count, _WEIGHT**-2),
    np.tile(even, (len(values), 1)),
    _STEPS,
    items.difficulties,
  )
  return weights @ parents


def _abilities(items, values, begin, steps):
  none = np.zeros(items.slopes.shape[1])
  precision = np.full(len(none), _ABILITY**-2)
  return _posterior(
    items.slopes, values, none, precision, begin, steps, items.difficulties
  )


def _posterior(design, values, mean, precision, begin, steps, offset=0.0):
  """Coefficients (B, q) of B logistic regressions on one design (n, q).

  Of values (B, n), with a normal prior; logits are design @ coefficients -
  offset.
  """
  seen = np.isfinite(values)
  right = np.where(seen, values, 0.0)
  size = design.shape[1]
  squares = (design[:, :, None] * design[:, None]).reshape(len(design), -1)
  found = begin
  for _ in range(steps):
    p = _sigmoid(found @ design.T - offset)
    slope = np.where(seen, right - p, 0.0) @ design
    slope -= precision * (found - mean)
    curvature = np.where(seen, p * (1 - p), 0.0) @ squares
    curvature = curvature.reshape(-1, size, size) + np.diag(precision)
    step = np.linalg.solve(curvature, slope[..., None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    step *= np.minimum(1.0, _LONGEST / np.maximum(longest, _LONGEST))
    found = found + step
    if np.abs(step).max(initial=0.0) < _TOLERANCE:
      break
  return found


def _directions(values, dimension):
  """Abilities (M, D) to begin with, where all but the first differ from 0.

  A dimension in which all members are alike would stay so.
  """
  begin = np.zeros((len(values), dimension))
  if dimension == 1:
    return begin
  seen = np.isfinite(values)
  rest = np.where(seen, values, 0.0)
  for axis in (0, 1):
    count = np.maximum(1, seen.sum(axis=axis, keepdims=True))
    rest = np.where(seen, rest - rest.sum(axis=axis, keepdims=True) / count, 0)
  left = np.linalg.svd(rest, full_matrices=False)[0][:, : dimension - 1]
  signs = np.sign(np.take_along_axis(left, np.abs(left).argmax(0)[None], 0))
  begin[:, 1 : 1 + left.shape[1]] = left * signs * np.sqrt(len(values))
  return begin


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1.0 + np.tanh(0.5 * np.clip(x, -_CLIP, _CLIP)))
