"""The final table and the curve."""

import numpy as np
import pytest

from evojax_llm.fitness.intervals import wilson_interval
from evojax_llm.fitness.objectives import make_objective
from evojax_llm.runs import plots
from evojax_llm.runs import report
from evojax_llm.tasks.scorers.multiple_choice import MultipleChoice


def accuracies(*counts, weights=None, fails=False):
  """Of one member with (correct, items) on each task."""
  metrics = [MultipleChoice()] * len(counts)
  weights = weights or [1 / len(counts)] * len(counts)
  return report.summarise(
    [f'task{k}' for k in range(len(counts))],
    np.array([np.nan if fails else c / n for c, n in counts], np.float32),
    [n for _, n in counts],
    metrics,
    make_objective('weighted_mean', np.asarray(weights, np.float32), metrics),
  )


def row(name, dev, test, detail='', evaluations=1):
  return {
    'name': name,
    'detail': detail,
    'evaluations': evaluations,
    'dev': dev,
    'test': test,
  }


def test_intervals_are_wilson_per_task_and_pooled_for_the_mean():
  test = accuracies((30, 40), (10, 40))
  task = test['tasks']['task0']
  assert task['score'] == 0.75 and task['items'] == 40
  low, high = wilson_interval(30, 40)
  assert (task['low'], task['high']) == pytest.approx((low, high), abs=1e-5)
  mean = test['fitness']
  assert mean['score'] == 0.5
  expected = wilson_interval(40, 80)
  assert (mean['low'], mean['high']) == pytest.approx(expected, abs=1e-5)


def test_the_mean_follows_the_weights_of_the_fitness():
  even = accuracies((40, 40), (0, 40))['fitness']
  tilted = accuracies((40, 40), (0, 40), weights=[0.9, 0.1])['fitness']
  assert even['score'] == 0.5 and tilted['score'] == 0.9
  # Nearly all of the weight on 40 items says less than 80 items do.
  assert tilted['high'] - tilted['low'] > 0.15


def test_the_table_lists_every_task_and_failures():
  good = accuracies((3, 4), (1, 4))
  bad = accuracies((0, 4), (0, 4), fails=True)
  rows = [
    row('base', good, good),
    row('evolved', bad, bad, 'member 7', 210),
  ]
  means, tasks = report.table(rows).split('\n\n')
  for lines in (means.splitlines(), tasks.splitlines()):
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
  low, high = wilson_interval(4, 8)
  assert f'50.0 [{100 * low:.1f}, {100 * high:.1f}]' in means.splitlines()[2]
  assert 'evolved (member 7)' in means and '210' in means
  assert 'task0' in tasks.splitlines()[0] and 'task1' in tasks.splitlines()[0]
  assert '75.0 / 75.0' in tasks.splitlines()[2]
  assert 'failed' in means and 'failed / failed' in tasks


def test_markdown_holds_the_table_and_the_counts():
  scores = accuracies((3, 4))
  summary = {
    'name': 'a run',
    'rows': [row('base', scores, scores)],
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
  plots.curve(
    tmp_path / 'curve.png', metrics, {'base': 0.3, 'best expert': 0.6}
  )
  assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
  assert [p.name for p in tmp_path.iterdir()] == ['curve.png']
