"""The benchmark of one model runs, and its ways do the same work."""

import importlib.util

import pytest

from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from experiments.benchmarks import tables
from tests.experiments.running import fresh_program

HAS_TORCH = importlib.util.find_spec('torch') is not None


@pytest.fixture
def benchmark_real():
  with fresh_program('experiments.benchmark_real') as program:
    yield program


@pytest.mark.filterwarnings('ignore')  # what torch warns of.
def test_ways_are_timed_and_agree(tiny_gemma_folder, benchmark_real):
  choices = ('A', 'one thing'), ('B', 'two of them')
  items = tuple(Item(str(i), f'say {i}', 'A', choices) for i in range(3))
  how = Format(choice='text')
  one = benchmark_real.measure(
    tiny_gemma_folder('gemma2'),
    [Task('t', 'multiple_choice', items, (), how)],
    repeats=1,
    peer_items=2,
    peer_sizes=[2] * HAS_TORCH,
    peer_types=['float32'],
  )
  assert one['tokens']['engine'] > 0 < one['rate_share']
  if HAS_TORCH:
    assert one['difference'] < 1e-4
    name = 'peer, float32, batches of 2'
    assert one['tokens'][name] * 3 == one['tokens']['engine'] * 2
  result = {'note': '', 'machine': tables.machine(), 'command': 'x'}
  text = benchmark_real.markdown({**result, 'models': [one]})
  assert len(text.splitlines()[-1].split('|')) == 13


def test_hidden_states_are_counted_once(benchmark_real):
  pairs = [((1, 2), (3, 4)), ((1, 2), (3, 5)), ((1, 2), (6,))]
  assert benchmark_real._unembedded(pairs) == 2
