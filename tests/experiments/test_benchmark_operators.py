"""The benchmark of operators runs, and its table says what was reached."""

import importlib.util
import json
import subprocess
import sys

import pytest

from experiments.benchmarks import operator_peers
from experiments.benchmarks import operator_sizes
from experiments.benchmarks import operator_tables
from experiments.benchmarks import operator_timing

HAS_PEFT = all(map(importlib.util.find_spec, ('torch', 'peft')))


def test_operators_are_timed_in_place_and_elsewhere():
  cases = operator_timing.chosen_cases(['linear', 'gaussian', 'swarm'])
  result = operator_timing.measure(
    'tiny', cases, repeats=2, peft=HAS_PEFT, peer_python=None
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
    'generator': {'per_second': 1e8},
  }
  row = {
    'name': 'ties-density=0.5',
    'group': 'trimming',
    'seconds': [1.0, 2.0, 9.0],
    'moved': 4e9,
    'words': 0.0,
    'copy': 'copy, to another buffer',
    'peers': {'mergekit': 7.0, 'peft': 1.0},
  }
  cells = operator_tables.cells(row, limits)
  assert cells[:5] == ['ties-density=0.5', '2000.0', '4.00', '2.0', '50%']
  assert cells[-3:] == ['3.5', '0.5', 'no: 0.5 of 1 times peft']
  row |= {'group': 'random', 'words': 1.4e8, 'peers': {'mergekit': 5.0}}
  assert operator_tables.cells(row, limits)[-1] == (
    'no: 70% of 80%; 2.5 of 3 times mergekit'
  )
  row |= {'words': 1.8e8, 'peers': {}}
  assert operator_tables.cells(row, limits)[-1] == 'yes'


def test_sizes_are_those_of_gemma_2_2b():
  lora = operator_sizes.SIZES['lora10']
  assert 10_383_360 == sum(
    lora.layers * lora.rank * sum(shape) for shape in lora.matrices.values()
  )
  layer = operator_sizes.SIZES['layer4']
  assert 77_856_768 == sum(i * o for i, o in layer.matrices.values())


def test_mergekit_is_asked_for_every_matrix(tmp_path):
  """A python that answers as third_party/mergekit/merge.py would."""
  python = tmp_path / 'python'
  python.write_text(
    f'#!{sys.executable}\n'
    'import json, pathlib, sys\n'
    'folder = pathlib.Path(sys.argv[2])\n'
    "given = json.loads((folder / 'cases.json').read_text())\n"
    "for case in given['cases']:\n"
    "  known = case['models'] + ([case['base']] if 'base' in case else [])\n"
    "  assert set(known) <= set(given['random']), case\n"
    "taken = {case['name']: 2.0 for case in given['cases']}\n"
    "(folder / 'seconds.json').write_text(json.dumps(taken))\n"
  )
  python.chmod(0o755)
  size = operator_sizes.Size('', 1, 1, {'q': (4, 3), 'k': (4, 2)}, 0, 4, 4)
  cases = operator_timing.chosen_cases(['linear', 'slerp', 'ties', 'scale'])
  found = operator_peers.seconds(
    size, cases, peft=False, peer_python=str(python)
  )
  assert found['ties-density=0.5'] == {'mergekit': 4.0}
  assert found['slerp'] == {'mergekit': 4.0} and found['scale'] == {}


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
