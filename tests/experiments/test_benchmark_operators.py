"""The benchmark of operators runs, and its table says what was reached."""

import importlib.util
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from experiments.benchmarks import operator_peers
from experiments.benchmarks import operator_sizes
from experiments.benchmarks import operator_tables
from experiments.benchmarks import operator_timing

HAS_PEFT = all(map(importlib.util.find_spec, ('torch', 'peft')))


def test_operators_are_timed_in_place_and_elsewhere():
  cases = operator_timing.chosen_cases(['linear', 'gaussian', 'swarm'])
  result = operator_timing.measure(
    'tiny', cases, repeats=2, peft=HAS_PEFT, peer_python=None, peer_limit=60.0
  )
  rows = {row['name']: row for row in result['rows']}
  size = operator_sizes.SIZES['tiny']
  numbers = size.members * sum(
    size.layers * size.rank * sum(shape) for shape in size.matrices.values()
  )
  assert rows['linear']['moved'] == 4 * numbers * 3
  assert rows['linear']['copy'] == 'copy, to another buffer'
  assert ('peft' in rows['linear']['peers']) == HAS_PEFT
  # Velocity, position and own best are read, and two genomes each by all.
  assert rows['swarm']['moved'] == pytest.approx(4 * numbers * (5 + 2 / 3))
  noise = rows['gaussian-relative=False']
  assert (noise['words'], noise['copy']) == (numbers, 'copy, in place')
  assert all(len(row['seconds']) == 2 for row in rows.values())
  text = operator_tables.markdown(
    {'note': '', 'machine': {}, 'command': 'x', 'sizes': [result]}
  )
  assert text.count('\n| ') == 1 + len(rows)


def test_table_says_what_is_missed():
  limits = {
    'copy, in place': {'per_second': 10e9},
    'copy, to another buffer': {'per_second': 4e9},
    'generator, stored': {'per_second': 1e8},
    'generator, summed': {'per_second': 5e7},
  }
  row = {
    'name': 'ties-density=0.5',
    'group': 'trimming',
    'else': 'counting',
    'seconds': [1.0, 2.0, 9.0],
    'moved': 4e9,
    'words': 0.0,
    'copy': 'copy, to another buffer',
    'peers': {'mergekit': 7.0, 'peft': 1.0},
  }
  cells = operator_tables.cells(row, limits)
  assert cells[:5] == ['ties-density=0.5', '2000.0', '4.00', '2.0', '50%']
  assert cells[-4:] == [
    '3.5',
    '0.5',
    'no: 0.5 of 1 times peft',
    'memory 50%, counting 50%',
  ]
  row |= {'group': 'random', 'words': 1.4e8, 'peers': {'mergekit': 5.0}}
  assert operator_tables.cells(row, limits)[-2:] == [
    'no: 70% of 80%; 2.5 of 3 times mergekit',
    'memory 50%, generator 70%',
  ]
  row |= {'words': 1.8e8, 'peers': {'mergekit': 'over 60 s'}}
  cells = operator_tables.cells(row, limits)
  assert cells[-4:] == ['over 60 s', '', 'yes', '']


def test_sizes_are_those_of_gemma_2_2b():
  lora = operator_sizes.SIZES['lora10']
  assert 10_383_360 == sum(
    lora.layers * lora.rank * sum(shape) for shape in lora.matrices.values()
  )
  layer = operator_sizes.SIZES['layer4']
  assert 77_856_768 == sum(i * o for i, o in layer.matrices.values())


def test_what_scales_the_mass_touches_b_alone_where_there_is_one():
  for name, share in (('tiny', 28 / 60), ('layer', 1)):
    genome = {
      'tiny': {'layers': {'q': {'a': jnp.ones((4, 8)), 'b': jnp.ones((4, 7))}}},
      'layer': {'layers': {'q': {'kernel': jnp.ones((4, 7))}}},
    }[name]
    whole = operator_sizes.elements(genome)
    touched = operator_sizes.elements(genome, second_only=True)
    assert touched / whole == pytest.approx(share)


ANSWERS = """#!{python}
import json, pathlib, sys, time
given = json.loads((pathlib.Path(sys.argv[-1]) / 'cases.json').read_text())
print('ready', flush=True)
for case in given['cases']:
  known = case['models'] + ([case['base']] if 'base' in case else [])
  assert set(known) <= set(given['random']), case
  if case['method'] == 'ties':
    time.sleep(60)
  if case['method'] == 'karcher':
    raise ValueError('as asked')
  print('taken 2.0', case['name'], flush=True)
"""


def test_mergekit_is_asked_for_every_shape_and_a_hanging_one_loses_its_row(
  tmp_path,
):
  """A python that answers as third_party/mergekit/merge.py would."""
  python = tmp_path / 'python'
  python.write_text(ANSWERS.format(python=sys.executable))
  python.chmod(0o755)
  matrices = {'q': (4, 3), 'k': (4, 2), 'v': (4, 2)}
  size = operator_sizes.Size('', 1, 1, matrices, 0, 4, 4)
  names = ['linear', 'ties', 'karcher', 'slerp', 'scale']
  found = operator_peers.seconds(
    size,
    operator_timing.chosen_cases(names),
    peft=False,
    peer_python=str(python),
    limit=3,
  )
  assert found['linear'] == found['slerp'] == {'mergekit': 6.0}
  assert found['ties-density=0.5'] == {'mergekit': 'over 3 s'}
  assert found['karcher'] == {'mergekit': 'failed'} and found['scale'] == {}


def test_an_unknown_operator_is_refused():
  with pytest.raises(ValueError, match='lottery.*uniform_layer'):
    operator_timing.chosen_cases(['lottery'])


def test_the_program_writes_its_table(tmp_path):
  out = tmp_path / 'new' / 'table'
  command = [sys.executable, '-m', 'experiments.benchmark_operators']
  command += ['--sizes=tiny', '--operators=linear', '--repeats=1', '--nopeer']
  done = subprocess.run(
    [*command, f'--out={out}'], capture_output=True, text=True, check=True
  )
  assert '| linear |' in done.stdout
  assert '| linear |' in out.with_suffix('.md').read_text()
  rows = json.loads(out.with_suffix('.json').read_text())['sizes'][0]['rows']
  assert [row['name'] for row in rows] == ['linear']
  wrong = subprocess.run(
    [*command, '--sizes=x'], capture_output=True, text=True
  )
  assert wrong.returncode and "['x']" in wrong.stderr + wrong.stdout
