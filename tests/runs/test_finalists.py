"""Searches that end with the best of their last population."""

import json
import shutil

import numpy as np
import pytest

from evojax_llm.engine import forms
from evojax_llm.population import stack
from evojax_llm.runs import finalists
from evojax_llm.runs import inputs
from evojax_llm.runs import preparation
from evojax_llm.runs import setup
from evojax_llm.runs.checkpoint import Checkpoints
from evojax_llm.runs.run_config import RunConfig
from tests.experiments import running
from tests.experiments import runs

ADAPTER = 'adapter_model.safetensors'


@pytest.fixture(scope='module')
def forgetful(settings, tmp_path_factory):
  """A run whose last round moves all members, the best too, and scores none."""
  folder = tmp_path_factory.mktemp('outcome') / 'run'
  runs.evolve(
    settings,
    folder,
    '--config.strategy.options.keep_best=False',
    '--config.strategy.options.rescore=False',
    '--config.strategy.generations=3',
  )
  return folder


def test_a_run_ends_with_the_best_of_its_last_population(forgetful):
  summary = runs.summary(forgetful)
  _, state = Checkpoints(forgetful / 'checkpoints').read()
  alive = state['strategy']
  memory = alive['memory']
  place = np.lexsort((alive['ids'], -alive['fitness']))[0]
  row = runs.row(summary)
  assert row['detail'] == f'member {int(alive["ids"][place])}'
  assert row['evaluations'] == int(state['evaluations'])
  voters = summary['ensembles']['ensemble of evolved']['members']
  assert set(voters) <= set(alive['ids'].tolist())
  last = json.loads((forgetful / 'metrics.jsonl').read_text().splitlines()[-1])
  assert last['best_id'] == int(memory['best_id'])

  # What is exported is the member that moved, and its row has its scores.
  config = json.loads((forgetful / 'config.json').read_text())['config']
  config['adapters'] = str(forgetful / 'best')
  config = RunConfig.from_config(config)
  best = setup.load(config, inputs.locate(config))
  exported = best.experts.experts()['layers']['mlp']['up_proj']['a'][0]
  for tree, index, same in (
    (alive['population'], place, True),
    (memory['best'], ..., False),
  ):
    found = tree['layers']['mlp']['up_proj']['a'][index]
    assert np.array_equal(exported, found) == same
  evaluator = setup.make_evaluator(config, best)
  scores = evaluator.evaluate(best.experts, best.experts.experts())
  dev = float(scores.fitness[0])
  assert row['dev']['fitness']['score'] == pytest.approx(dev, abs=1e-6)
  assert dev != pytest.approx(float(alive['fitness'][place]), abs=1e-6)


def test_so_does_what_is_exported_before_the_end(forgetful, tmp_path):
  folder, out = tmp_path / 'unfinished', tmp_path / 'out'
  shutil.copytree(forgetful, folder)
  (folder / 'summary.json').unlink()
  flags = f'--run={folder}', f'--out={out}', '--allow_unfinished'
  assert running.run_program('export', *flags) is None
  assert (out / ADAPTER).read_bytes() == (
    forgetful / 'best' / ADAPTER
  ).read_bytes()


@pytest.mark.parametrize('form', forms.FORMS)
@pytest.mark.parametrize('space', ['adapters', 'gates'])
def test_another_number_of_finalists_compiles_nothing(
  forgetful, tmp_path, form, space
):
  kept = json.loads((forgetful / 'config.json').read_text())['config']
  heldout = runs.write_task(tmp_path / 'heldout.json', test=4, seed=2)
  kept |= {'space': space, 'heldout_tasks': [str(heldout)]}
  kept['strategy'] |= {'name': 'random_search', 'options': {}, 'population': 16}
  kept['execution'] |= {'form': form}
  prepared = preparation.prepare(kept | {'dev_limit': 4, 'test_limit': 4})
  evaluator, heldout = prepared.evaluator, prepared.heldout()
  members = prepared.initial().population
  compiled = []
  for count in (13, 14, 15):
    some = stack.take(members, np.arange(count - 3))
    found = finalists.Finalists(
      prepared.setup, [], range(3), range(count - 3), some
    )
    for reader, split in ((evaluator, 'test'), (heldout, 'dev')):
      scores = found.score(reader, split, lambda _: None, 16)
      assert np.isfinite(scores.fitness).all() and len(scores.fitness) == count
    programs = evaluator.ledger.programs, heldout.ledger.programs
    compiled.append(programs)
  assert compiled[0] == compiled[1] == compiled[2]
