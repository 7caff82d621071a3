"""The run folder and its files."""

import json

import numpy as np
import pytest

from evojax_llm.runs import record
from evojax_llm.runs import record_rows
from evojax_llm.runs.errors import CheckpointError
from evojax_llm.runs.evolution import Generation

CONFIG = {'name': 'a', 'strategy': {'population': 10, 'rates': (0.1, 0.2)}}


def make_generation(number=0, **changes):
  values = dict(
    number=number,
    ids=[4, 6],
    parents=[(1, 3), (2, -1)],
    operators=[1, 0],
    fitness=np.array([0.775, np.nan], np.float32),
    task_scores=np.array([[0.75, 0.8], [np.nan, np.nan]], np.float32),
    reasons=[None, 'logits are not finite'],
    mean_fitness=np.float32(0.5),
    best_id=4,
    best_fitness=np.float32(0.775),
    best_task_scores=np.array([0.75, 0.8], np.float32),
    evaluations=7,
    scored=2,
  )
  return Generation(**{**values, **changes})


def test_the_same_settings_find_their_run_again(tmp_path):
  record.RunFolder(tmp_path / 'r', CONFIG, {'x': '1'}).close()
  run = record.RunFolder(tmp_path / 'r', CONFIG, {'x': '1'})
  assert not run.finished
  run.close()


def test_settings_that_came_later_were_the_defaults(tmp_path):
  record.RunFolder(tmp_path / 'r', CONFIG, {}).close()
  config = {**CONFIG, 'racing': {'rounds': 3}, 'test_experts': False}
  record.RunFolder(tmp_path / 'r', config, {}).close()
  with pytest.raises(CheckpointError, match='racing.rounds: 3 there, 4 here'):
    record.RunFolder(tmp_path / 'r', {**config, 'racing': {'rounds': 4}}, {})


@pytest.mark.parametrize(
  'config, inputs, message',
  [
    (
      {**CONFIG, 'strategy': {'population': 20, 'rates': (0.1, 0.2)}},
      {'x': '1'},
      r'  strategy\.population: 10 there, 20 here',
    ),
    ({'name': 'a'}, {'x': '1'}, r'strategy\.rates: .* there, None here'),
    (CONFIG, {'x': '2'}, r"  inputs\.x: '1' there, '2' here"),
    (CONFIG, {'x': '1', 'y': ['5']}, r"  inputs\.y: None there, \['5'\] here"),
  ],
)
def test_other_settings_are_refused(tmp_path, config, inputs, message):
  record.RunFolder(tmp_path / 'r', CONFIG, {'x': '1'}).close()
  with pytest.raises(CheckpointError, match=message):
    record.RunFolder(tmp_path / 'r', config, inputs)
  # The refusal lets go of the lock.
  record.RunFolder(tmp_path / 'r', CONFIG, {'x': '1'}).close()


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path):
  run = record.RunFolder(tmp_path / 'r', CONFIG)
  with pytest.raises(CheckpointError, match='Another process'):
    record.RunFolder(tmp_path / 'r', CONFIG)
  run.close()
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(CheckpointError, match=r'thesis\.tex'):
    record.RunFolder(tmp_path, CONFIG)


def test_a_run_may_end_later_and_never_sooner(tmp_path):
  def claim(**ends):
    strategy = {'generations': 3, 'evaluations': 9, 'patience': None} | ends
    record.RunFolder(tmp_path, {'strategy': strategy}).close()

  claim()
  claim(generations=5)
  assert record.read_config(tmp_path)['config']['strategy']['generations'] == 5
  for sooner in ({}, {'generations': 5, 'patience': 4}, {'evaluations': 12}):
    with pytest.raises(CheckpointError, match=r'(?s)there, .*warm_start='):
      claim(**sooner)
  claim(generations=5, evaluations=12)
  # Also where it had ended; what it said then is kept.
  said = '{"rows": [], "generations": 5}'
  (tmp_path / 'summary.json').write_text(said)
  claim(generations=5, evaluations=12)
  assert (tmp_path / 'summary.json').read_text() == said
  claim(generations=7, evaluations=None)
  assert not (tmp_path / 'summary.json').exists()
  assert (tmp_path / 'summary_5.json').read_text() == said


