"""Uncertainty of a score measured on a few items."""

from collections.abc import Sequence
import math

from scipy import special

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(correct: float, total: int) -> tuple[float, float]:
  """Returns the 95 % interval of a proportion (Wilson 1927, JASA 22:209).

  Unlike the normal approximation it stays within [0, 1] and does not collapse
  to a point at 0 or `total` correct.

  Raises:
    ValueError: no trials, or successes outside [0, total].
  """
  if total < 1:
    raise ValueError(f'An interval needs at least one item, got {total}.')
  if not 0 <= correct <= total:
    raise ValueError(f'{correct} correct of {total} items is impossible.')
  share = correct / total
  weight = _Z95 * _Z95 / total
  centre = (share + weight / 2) / (1 + weight)
  half = math.sqrt(share * (1 - share) * weight + weight * weight / 4)
  half /= 1 + weight
  # The limits are exact at the ends; rounding must not move them inwards.
  low = 0.0 if correct == 0 else max(0.0, centre - half)
  high = 1.0 if correct == total else min(1.0, centre + half)
  return low, high


def mean_interval(
  values: Sequence[float], z: float = _Z95
) -> tuple[float, float] | None:
  """Returns the normal interval of a mean; None for fewer than two values."""
  count = len(values)
  if count < 2:
    return None
  mean = math.fsum(map(float, values)) / count
  squares = math.fsum((float(value) - mean) ** 2 for value in values)
  half = z * math.sqrt(squares / (count - 1) / count)
  return mean - half, mean + half


def of_difference(
  first: Sequence[float], second: Sequence[float]
) -> tuple[float, float]:
  """Returns the interval of a difference of two independent scores.

  Both are a score, and the low and high end of its interval (Newcombe 1998,
  Statist. Med. 17:873, method 10, where the intervals are Wilson's).
  """
  (one, low, high), (other, lower, higher) = first, second
  return (
    one - other - math.hypot(one - low, higher - other),
    one - other + math.hypot(high - one, other - lower),
  )


def t95(freedom: int) -> float:
  """Returns the two-sided 95 % quantile of Student's t with this freedom."""
  return float(special.stdtrit(freedom, 0.975))


def standard_error(total: int) -> float:
  """Returns the standard error of a proportion at its largest, a half."""
  return math.sqrt(0.25 / total)
