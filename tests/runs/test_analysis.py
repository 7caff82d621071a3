"""New skills, origins and paths, on records made by hand."""

import numpy as np
import pytest

from evojax_llm.fitness.item_log import GenerationItems
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.runs import analysis


def test_emergence_counts_what_nobody_could_and_what_was_forgotten():
  experts = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
  found = analysis.emergence(experts, 0, np.array([0, 1, 0, 1, 0]))
  assert found == dict(items=5, unsolved=2, emerged=1, best_solved=2, lost=1)


def row(id_, generation, parents=(), fitness=0.5, **more):
  return {
    'id': id_,
    'generation': generation,
    'parents': list(parents),
    'fitness': fitness,
    **more,
  }


def test_origin_follows_first_parents_and_ranks_all_experts():
  rows = [
    row(0, 0, fitness=0.6, experts=['a']),
    row(1, 0, fitness=0.4, experts=['b']),
    row(2, 0, fitness=0.4, experts=['c']),
    row(3, 0, fitness=None),
    row(4, 1, [2, 0]),
    row(5, 2, [4, 4]),
  ]
  found = analysis.origin(5, rows, {'a': 0.3, 'b': 0.9, 'c': 0.6})
  assert found.path == [2, 4, 5]
  assert (found.rank, found.of) == (2, 3)
  assert (found.experts, found.expert_ranks) == (['c', 'a'], [2, 3])
  assert analysis.origin(3, rows, {}).rank == 4


def test_who_was_made_of_nobody_has_no_origin():
  rows = [row(0, 0, fitness=0.6, experts=['a']), row(1, 1), row(2, 2)]
  found = analysis.origin(2, rows, {'a': 0.3})
  assert (found.path, found.rank, found.of) == ([2], None, 1)
  assert not found.experts


def generation(number, ids, values, names):
  values = np.asarray(values, np.float32)
  task = TaskItems(
    task='t',
    metric='accuracy',
    maximise=True,
    binary=True,
    ids=list(names),
    values=values,
    predictions=np.full(values.shape, None),
    asked=~np.isnan(values),
  )
  return GenerationItems(number, np.asarray(ids, np.int32), [task])


def test_trajectory_keeps_distances_on_the_plane():
  # Members that differ on two items alone lie on a plane as they are.
  log = [
    generation(0, [0, 1], [[0, 0, 1], [1, 0, 1]], 'xyz'),
    generation(1, [2, 3], [[0, 1, 1], [0, 0, 1]], 'xyz'),
    generation(2, [4], [[0, 0, 0]], 'uvw'),
  ]
  found = analysis.trajectory(log)
  assert found.ids == [0, 1, 2, 3]
  assert found.generations.tolist() == [0, 0, 1, 1]
  p = found.points
  np.testing.assert_allclose(p[0], p[3], atol=1e-9)
  one, two = (np.linalg.norm(p[i] - p[0]) for i in (1, 2))
  assert one == pytest.approx(two)
  assert np.linalg.norm(p[1] - p[2]) == pytest.approx(np.sqrt(2) * one)
  assert found.explained.sum() == pytest.approx(1)


def test_an_item_that_was_not_asked_is_in_the_middle():
  nan = np.nan
  log = [generation(0, [0, 1, 2], [[0, 0], [1, nan], [nan, 1]], 'xy')]
  assert np.isfinite(analysis.trajectory(log).points).all()


def test_two_members_are_no_plane():
  with pytest.raises(ValueError, match='expected three'):
    analysis.trajectory([generation(0, [0, 1], [[0], [1]], 'x')])
