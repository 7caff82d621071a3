"""The benchmark of merged folders runs, and its table has what was measured."""

import os
import sys

import pytest

from evojax_llm.commands.command import UserError
from experiments.benchmarks import random_llama
from tests.experiments import running


@pytest.fixture(scope='module')
def benchmark_merge():
  with running.fresh_program('experiments.benchmark_merge') as program:
    yield program


def test_a_process_is_watched(benchmark_merge):
  used = benchmark_merge.run_watched(
    [sys.executable, '-c', 'x = bytearray(10**8); import time; time.sleep(0.1)']
  )
  assert used['seconds'] > 0.1 and 0 < used['cpu'] < 60
  assert 1e8 < used['own'] <= used['resident'] < 1e9
  with pytest.raises(UserError, match='no such thing'):
    benchmark_merge.run_watched([sys.executable, '-c', 'exit("no such thing")'])


def test_every_way_merges_the_same_recipe(benchmark_merge, tmp_path):
  """A python beside which a program answers as mergekit-yaml would."""
  peer = tmp_path / 'mergekit-yaml'
  peer.write_text(f'#!{sys.executable}\nimport os, sys\nos.mkdir(sys.argv[2])')
  peer.chmod(0o755)
  (kind,) = benchmark_merge.measure(
    tmp_path,
    'bfloat16',
    ['passthrough'],
    str(tmp_path / 'python'),
    layers=1,
    width=64,
    repeats=1,
  )
  stored = [
    f.stat().st_size
    for f in (tmp_path / 'bfloat16_1x64/a').glob('*.safetensors')
  ]
  assert len(stored) == 3
  numbers = 2 * 1024 * 64 + 64 * (64 + 8 + 8 + 64 + 3 * 176) + 3 * 64
  assert 2 * numbers < sum(stored) < kind['bytes'] < 2 * numbers + 10_000
  (ours,), (theirs,) = kind['methods']['passthrough'].values()
  assert ours['seconds'] > 0 and theirs['seconds'] > 0
  assert not os.path.exists(tmp_path / 'merged')


def test_the_table_compares(benchmark_merge):
  def used(seconds, resident):
    return {'seconds': seconds, 'cpu': 9.0, 'resident': resident, 'own': 1e8}

  rows = {
    'ties': {
      'ours': [used(2.0, 1e9), used(4.0, 1e9)],
      'mergekit': [used(9.0, 4e9)],
    },
    'linear': {'ours': [used(2.0, 1e9)], 'mergekit': []},
  }
  kind = {'dtype': 'bfloat16', 'bytes': 2e9, 'layers': 1, 'methods': rows}
  text = benchmark_merge.markdown(
    {'note': '', 'machine': {}, 'command': 'x', 'dtypes': [kind]}
  )
  assert (
    '| ties | 3.0 | 9.0 | 1.00 (0.10) | 9.0 | 9.0 | 4.00 (0.10) | 3.0 | 0.25 |'
  ) in text
  assert '| linear | 2.0 | 9.0 | 1.00 (0.10) |  |  |  |  |  |' in text


def test_widths_are_those_of_tinyllama():
  shapes = random_llama.shapes(22, 2048).values()
  assert sum(s[0] * (s[1] if s[1:] else 1) for s in shapes) == 1_100_048_384
