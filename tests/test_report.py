"""The final table and the curve."""

import numpy as np
import pytest

from evojax_llm import plot
from evojax_llm import report
from evojax_llm.fitness.intervals import wilson_interval
from evojax_llm.fitness.scores import Scores
from evojax_llm.fitness.scores import TaskScores


def make_scores(*counts, fails=False):
  """Scores of one member with (correct, items) on each task."""
  tasks = [
    TaskScores(
      task=f'task{k}',
      ids=[str(i) for i in range(n)],
      correct=np.arange(n)[None] < c,
      predictions=[[None] * n],
      loglikelihoods=None,
    )
    for k, (c, n) in enumerate(counts)
  ]
  share = np.array([[c / n for c, n in counts]], np.float32)
  return Scores(
    fitness=share.mean(axis=1) * (np.nan if fails else 1),
    task_scores=share * (np.nan if fails else 1),
    tasks=tasks,
    reasons=['logits are not finite' if fails else None],
  )


def test_intervals_are_wilson_per_task_and_pooled_for_the_mean():
  scores = make_scores((30, 40), (10, 40))
  row = report.row('base', '', scores, scores, [0.5, 0.5], 1)
  task = row['test']['tasks']['task0']
  assert task['accuracy'] == 0.75 and task['items'] == 40
  low, high = wilson_interval(30, 40)
  assert (task['low'], task['high']) == pytest.approx((low, high), abs=1e-5)
  mean = row['test']['mean']
  assert mean['accuracy'] == 0.5
  expected = wilson_interval(40, 80)
  assert (mean['low'], mean['high']) == pytest.approx(expected, abs=1e-5)


def test_the_mean_follows_the_weights_of_the_fitness():
  scores = make_scores((40, 40), (0, 40))
  even = report.row('x', '', scores, None, [0.5, 0.5], 1)['dev']['mean']
  tilted = report.row('x', '', scores, None, [0.9, 0.1], 1)['dev']['mean']
  assert even['accuracy'] == 0.5 and tilted['accuracy'] == 0.9
  # Nearly all of the weight on 40 items says less than 80 items do.
  assert tilted['high'] - tilted['low'] > 0.15


def test_the_table_lists_every_task_and_failures():
  good, bad = (
    make_scores((3, 4), (1, 4)),
    make_scores((0, 4), (0, 4), fails=True),
  )
  rows = [
    report.row('base', '', good, good, [0.5, 0.5], 1),
    report.row('evolved', 'member 7', bad, bad, [0.5, 0.5], 210),
  ]
  lines = report.table(rows).splitlines()
  assert len(lines) == 4
  assert len({len(line) for line in lines}) == 1
  assert 'task0' in lines[0] and 'task1' in lines[0]
  assert '75.0 / 75.0' in lines[2] and '50.0 [' in lines[2]
  assert 'evolved (member 7)' in lines[3] and 'failed' in lines[3]
  assert '210' in lines[3]


def test_markdown_holds_the_table_and_the_counts():
  scores = make_scores((3, 4))
  summary = {
    'name': 'a run',
    'rows': [report.row('base', '', scores, scores, [1.0], 1)],
    'best': {'id': 12, 'generation': 3},
    'generations': 5,
    'evaluations': 99,
    'failed': 0,
  }
  text = report.markdown(summary)
  assert text.startswith('# a run\n')
  assert report.table(summary['rows']) in text
  assert 'member 12 of generation 3' in text and '99 evaluations' in text


def test_the_curve_is_a_picture(tmp_path):
  metrics = [
    {'generation': g, 'best_fitness': 0.5 + g / 10, 'mean_fitness': m}
    for g, m in enumerate([0.4, None, 0.5])
  ]
  plot.curve(tmp_path / 'curve.png', metrics, {'base': 0.3, 'best expert': 0.6})
  assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
  assert [p.name for p in tmp_path.iterdir()] == ['curve.png']
