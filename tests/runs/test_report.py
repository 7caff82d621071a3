"""The final table and the curve."""

import types

import numpy as np
import pytest

from evojax_llm import pocket
from evojax_llm.fitness.intervals import wilson_interval
from evojax_llm.fitness.objectives import make_objective
from evojax_llm.runs import final_table
from evojax_llm.runs import plots
from evojax_llm.runs import report
from evojax_llm.runs import summary_page
from evojax_llm.tasks.scorers.options import MultipleChoice
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task_files import load_task


def accuracies(*counts, weights=None, fails=False):
  """Of one member with (correct, items) on each task."""
  scorers = [MultipleChoice()] * len(counts)
  weights = np.asarray(weights or [1 / len(counts)] * len(counts), np.float32)
  evaluator = types.SimpleNamespace(
    tasks=[
      types.SimpleNamespace(name=f'task{k}', scorer=scorer)
      for k, scorer in enumerate(scorers)
    ],
    items=lambda split: [range(n) for _, n in counts],
    objective=make_objective('weighted_mean', weights, scorers),
  )
  scores = [np.nan if fails else c / n for c, n in counts]
  return report.of_split(evaluator, 'dev', np.array(scores, np.float32))


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


def test_markdown_holds_the_table_the_counts_and_the_winner():
  scores = accuracies((3, 4))
  rows = [row('base', scores, scores), row('mine', scores, scores)]
  summary = {
    'name': 'a run',
    'rows': rows,
    'better': [],
    'examples': {'task0': {'title': '', 'question': 'q', 'answer': 'a'}},
    'ensembles': {},
    'search': {
      'strategy': 'genome',
      'population': 7,
      'changed': {'sigma': 0.3},
      'space': 'gates',
      'experts': ['one', 'two'],
    },
    'best': {
      'id': 12,
      'generation': 3,
      'operator': 'crossover',
      'parents': [4, 7],
      'recipe': {'rank': 8, 'weights': {'one': 0.123456, 'two': None}},
    },
    'generations': 5,
    'evaluations': 99,
    'failed': 0,
  }
  text = summary_page.markdown(summary, 'runs/x')
  assert text.startswith(
    '# a run: genome, population 7, 99 evaluations (baselines not counted)\n'
  )
  assert report.table(rows) in text
  for words in (
    'best of 5 generations, made in generation 3 by crossover of 4 and 7',
    'with sigma 0.3',
    '\n\nrank 8\n\n|     | weights |',
    '| one |  0.1235 |',
    '- task0: accuracy; `q` -> `a`',
    '- base: the model as it was given',
    'The band holds',
  ):
    assert words in text, words


@pytest.mark.parametrize(
  'right, expected',
  [
    # Correct of 100 for two plain rows, the vote of the experts, and evolved.
    ((99, 90, 95, 85), [('scaled average', '14.0 points [6.8, 22.3]: ')]),
    ((86, 80, 85, 85), [('scaled average', '1.0 points [-8.9, 10.9], which')]),
    ((84, 90, 95, 85), [('soup', '5.0'), ('ensemble of experts', '10.0')]),
    ((85, 80, 85, 85), []),
  ],
)
def test_a_search_that_loses_to_a_plain_row_says_so(right, expected):
  names = ('scaled average', 'soup', 'ensemble of experts', 'evolved')
  rows = []
  for name, correct in zip(names, right, strict=True):
    scores = accuracies((correct, 100))
    rows.append(row(name, scores, scores))
  found = summary_page.better(rows)
  lines = summary_page.better_lines({'rows': rows, 'better': found}, 'runs/x')
  for line, (name, words) in zip(lines, expected, strict=True):
    assert line.startswith(
      f'`{name}` is better than the evolved member on dev by {words}'
    )
    assert f'--run=runs/x --row="{name}" --out=' in line


def test_a_failed_member_has_lost_to_nothing():
  good, bad = accuracies((3, 4)), accuracies((0, 4), fails=True)
  assert summary_page.better([row('base', good, good)]) == []
  assert (
    summary_page.better([row('base', good, good), row('evolved', bad, bad)])
    == []
  )


def test_one_value_is_shown_alike_wherever_it_comes_from():
  for score in (np.float32(0.6375), 0.6375, 51 / 80):
    assert report.number(score, percent=True, unit=' %') == '63.7 %'
  assert report.number(0.6375, percent=False, unit=' %') == '0.6375'


def test_an_example_is_one_short_line():
  item = Item('0', 'Which\none? ' + 'x' * 90, 'A', (('A', 'this'), ('B', 'no')))
  found = summary_page.example(Task('sor', 'multiple_choice', (item,)))
  question = found.pop('question')
  assert question.startswith('Which one? x') and len(question) == 60
  assert found == {'title': '', 'answer': 'this'}


def test_every_pocket_task_has_a_title():
  for name in pocket.task_names():
    assert pocket.title(name)
  task = load_task(pocket.task_file('sor.swp'))
  assert summary_page.example(task)['title'] == (
    'sort the characters of a word, then swap neighbouring characters'
  )


def test_the_best_row_is_on_the_picture_whatever_it_is():
  for best in ('average', 'ensemble of experts', 'evolved', 'soup'):
    rows = []
    for name in ('base', 'average', 'ensemble of experts', 'evolved', 'soup'):
      scores = accuracies((4 if name == best else 2, 4))
      rows.append(row(name, scores, scores))
    drawn = final_table.levels(rows)
    always = {'base', 'ensemble of experts', 'soup'}
    assert drawn.keys() == always | ({best} - {'evolved'})


def test_the_curve_is_a_picture(tmp_path):
  metrics = [
    {'generation': g, 'best_fitness': 0.5 + g / 10, 'mean_fitness': m}
    for g, m in enumerate([0.4, None, 0.5])
  ]
  middle = {0: (0.3, 0.5), 2: (0.4, 0.6)}
  levels = {'base': 0.3, 'best expert': 0.6}
  plots.curve(tmp_path / 'curve.png', metrics, levels, middle=middle)
  plots.curves(
    tmp_path / 'curves.png',
    {'a': [[(10, 0.4), (20, 0.5)], [(12, 0.3)]], 'b': [[(10, 0.4)]]},
    levels,
  )
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'curve.png',
    'curves.png',
  ]
  for picture in tmp_path.iterdir():
    assert picture.read_bytes().startswith(b'\x89PNG')
