"""Races on made-up scores, whose outcome is known."""

import jax
import numpy as np
import pytest

from evojax_llm.fitness import racing

KEY = jax.random.key(7)
SIZES = (80, 40)
WEIGHTS = np.array([0.75, 0.25])


def lengths():
  rng = np.random.default_rng(0)
  return [rng.integers(5, 30, size).tolist() for size in SIZES]


def results(levels, seed=0):
  """Right and wrong of members of these accuracies, paired by difficulty."""
  rng = np.random.default_rng(seed)
  return [
    (rng.random(size) < np.asarray(levels)[:, None]).astype(float)
    for size in SIZES
  ]


def run(values, rules, generation=0, reasons=None, asked=None):
  blocks = racing.draw_blocks(lengths(), 2 ** (rules.rounds - 1), KEY)
  members = len(values[0])

  def score(running, items):
    if asked is not None:
      asked.append((running.tolist(), items))
    found = [v[np.ix_(running, i)] for v, i in zip(values, items, strict=True)]
    return found, [(reasons or {}).get(m) for m in running]

  return racing.race(score, members, blocks, WEIGHTS, rules, KEY, generation)


def whole(values):
  return np.stack([v.mean(axis=1) for v in values], axis=1) @ WEIGHTS


def test_blocks_hold_every_item_once_and_all_lengths():
  blocks = racing.draw_blocks(lengths(), 4, KEY)
  for k, size in enumerate(SIZES):
    assert sorted(sum((b[k] for b in blocks), [])) == list(range(size))
    assert {len(block[k]) for block in blocks} == {size // 4}
    means = [np.mean([lengths()[k][i] for i in b[k]]) for b in blocks]
    assert np.ptp(means) < 2
  again = racing.draw_blocks(lengths(), 4, KEY)
  assert blocks == again != racing.draw_blocks(lengths(), 4, jax.random.key(8))
  few = racing.draw_blocks([[3, 3], [4] * 9], 4, KEY)
  assert len(few) == 2 and all(all(block) for block in few)


def test_nobody_is_stopped_where_nobody_can_be():
  values = results([0.5] * 6)
  for rules in (
    racing.Racing('paired', z=1e9),
    racing.Racing('halving', keep=6),
    racing.Racing('halving', rounds=1),
  ):
    raced = run(values, rules)
    np.testing.assert_allclose(raced.fitness, whole(values), rtol=1e-6)
    assert raced.saved == 0 and (raced.seen == sum(SIZES)).all()


@pytest.mark.parametrize('rule', racing.RULES)
def test_the_worse_are_stopped_and_the_best_wins(rule):
  values = results([0.9, 0.1, 0.15, 0.85, 0.2, 0.1, 0.12, 0.05])
  raced = run(values, racing.Racing(rule, rounds=3))
  assert raced.saved > 0.3 * len(values[0]) * sum(SIZES)
  best = int(np.argmax(whole(values)))
  assert np.argmax(raced.fitness) == best
  finished = raced.seen == sum(SIZES)
  assert finished[best]
  np.testing.assert_allclose(
    raced.fitness[finished], whole(values)[finished], rtol=1e-6
  )
  assert raced.fitness[~finished].max() <= raced.fitness[finished].min()


def test_halving_goes_by_halves():
  asked = []
  run(results(np.linspace(0, 1, 9)), racing.Racing('halving'), asked=asked)
  assert [len(members) for members, _ in asked] == [9, 5, 3, 3]


def test_keep_members_see_everything():
  values = results([0.9, 0.5, 0.4, 0.3, 0.02, 0.01])
  raced = run(values, racing.Racing('halving', rounds=4, keep=3))
  assert (raced.seen == sum(SIZES)).sum() == 3


def test_order_of_members_and_process_decide_nothing():
  values = results(np.linspace(0.1, 0.9, 7))
  order = np.array([3, 1, 6, 0, 2, 5, 4])
  rules = racing.Racing('paired')
  one = run(values, rules, generation=5)
  other = run([v[order] for v in values], rules, generation=5)
  np.testing.assert_array_equal(one.fitness[order], other.fitness)
  np.testing.assert_array_equal(one.seen[order], other.seen)
  first = []
  for generation in range(9):
    asked = []
    run(values, rules, generation=generation, asked=asked)
    first.append(str(asked[0][1]))
  assert len(set(first)) > 1


def test_a_failed_member_is_out_at_once():
  values = results([0.9, 0.8, 0.7])
  asked = []
  raced = run(
    values,
    racing.Racing('paired', z=1e9),
    reasons={0: 'no'},
    asked=asked,
  )
  assert np.isnan(raced.fitness[0]) and np.isnan(raced.task_scores[0]).all()
  assert raced.reasons == ['no', None, None]
  assert asked[1][0] == [1, 2]
  raced = run(values, racing.Racing(), reasons=dict.fromkeys(range(3), 'no'))
  assert np.isnan(raced.fitness).all()


def test_refuses_what_cannot_be():
  with pytest.raises(ValueError, match='expected one of'):
    racing.Racing('sprint')
  with pytest.raises(ValueError, match='at least 1'):
    racing.Racing(keep=0)


def test_the_luck_of_few_items_outranks_no_member_that_was_scored_whole():
  rules = racing.Racing('halving', rounds=2)
  first = run(results([0.5] * 2), rules, asked=(asked := [])) and asked[0][1]
  values = [np.zeros((2, size)) for size in SIZES]
  for k, items in enumerate(first):
    values[k][0, items] = 1.0
    values[k][1, items[1:]] = 1.0
  raced = run(values, rules)
  assert raced.seen[1] < raced.seen[0] == sum(SIZES)
  assert whole(values)[0] == pytest.approx(0.5)
  np.testing.assert_allclose(raced.fitness, [0.5, 0.5])
