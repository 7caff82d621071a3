"""The benchmark of refilled slots runs, and its ways do the same work."""

import json

import numpy as np

from tests.experiments.running import fresh_program
from tests.experiments.running import run_program


def test_both_ways_make_the_same_number_of_tokens(tmp_path, capsys):
  out = tmp_path / 'result'
  code = run_program(
    'benchmark_generation',
    '--members=2',
    '--prompts=12',
    '--length=5',
    '--longest=9',
    '--mean=4',
    '--slots=3',
    '--repeats=1',
    f'--out={out}',
  )
  assert not code
  result = json.loads(out.with_suffix('.json').read_text())
  ways = result['ways']
  assert [way['ledger']['new_tokens'] for way in ways.values()] == [
    result['tokens']
  ] * 2
  # What does not depend on the machine: refilled slots are seldom free.
  assert ways['refilled']['occupancy'] > ways['static']['occupancy']
  assert 'times as fast' in capsys.readouterr().out


def test_lengths_are_drawn_once():
  with fresh_program('experiments.benchmark_generation') as program:
    lengths, again = (program.draw_lengths(1000, 16.0, 64) for _ in range(2))
  np.testing.assert_array_equal(lengths, again)
  assert lengths.min() == 1 and lengths.max() == 64 and 12 < lengths.mean() < 18
