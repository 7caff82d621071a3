import numpy as np
import pytest

from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.fitness.intervals import mean_interval
from evojax_llm.fitness.intervals import wilson_interval
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.fitness.item_log import TaskItems


def task_scores(values, predictions, ids, binary=True, name='t'):
  return TaskItems(
    task=name,
    metric='accuracy' if binary else 'perplexity',
    maximise=binary,
    binary=binary,
    ids=ids,
    values=np.asarray(values, np.float32),
    predictions=predictions,
    loglikelihoods=None,
  )


def scores(*tasks):
  members = len(tasks[0].values)
  nothing = np.zeros((members, len(tasks)), np.float32)
  return Evaluation(nothing[:, 0], nothing, list(tasks), [None] * members)


def example(members, items=11, seed=0):
  rng = np.random.default_rng(seed)
  ids = [f'item {i}' for i in range(items)]
  right = rng.integers(0, 2, (members, items))
  said = [
    [('A', 'été', None)[v + 1 - i % 2] for i, v in enumerate(row)]
    for row in right
  ]
  real = rng.normal(size=(members, items))
  return scores(
    task_scores(right, said, ids),
    task_scores(real, [[None] * items] * members, ids, False, 'u'),
  )  # fmt: skip


def test_what_is_written_is_read(tmp_path):
  log = ItemLog(tmp_path / 'items')
  given = example(5)
  log.append(0, [3, 1, 4, 2, 9], given)
  (found,) = log.read()
  assert found.number == 0 and found.members.tolist() == [3, 1, 4, 2, 9]
  for result, task in zip(found.tasks, given.tasks, strict=True):
    assert (result.task, result.metric) == (task.task, task.metric)
    assert (result.maximise, result.binary) == (task.maximise, task.binary)
    assert result.ids == task.ids
    np.testing.assert_array_equal(result.values, task.values)
    assert result.predictions.tolist() == task.predictions


def test_a_generation_that_scored_nobody(tmp_path):
  log = ItemLog(tmp_path)
  log.append(4, [], scores(task_scores(np.zeros((0, 3)), [], list('abc'))))
  (found,) = log.read()
  assert found.tasks[0].values.shape == (0, 3)


def test_a_run_that_goes_on_has_no_duplicates(tmp_path):
  log = ItemLog(tmp_path)
  for number in range(4):
    log.append(number, [2 * number, 2 * number + 1], example(2, seed=number))
  # What a process that was killed while writing leaves.
  (tmp_path / '00004.part').write_bytes(b'PK')
  log.rewind(1)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    '00000.npz',
    '00001.npz',
  ]
  log.append(2, [4, 5], example(2, seed=2))
  log.append(2, [4, 5], example(2, seed=2))
  ids, items, values = log.matrix('t')
  assert ids.tolist() == [0, 1, 2, 3, 4, 5] and len(items) == 11
  expected = [example(2, seed=n).tasks[0].values for n in range(3)]
  np.testing.assert_array_equal(values, np.concatenate(expected))
  log.rewind(-1)
  assert not list(log.read())


def test_members_on_other_items_have_gaps(tmp_path):
  log = ItemLog(tmp_path)
  log.append(0, [0], scores(task_scores([[1, 0]], [['A', 'B']], ['x', 'y'])))
  log.append(1, [1], scores(task_scores([[1]], [['A']], ['z'])))
  ids, items, values = log.matrix('t')
  assert (ids.tolist(), items) == ([0, 1], ['x', 'y', 'z'])
  np.testing.assert_array_equal(values, [[1, 0, np.nan], [np.nan, np.nan, 1]])


def test_items_that_a_member_was_not_asked_are_gaps(tmp_path):
  log = ItemLog(tmp_path)
  given = example(4)
  asked = np.random.default_rng(1).random((4, 11)) < 0.6
  asked[0], asked[3] = True, False
  for result in given.tasks:
    result.asked = asked
    result.values = np.where(asked, result.values, np.nan)
    result.predictions = [
      [said if known else None for said, known in zip(*row, strict=True)]
      for row in zip(result.predictions, asked, strict=True)
    ]
  log.append(0, [5, 6, 7, 8], given)
  (found,) = log.read()
  for result, task in zip(found.tasks, given.tasks, strict=True):
    np.testing.assert_array_equal(result.asked, asked)
    np.testing.assert_array_equal(result.values, task.values)
    assert result.predictions.tolist() == task.predictions
  ids, _, values = log.matrix('t')
  assert ids.tolist() == [5, 6, 7, 8]
  np.testing.assert_array_equal(values, given.tasks[0].values)
  # Of whom little is known the interval is wide, and of whom nothing none.
  right, real = (result.intervals() for result in found.tasks)
  seen = given.tasks[0].values[1, asked[1]]
  assert right[1] == wilson_interval(int(seen.sum()), len(seen))
  assert right[3] is real[3] is None
  assert real[0] == mean_interval(given.tasks[1].values[0])


def test_a_member_that_was_asked_more_later_has_both(tmp_path):
  log = ItemLog(tmp_path)
  for number, asked in enumerate(([[True, False]], [[False, True]])):
    part = scores(task_scores([[1, 1]], [['A', 'B']], ['x', 'y']))
    part.tasks[0].asked = np.array(asked)
    log.append(number, [0], part)
  np.testing.assert_array_equal(log.matrix('t')[2], [[1, 1]])


def test_bits_are_small(tmp_path):
  log = ItemLog(tmp_path)
  rng = np.random.default_rng(0)
  right = rng.integers(0, 2, (64, 1000))
  ids = [str(i) for i in range(1000)]
  said = [[None] * 1000] * 64
  log.append(0, list(range(64)), scores(task_scores(right, said, ids)))
  # 8000 bytes of bits; ids and zip headers are the rest.
  assert (tmp_path / '00000.npz').stat().st_size < 20_000


def test_mistakes_are_told(tmp_path):
  log = ItemLog(tmp_path)
  with pytest.raises(ValueError, match='3 members, but scores of 2'):
    log.append(0, [1, 2, 3], example(2))
  (tmp_path / '00007.npz').write_bytes(b'nothing')
  with pytest.raises(ValueError, match=r'00007.npz is damaged'):
    list(log.read())


def test_any_bit_may_change(tmp_path):
  log = ItemLog(tmp_path)
  log.append(0, [1, 2], example(2))
  path = tmp_path / '00000.npz'
  whole, refused = path.read_bytes(), 0
  for position in range(0, len(whole), 7):
    path.write_bytes(
      whole[:position]
      + bytes([whole[position] ^ 1 << position % 8])
      + whole[position + 1 :]
    )
    try:
      list(log.read())
    except ValueError as error:
      assert '00000.npz is damaged' in str(error)
      refused += 1
  assert refused > 50
