"""Members that take gradient steps in a run, and what is refused before it."""

import json
import math
import shutil
import types

import jax
import numpy as np
import pytest

from evojax_llm import systems
from evojax_llm.population import keys
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import preparation
from evojax_llm.runs import refinement
from evojax_llm.runs import runner
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks import training_data
from tests import tiny
from tests.experiments import runs


def test_a_run_with_steps_goes_on_bit_for_bit(
  tiny_gemma_folder, tiny_adapter_folders, tmp_path, monkeypatch
):
  config = systems.load('evomerge')
  config.model = str(tiny_gemma_folder('gemma2'))
  config.adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  config.tasks = str(runs.write_task(tmp_path / 'a.json'))
  config.space, config.ensemble.size = 'adapters', 0
  config.dev_limit, config.fine_tuning.steps = 10, 0
  config.strategy.population, config.strategy.generations = 5, 2
  config.strategy.options.mutate_count = 1.0
  # Pairs are read and learnt from here, texts in tests/experiments.
  pairs = tmp_path / 'pairs.jsonl'
  rows = [PAIR | {'prompt': p, 'rejected': 'c'} for p in 'abcd']
  pairs.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config.refine.loss, config.refine.data = 'dpo', str(pairs)
  config.refine.steps, config.refine.batch = 2, 2
  config.refine.lr, config.refine.beta = (0.1, 0.01), (0.1,)
  # What a process leaves that ends after the first generation.
  save, halves = checkpoint.Checkpoints.save, tmp_path / 'halves'

  def copy(self, number, state):
    save(self, number, state)
    if number == 1 and not halves.exists():
      self.close()
      shutil.copytree(tmp_path / 'whole', halves)

  monkeypatch.setattr(checkpoint.Checkpoints, 'save', copy)
  cache = {}
  for folder in ('whole', 'halves'):
    prepared = preparation.prepare(config, cache=cache)
    runner.run_prepared(prepared, tmp_path / folder)
  whole = runs.result(tmp_path / 'whole')
  assert runs.result(halves) == whole

  rows = [json.loads(line) for line in whole['members'].splitlines()]
  refined = [row for row in rows if 'refined' in row]
  assert refined == [row for row in rows if 'mutation' in row] != []
  for row in refined:
    assert row['operator'].endswith('mutation')
    assert row['refined']['lr'] in (0.1, 0.01)
    assert set(row['refined']) == {'lr', 'beta', 'losses'}
    # Nothing is preferred by what has not learnt: log 2.
    first, after = row['refined']['losses']
    assert first == pytest.approx(math.log(2), abs=1e-4) and after != first
  for row in whole['metrics']:
    born = [r for r in refined if r['generation'] == row['generation']]
    tokens = row.get('gradient_tokens', 0)
    assert (tokens > 0) == bool(born) and row['tokens'] > tokens
  assert 'refine' in runs.lines(halves / 'metrics.jsonl')[1]['seconds']


def test_a_draw_depends_on_generation_and_slot_alone():
  asked = []

  def steps(members, which, key, hyper):
    del key
    asked.append(dict(zip(which.tolist(), hyper['lr'].tolist(), strict=True)))
    return members

  taken = types.SimpleNamespace(steps=steps, losses=np.zeros((40, 3)))
  one = refinement.Refinement(taken, {'lr': (1.0, 2.0, 3.0)})
  key = keys.key_for(jax.random.key(0), 1, -1, 'refine')
  other = keys.key_for(jax.random.key(0), 2, -1, 'refine')
  for which, k in (
    (range(40), key),
    (range(0, 40, 7), key),
    (range(40), other),
  ):
    one({}, np.asarray(which), k)
  assert set(asked[0].values()) == {1.0, 2.0, 3.0}
  assert asked[1].items() <= asked[0].items() and asked[2] != asked[0]
  assert one.take()[7]['refined']['lr'] == asked[2][7] and not one.take()


PAIR = {'prompt': 'a', 'chosen': 'b'}


@pytest.mark.parametrize(
  'options, message',
  [
    ({'lr': ()}, r'config.refine.lr \(\); expected one or more numbers above'),
    ({'lr': (0.1, 0)}, r'config.refine.lr \(0.1, 0\); expected'),
    ({'rank': (1.5,)}, r'config.refine.rank \(1.5,\); expected one .* whole'),
    ({'loss': 'dpo'}, 'loss=dpo learns from pairs.*chosen, rejected'),
    ({'items': 'others'}, 'scores all of them: set a lower config.dev_limit'),
    ({'items': 'others', 'resample': True}, 'resample comes to score all'),
    ({'data': 'PAIRS', 'loss': 'dpo'}, "line 1: no key 'rejected'"),
    ({'loss': 'ppo'}, "config.refine.loss 'ppo'; expected one of '', 'sft'"),
  ],
)
def test_what_cannot_be_learnt_from_is_refused(options, message, tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(json.dumps(PAIR) + '\n')
  if 'data' in options:
    options = options | {'data': str(path)}
  setup = types.SimpleNamespace(
    tokenizer=None, tasks=(), space=types.SimpleNamespace(exports='model')
  )
  evaluator = types.SimpleNamespace(
    max_length=lambda space: 8, items=lambda split: []
  )
  with pytest.raises(ValueError, match=message):
    refine = {'loss': 'sft'} | options
    more = {'resample': refine.pop('resample', False), 'dev_limit': 4}
    config = RunConfig.from_config({'refine': refine, **more})
    refinement.make(config, setup, evaluator)


@pytest.mark.parametrize(
  'asked, expected',
  [({}, {0, 3, 6, 9}), ({'items': 'others'}, {1, 2, 4, 5, 7, 8})],
)
def test_what_is_scored_is_learnt_unless_others_are_asked_for(
  asked, expected, monkeypatch
):
  dev = [types.SimpleNamespace(id=i) for i in range(10)]
  setup = types.SimpleNamespace(
    tokenizer=None,
    tasks=[types.SimpleNamespace(dev=dev)],
    space=types.SimpleNamespace(exports='model'),
  )
  evaluator = types.SimpleNamespace(
    max_length=lambda space: 8, items=lambda split: [dev[::3]]
  )
  learnt = []

  def encode_task(task, items, *_):
    learnt.extend(items)
    return []

  monkeypatch.setattr(training_data, 'encode_task', encode_task)
  config = RunConfig.from_config({'refine': {'loss': 'sft', **asked}})
  with pytest.raises(
    errors.UserError, match='no task has a text as its answer'
  ):
    refinement.make(config, setup, evaluator)
  assert {item.id for item in learnt} == expected


def test_a_mutation_without_steps_is_refused():
  config = RunConfig.from_config({'strategy': {'name': 'evomerge'}})
  needs = types.SimpleNamespace(needs_refine=True)
  with pytest.raises(errors.UserError, match='refine.loss=sft, or .*gaussian'):
    refinement.check_strategy(config, needs)