def test_a_damaged_config_is_an_error(tmp_path):
  record.RunFolder(tmp_path, CONFIG).close()
  (tmp_path / 'config.json').write_text('{"config": ')
  with pytest.raises(CheckpointError, match='damaged'):
    record.RunFolder(tmp_path, CONFIG)


@pytest.mark.parametrize(
  'tail', ['', '{"generation": 2, "x"', '{"generation": 2}', 'null\n', '\0\0\n']
)
def test_rewind_cuts_later_and_broken_lines(tmp_path, tail):
  lines = record.JsonLines(tmp_path / 'm.jsonl')
  lines.append({'generation': g, 'i': i} for g in range(3) for i in range(2))
  whole = lines.path.read_text()
  lines.path.write_text(whole + tail)
  lines.rewind(2)
  assert lines.path.read_text() == whole
  lines.rewind(1)
  assert [r['generation'] for r in lines.read()] == [0, 0, 1, 1]
  lines.rewind(-1)
  assert lines.path.read_text() == ''


def test_member_rows_name_operators_parents_and_failures():
  rows = record_rows.member_rows(
    make_generation(3), ('mutate', 'cross'), ('rev', 'nth'), []
  )
  assert json.loads(json.dumps(record.plain(rows))) == [
    {
      'generation': 3,
      'id': 4,
      'operator': 'cross',
      'parents': [1, 3],
      'fitness': 0.775,
      'tasks': {'rev': 0.75, 'nth': 0.8},
      'reason': None,
    },
    {
      'generation': 3,
      'id': 6,
      'operator': 'mutate',
      'parents': [2],
      'fitness': None,
      'tasks': {'rev': None, 'nth': None},
      'reason': 'logits are not finite',
    },
  ]


def test_rows_of_the_initial_population_say_where_members_come_from():
  rows = record_rows.member_rows(
    make_generation(),
    ('mutate',),
    ('rev', 'nth'),
    [{'operator': 'expert', 'experts': ['x']}, {'operator': 'zero'}],
  )
  assert rows[0]['operator'] == 'expert' and rows[0]['experts'] == ['x']
  assert rows[1]['operator'] == 'zero'


def test_metrics_row_counts_failures():
  row = record_rows.metrics_row(
    make_generation(2), ('rev', 'nth'), {'score': 1.0}
  )
  assert (row['generation'], row['scored'], row['failed']) == (2, 2, 1)
  assert record.plain(row)['best_fitness'] == 0.775


def test_lineage_holds_all_ancestors_once_eldest_first():
  parents = {0: [], 1: [], 2: [], 3: [0, 1], 4: [3], 5: [3, 4], 6: [2]}
  rows = [
    {'id': i, 'generation': 0, 'operator': 'o', 'parents': p, 'fitness': 0.0}
    for i, p in parents.items()
  ]
  ids = [row['id'] for row in record_rows.lineage_of(5, rows)]
  assert ids == [0, 1, 3, 4, 5]


def test_floats_keep_their_bits_and_nan_becomes_null():
  value = {'a': np.float32(0.1), 'b': [np.nan, np.inf, np.int32(3)]}
  plain = json.loads(json.dumps(record.plain(value)))
  assert plain == {'a': 0.1, 'b': [None, None, 3]}
  for x in np.random.default_rng(0).normal(size=200).astype(np.float32):
    assert np.float32(record.plain(x)) == x


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (None, ''),
    ('{"a": 1}', ''),
    ('{"a": ', 'not valid JSON'),
    ('{"b": 1}', "is damaged: no 'a'"),
    ('[1]', 'is damaged'),
  ],
)
def test_what_is_kept_is_made_again_where_it_is_damaged(
  tmp_path, capsys, content, said
):
  path = tmp_path / 'kept.json'
  if content is not None:
    path.write_text(content)
  made = []

  def make():
    made.append(1)
    return {'a': 1}

  assert record.kept(path, lambda kept: kept['a'], make) == 1
  error = capsys.readouterr().err
  assert said in error and bool(said) == ('kept.json is made again' in error)
  assert len(made) == (content is None or bool(said))
  assert json.loads(path.read_text()) == {'a': 1}


def test_new_workdirs_do_not_collide(tmp_path):
  made = [record.new_workdir(tmp_path / 'runs', 'x').name for _ in range(3)]
  assert made == ['x', 'x_2', 'x_3']
