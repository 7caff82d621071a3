"""The benchmark runs, and its ways do the same work."""

import importlib.util
import re

import pytest

from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from experiments import benchmark_fitness
from experiments.benchmarks import tables

HAS_PEER = all(map(importlib.util.find_spec, ('torch', 'peft')))


def task(kind: str) -> Task:
  choices = (('A', 'one'), ('B', 'two'))
  test = tuple(
    Item(
      str(i), f'say {i}', 'A', choices if kind == 'multiple_choice' else None
    )
    for i in range(6)
  )
  return Task('t', kind, (), test, Format(max_new_tokens=3))


@pytest.mark.filterwarnings('ignore')  # what torch and PEFT warn of.
@pytest.mark.parametrize(
  'kind, form', [('multiple_choice', 'folded'), ('exact_match', 'batched')]
)
def test_ways_are_timed_and_agree(
  kind, form, tiny_gemma_folder, tiny_adapter_folders
):
  result = benchmark_fitness.measure(
    str(tiny_gemma_folder('gemma2')),
    [str(folder) for folder in tiny_adapter_folders(2, 'gemma2')],
    task(kind),
    items=9,
    repeats=2,
    peer_sizes=[2] if HAS_PEER else [],
    forms=[form],
  )
  assert (result['members'], result['items']) == (2, 3)
  assert {len(seconds) for seconds in result['seconds'].values()} == {2}
  assert set(result['recompiled'].values()) == {0}
  assert len(result['rate_share']) == len(result['idle']) == 4
  tokens = result['tokens']
  assert tokens[f'population, {form}'] == tokens[f'one by one, {form}'] > 0
  assert len(result['agreement']) == 2 * HAS_PEER
  for words in result['agreement'].values():
    if kind == 'exact_match':
      assert words == '6 of 6 answers are the same'
    else:
      assert float(words.rsplit(' ', 1)[1]) < 1e-4
  text = tables.markdown(
    {
      'note': '',
      'machine': {'cores': '2'},
      'command': 'x',
      'workloads': [result],
    }
  )
  assert 'times as fast as its members one by one' in text


def test_table_shows_medians_and_ratios():
  seconds = {
    'population, folded': [3.0, 1.0, 2.0],
    'one by one, folded': [4.0, 4.0, 9.0],
    'one model, folded': [1.0, 1.0, 1.0],
    'peer, batches of 8': [40.0, 20.0, 10.0],
    'peer, merged, batches of 8': [30.0, 30.0, 30.0],
  }
  speed = {'population, folded': 50.0, 'one by one, folded': 25.0}
  speed |= {'one model, folded': 100.0, 'peer, batches of 8': 5.0}
  speed |= {'peer, merged, batches of 8': 100 / 30}
  text = tables.markdown(
    {
      'note': 'Note',
      'machine': {'cores': '2', 'jax': '1'},
      'command': 'python -m x',
      'workloads': [
        {
          'task': 'rev',
          'kind': 'generation',
          'members': 10,
          'items': 7,
          'seconds': seconds,
          'tokens_per_second': speed,
          'compile_seconds': {'population, folded': 1.25},
          'agreement': {'peer': 'all the same'},
        }
      ],
    }
  )
  assert (
    '| population, folded | 2.000 | 1.000 to 3.000 | 50 | 10.00 |  |  | 1.2 |'
    in (text)
  )
  flat = re.sub(r'\s+', ' ', text)
  assert '2.00 times as fast as its members one by one' in flat
  assert '0.50 times as fast as one model on 10 times the items' in flat
  assert '10.00 times as fast as the best peer' in flat
  assert '- peer: all the same.' in flat


def test_machine_names_what_timings_depend_on():
  assert {'cpu', 'cores', 'memory', 'python', 'jax'} <= set(tables.machine())
