"""The benchmark of candidates runs, and counts what it multiplies by."""

import json
import sys

import pytest

from tests.experiments.running import run_program


def test_ways_are_timed_beside_mergekit(tmp_path, capsys):
  """A python beside which a program answers as mergekit-yaml would."""
  peer = tmp_path / 'mergekit-yaml'
  peer.write_text(f'#!{sys.executable}\nimport os, sys\nos.mkdir(sys.argv[2])')
  peer.chmod(0o755)
  code = run_program(
    'benchmark_recipes',
    '--smoke',
    '--way=gates',
    '--way=weights, dare_ties',
    '--members=2',
    '--repeats=1',
    '--peer_width=64',
    f'--peer_python={tmp_path / "python"}',
    f'--out={tmp_path / "result"}',
  )
  assert not code
  rows = json.loads((tmp_path / 'result.json').read_text())['rows']
  gates, weights, mergekit = rows
  assert gates['copies'] == 26
  # Of 73 million numbers of a layer, q_proj has 2304 x 2048.
  assert weights['copies'] == pytest.approx(26 * 77_856_768 / 4_718_592)
  for row in (gates, weights):
    expected = 1000 * row['measured'] * row['copies']
    assert row['seconds'] == pytest.approx(expected) and expected > 0
  assert mergekit['numbers'][1] > mergekit['numbers'][0]
  assert '| gates | ' in capsys.readouterr().out
