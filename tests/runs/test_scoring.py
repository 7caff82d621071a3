"""The table of scores of a model and its adapters."""

from evojax_llm.runs import report


def test_table():
  def task(score, low, high, n):
    return {'score': score, 'interval': [low, high], 'n': n}

  tasks = {'a': task(0.5, 0.4, 0.6, 96), 'b': task(1.0, 0.7221, 1.0, 10)}
  text = report.members_table(
    [
      {'name': 'base', 'tasks': tasks},
      {'name': 'expert', 'failed': 'why', 'tasks': {}},
    ],
    {'a': True, 'b': True},
  )
  assert text.splitlines() == [
    '| member |          a (n=96) |            b (n=10) |   mean |',
    '|--------|------------------:|--------------------:|-------:|',
    '| base   | 50.0 [40.0, 60.0] | 100.0 [72.2, 100.0] |   75.0 |',
    '| expert |            failed |              failed | failed |',
    'expert failed: why',
  ]


def test_table_of_what_is_no_share():
  tasks = {
    'a': {'score': 12.345, 'interval': None, 'n': 9},
    'b': {'score': 0.5, 'interval': [0.4, 0.6], 'n': 9},
  }
  text = report.members_table(
    [{'name': 'base', 'tasks': tasks}], {'a': False, 'b': True}
  )
  assert text.splitlines() == [
    '| member | a (n=9) |           b (n=9) |',
    '|--------|--------:|------------------:|',
    '| base   |   12.35 | 50.0 [40.0, 60.0] |',
  ]
