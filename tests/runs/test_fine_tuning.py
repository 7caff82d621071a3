"""The baseline that learns by gradients, and its row."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from evojax_llm.genomes.weights import WeightSpace
from evojax_llm.models import expression
from evojax_llm.runs import baselines
from evojax_llm.runs import errors
from evojax_llm.runs import finalists
from evojax_llm.runs import fine_tuning
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import rows
from evojax_llm.runs import runner
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig

CONFIG = {
  'tasks': 'swp',
  'dev_limit': 15,
  'test_limit': 5,
  'space': 'gates',
  'initial': ('experts',),
  'strategy': {'population': 10, 'generations': 0},
  'ensemble': {'size': 0},
  'fine_tuning': {'steps': 8, 'lr': 2e-3, 'batch': 4, 'patience': 9},
}


@pytest.fixture(scope='module')
def finished(no_fine_tuning, tmp_path_factory):
  """What a run is made of, and its folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(fine_tuning, 'wanted', lambda config: True)
    prepared = preparation.prepare(CONFIG)
    folder = runner.run_prepared(prepared, tmp_path_factory.mktemp('run') / 'a')
  return prepared, folder


def test_the_row_stands_beside_the_others_with_its_cost(finished):
  prepared, folder = finished
  summary = record.read_json(folder / 'summary.json')
  names = [row['name'] for row in summary['rows']]
  assert names[-2:] == [report.FINE_TUNED, report.EVOLVED]
  row = summary['rows'][-2]
  ledger = summary['ledger']
  assert row['evaluations'] == 1 and 0 < row['test']['fitness']['score'] <= 1
  steps = int(row['detail'].split(' steps')[0].split(', ')[1])
  assert 0 < steps <= 8
  assert row['detail'].startswith('rank 8, ')
  assert row['detail'].endswith(f'{row["tokens"]:,} tokens')
  # What is held is read between steps.
  read = ledger['gradient_tokens']
  assert read % 3 == 0 and read < row['tokens'] < 1.5 * read
  assert summary['tokens'] < ledger['prompt_tokens'] + ledger['new_tokens']
  page = (folder / 'summary.md').read_text()
  assert f'| {report.FINE_TUNED} ({row["detail"]})' in page
  assert '- LoRA fine-tuning: an adapter trained by gradients' in page


def test_the_adapter_is_a_member_again(finished):
  prepared, folder = finished
  row = rows.Run.open(folder).row('lora fine-tuning')
  kept = record.read_json(folder / 'baselines.json')['rows'][-1]
  assert row.name == report.FINE_TUNED and row.entry['tokens'] == kept['tokens']
  space = prepared.setup.experts
  scores = setup_lib.score_few(prepared.evaluator, space, row.genomes)
  dev = report.of_split(prepared.evaluator, 'dev', scores.task_scores[0])
  assert record.plain(dev) == kept['dev']
  base = [
    row['dev']
    for row in json.loads((folder / 'baselines.json').read_text())['rows']
    if row['name'] == 'base'
  ]
  assert dev['fitness']['score'] >= base[0]['fitness']['score']
  with pytest.raises(errors.UserError, match=', LoRA fine-tuning'):
    rows.Run.open(folder).row('LoRA finetuning')


def test_the_same_seed_learns_the_same(finished, tmp_path):
  prepared, folder = finished
  name = f'{fine_tuning.FOLDER}/adapter_model.safetensors'
  found = fine_tuning.tune(types.SimpleNamespace(path=tmp_path), prepared)
  assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  kept = record.read_json(folder / 'baselines.json')['rows'][-1]
  assert (found.detail, found.tokens) == (kept['detail'], kept['tokens'])
  compiled = [name for name, *_ in prepared.evaluator.runtime._programs]
  assert sum(name[0] == 'fine-tuning' for name in compiled) == 1
  # A run with the same baselines takes it over.
  baselines.share(folder, tmp_path / 'other')
  assert (tmp_path / 'other' / name).read_bytes() == (
    folder / name
  ).read_bytes()


def test_says_why_there_is_no_row(finished, tmp_path):
  prepared, _ = finished
  run = types.SimpleNamespace(path=tmp_path)

  def tuned(**changes):
    return fine_tuning.tune(run, dataclasses.replace(prepared, **changes))

  evaluator = prepared.evaluator
  code = [dataclasses.replace(t, kind='code') for t in evaluator.tasks]
  stub = types.SimpleNamespace(
    tasks=code,
    items=evaluator.items,
    tokenizer=evaluator.tokenizer,
    chat=False,
    max_length=evaluator.max_length,
  )
  said = tuned(evaluator=stub)
  assert said == 'left out: swp give too few texts to learn from'
  execution = dataclasses.replace(
    prepared.config.execution, memory_budget_gib=0.001
  )
  config = dataclasses.replace(prepared.config, execution=execution)
  assert 'Use a smaller batch' in tuned(config=config)
  assert not (tmp_path / fine_tuning.FOLDER).exists()


def test_populations_of_two_ranks_are_one():
  def factors(rank):
    return {'q': {'a': np.ones((1, 2, 5, rank)), 'b': np.ones((1, 2, rank, 4))}}

  joined = finalists._joined(factors(2), factors(3))['q']
  assert joined['a'].shape == (2, 2, 5, 3) and joined['b'].shape == (2, 2, 3, 4)
  assert joined['a'][0].sum() == 20 and joined['b'][1].sum() == 24


@pytest.mark.parametrize(
  'options, message',
  [
    ({'optimizer': 'adamv'}, "fine_tuning: Got optimizer 'adamv'"),
    ({'steps': -1}, 'Got config.fine_tuning.steps -1; expected 0 or more'),
    ({'stepz': 1}, 'unknown config.fine_tuning.stepz'),
  ],
)
def test_refuses_settings(options, message):
  with pytest.raises(errors.UserError, match=message):
    setup_lib.fine_tuning(RunConfig.from_config({'fine_tuning': options}))


def test_spaces_have_members_that_are_adapters(finished, tmp_path):
  prepared, _ = finished
  space = prepared.setup.experts
  rng = np.random.default_rng(0)

  def narrow(path, leaf):
    shape = list(leaf.shape)
    shape[-1 if path[-1].key == 'a' else -2] = 2
    return rng.normal(size=shape).astype(np.float32)

  adapter = expression.LowRank(jax.tree.map_with_path(narrow, space.base()))
  genome = space.adapted(adapter)
  assert jax.tree.map(np.shape, genome) == jax.tree.map(np.shape, space.base())
  params = space.model().params
  wanted = expression.fold(params, adapter)
  found = expression.fold(params, space.express(genome))
  whole = WeightSpace((), (), space.model()).adapted(adapter)
  jax.tree.map(np.testing.assert_array_equal, whole, wanted)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    wanted,
  )
