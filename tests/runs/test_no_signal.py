"""Generations in which all members score alike."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest

from evojax_llm.runs import errors
from evojax_llm.runs import no_signal
from evojax_llm.runs import preparation
from evojax_llm.runs import runner
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task


def _evaluator(percent=True):
  items = tuple(Item(str(i), f'question {i}?', f'gold {i}') for i in range(9))
  tasks = [
    Task(
      name=name, dev=items, test=(), kind='exact', format=Format('{question}')
    )
    for name in 'xy'
  ]
  return types.SimpleNamespace(
    tasks=tasks,
    chat=False,
    objective=types.SimpleNamespace(percent=percent),
    items=lambda split: [task.dev for task in tasks],
  )


def _scored(*fitness):
  said = [[f'{m % 5} for {i}' for i in range(9)] for m in range(len(fitness))]
  said[0] = [None] * 9
  ids = [str(i) for i in range(9)]
  result = types.SimpleNamespace(predictions=said, ids=ids)
  fitness = np.array(fitness, np.float32)
  return types.SimpleNamespace(fitness=fitness, tasks=[result, result])


@pytest.mark.parametrize(
  'fitness', [(0.5, 0.25), (0.0, 0.1), (0.25,), (0.5, np.nan)]
)
def test_members_that_differ_are_a_signal(fitness):
  assert no_signal.describe(_evaluator(), _scored(*fitness)) is None


@pytest.mark.parametrize(
  ('fitness', 'percent', 'words'),
  [
    ((0.0, 0.0, 0.0, 0.0, 0.0), True, 'all 5 members that .* of 0.0 %,'),
    ((0.0,), True, 'all 1 members .* of 0.0 %'),
    ((-3.5, np.nan, -3.5), False, 'all 2 members .* of -3.5,'),
  ],
)
def test_members_that_do_not_are_told_with_examples(fitness, percent, words):
  text = no_signal.describe(_evaluator(percent), _scored(*fitness))
  head, *lines, _ = text.splitlines()
  assert re.search(words, head)
  assert len(lines) == 9
  # The tasks in turn.
  assert [line.split(':')[0].strip() for line in lines[::3]] == [
    'x, item 0',
    'y, item 0',
    'x, item 1',
  ]
  assert 'question 0?' in lines[0] and "gold: 'gold 0'" in lines[2]
  assert lines[1].strip().startswith('answered: nothing')
  assert len(fitness) < 5 or lines[1].endswith(", '1 for 0', '2 for 0', ...")


def test_examples_are_of_the_items_that_were_asked():
  scored = _scored(0.0, 0.0)
  for result in scored.tasks:
    result.ids = ['4', '8']
    result.predictions = [['a', 'b']] * 2
  text = no_signal.describe(_evaluator(), scored)
  assert 'x, item 8' in text and "answered: 'b'" in text
  assert 'question 8?' in text and 'question 1?' not in text


def test_a_run_without_a_signal_goes_on_unless_one_is_required(
  finished, tmp_path, capsys, monkeypatch
):
  kept = json.loads((finished[0] / 'config.json').read_text())['config']
  kept['strategy']['generations'] = 1
  config = RunConfig.from_config(kept | {'require_signal': True})
  cache, calls = {}, []

  def describe(*args):
    calls.append(args)
    return 'no signal: why'

  monkeypatch.setattr(no_signal, 'describe', describe)
  prepared = preparation.prepare(config, cache=cache)
  # The same command does not go past it.
  for _ in range(2):
    with pytest.raises(errors.UserError, match='no signal: why'):
      runner.run_prepared(prepared, tmp_path)
  config = dataclasses.replace(config, require_signal=False)
  runner.run_prepared(preparation.prepare(config, cache=cache), tmp_path)
  error = capsys.readouterr().err
  assert 'no signal: why' in error
  assert '--config.require_signal would end it here' in error
  assert len(calls) == 3, 'later generations were looked at'
