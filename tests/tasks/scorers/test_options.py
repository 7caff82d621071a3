"""All members and items at once are scored as each answer alone would be."""

import math

import numpy as np
import pytest

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.choice_text import AbstainQA
from evojax_llm.tasks.scorers.choice_text import WeightedF1
from evojax_llm.tasks.scorers.options import MultipleChoice
from evojax_llm.tasks.scorers.options import OptionTable
from evojax_llm.tasks.scorers.options import Perplexity
from evojax_llm.tasks.task import Item

MEMBERS = 7
KEYS = 'ABCDEFGHIJKLMNOP'
# Of two to sixteen options, of texts of all lengths.
ITEMS = tuple(
  Item(
    str(i),
    'q',
    KEYS[i % (2 + i % 15)],
    tuple((k, 'é' * (1 + j % 4) + 'x' * i) for j, k in enumerate(KEYS))[
      : 2 + i % 15
    ],
  )
  for i in range(40)
)


def likelihoods(rows, seed=0):
  """Values with ties, NaN and infinities of all rows (M, sum of rows)."""
  rng = np.random.default_rng(seed)
  values = np.round(-3 * rng.random((MEMBERS, sum(rows))), 1)
  odd = rng.random(values.shape)
  values[odd < 0.02] = np.nan
  values[(odd > 0.02) & (odd < 0.04)] = np.inf
  values[odd > 0.9] = -np.inf
  values[0] = -np.inf
  return values


def first_of_the_largest(values):
  if any(math.isnan(v) or v == math.inf for v in values):
    return None
  best = max(range(len(values)), key=values.__getitem__)
  return None if values[best] == -math.inf else best


def plain_choice(item, values, tokens, norm):
  sizes = {
    'none': [1] * len(values),
    'characters': [len(t) for _, t in item.choices],
    'bytes': [len(t.encode()) for _, t in item.choices],
    'tokens': tokens,
  }[norm]
  best = first_of_the_largest(
    [v / n for v, n in zip(values, sizes, strict=True)]
  )
  key = None if best is None else item.choices[best][0]
  return key, float(key == item.answer)


def plain_abstain(item, values):
  n = len(item.choices)
  best = first_of_the_largest(values[:n])
  if best is None or values[n + 2 * best + 1] > values[n + 2 * best]:
    return None, 0.0
  key = item.choices[best][0]
  return key, 1.0 if key == item.answer else -1.0


def check(scorer, plain, per_option):
  """`score_options` against `plain`, bit by bit."""
  counts = [len(item.choices) * per_option for item in ITEMS]
  tokens = [tuple(1 + (i + j) % 3 for j in range(n)) for i, n in
            enumerate(counts)]  # fmt: skip
  loglik = likelihoods(counts)
  found = scorer.score_options(OptionTable(ITEMS, tokens), loglik)
  assert found.values.shape == found.weights.shape == (MEMBERS, len(ITEMS))
  starts = np.cumsum([0, *counts]).tolist()
  seen = set()
  for m, row in enumerate(loglik.tolist()):
    for i, item in enumerate(ITEMS):
      values = row[starts[i] : starts[i + 1]]
      verdict = found.member(m).item(i)
      assert (verdict.prediction, verdict.value) == plain(
        item, values, tokens[i]
      )
      answer = Answer(loglik=tuple(values), tokens=tokens[i])
      assert scorer.score(item, answer) == verdict
      seen.add((verdict.prediction is None, verdict.value))
  assert len(seen) > 2, 'the cases hold no misses, hits and gaps'


@pytest.mark.parametrize('norm', ['none', 'characters', 'bytes', 'tokens'])
def test_options_of_all_members(norm):
  check(MultipleChoice(norm), lambda i, v, t: plain_choice(i, v, t, norm), 1)


def test_labels_of_all_members():
  check(WeightedF1(), lambda i, v, t: plain_choice(i, v, t, 'none'), 1)


def test_both_passes_of_all_members():
  check(AbstainQA(), lambda i, v, _: plain_abstain(i, v), 3)


def test_gold_answers_of_all_members():
  items = [Item('0', '', 'ab cd'), Item('1', '', 'é')]
  table = OptionTable(items, [(3,), (7,)])
  loglik = np.array([[-6.0, -7.0], [-1.0, 0.0]])
  for unit, sizes in (('token', [3, 7]), ('byte', [5, 2]), ('word', [2, 1])):
    found = Perplexity(unit).score_options(table, loglik)
    np.testing.assert_array_equal(found.values, -loglik / np.array(sizes))
    np.testing.assert_array_equal(found.weights, [sizes, sizes])
    assert found.predictions.tolist() == [[None, None]] * 2


def test_windows_of_a_gold_answer_are_one_text():
  items = [Item('0', '', 'ab cd'), Item('1', '', 'é')]
  table = OptionTable(items, [(3, 3, 1), (7,)])
  loglik = np.array([[-6.0, -1.0, -0.5, -7.0]])
  found = Perplexity().score_options(table, loglik)
  np.testing.assert_array_equal(found.values, [[7.5 / 7, 1.0]])
  np.testing.assert_array_equal(found.weights, [[7, 7]])
  assert Perplexity().labels(items[0], 3) == ['gold', '1', '2']


def test_a_scorer_of_ones_own_judges_one_answer_at_a_time():
  class Second(Scorer):
    def score(self, item, answer):
      return MultipleChoice().score(item, Answer(loglik=answer.loglik[::-1]))

  table = OptionTable(ITEMS[:2], [(1, 1), (1, 1, 1)])
  loglik = np.array([[-1.0, -2.0, -3.0, -1.0, -2.0], [-2.0, -1.0, -1, -2, -3]])
  found = Second().score_options(table, loglik)
  assert found.predictions.tolist() == [['B', 'B'], ['A', 'C']]


def test_nobody_was_asked():
  table = OptionTable(ITEMS, [(1,) * len(item.choices) for item in ITEMS])
  width = sum(len(item.choices) for item in ITEMS)
  found = MultipleChoice().score_options(table, np.zeros((0, width)))
  assert found.values.shape == (0, len(ITEMS))
