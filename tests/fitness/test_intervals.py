import pytest

from evojax_llm.fitness.intervals import mean_interval
from evojax_llm.fitness.intervals import standard_error
from evojax_llm.fitness.intervals import wilson_interval


@pytest.mark.parametrize(
  ('correct', 'total', 'low', 'high'),
  [
    # Newcombe 1998 (Stat. Med. 17:857), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (20, 20, 0.8389, 1.0),
  ],
)
def test_wilson_interval_agrees_with_published_values(
  correct, total, low, high
):
  found = wilson_interval(correct, total)
  assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_mirrors_and_narrows():
  for correct, total in ((3, 10), (0, 7), (50, 200)):
    low, high = wilson_interval(correct, total)
    other = wilson_interval(total - correct, total)
    assert (1 - high, 1 - low) == pytest.approx(other)
    assert 0 <= low <= correct / total <= high <= 1
    wide = wilson_interval(10 * correct, 10 * total)
    assert wide[1] - wide[0] < high - low


def test_standard_error():
  assert standard_error(100) == pytest.approx(0.05)


@pytest.mark.parametrize('arguments', [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(arguments):
  with pytest.raises(ValueError, match='at least one|impossible'):
    wilson_interval(*arguments)


def test_mean_interval():
  low, high = mean_interval([0.0, 1.0, 1.0, 2.0])
  # A standard deviation of sqrt(2 / 3) over 4 items.
  half = 1.959963984540054 * (2 / 3 / 4) ** 0.5
  assert (low, high) == pytest.approx((1 - half, 1 + half))
  assert mean_interval([3.0, 3.0]) == (3.0, 3.0)
  assert mean_interval([3.0]) is None
