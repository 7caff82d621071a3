"""The dense experts of the pocket, as a user meets them."""

import json

import jax
import numpy as np
import pytest

from evojax_llm import pocket
from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.population import stack
from experiments.pocket import data
from experiments.pocket import train
from tests.experiments import running

_NAME = 'dense_00_sor_com_evn'


def _accuracy(config, params, name):
  content = json.loads(pocket.task_file(name).read_text())
  rows = data.rows(data.examples_of(content, 'dev'), data.SCORED_LENGTH)
  return float(np.mean(train.exact_match(config, params, rows)))


def test_an_extracted_adapter_scores_as_the_model_does(tmp_path, capsys):
  config, base = hub.load_checkpoint(pocket.base_folder())
  _, tuned = hub.load_checkpoint(pocket.expert_folder(_NAME))
  # What no adapter holds stays that of the base.
  known = jax.tree.map_with_path(
    lambda path, new, old: new if path[-1].key == 'kernel' else old, tuned, base
  )
  wanted = _accuracy(config, known, 'sor')
  found = {}
  for rank in (2, 128):
    out = tmp_path / str(rank)
    flags = [f'--model=pocket:{_NAME}', '--base=pocket', f'--rank={rank}']
    assert running.run_program('extract', *flags, f'--out={out}') is None
    said = capsys.readouterr().out
    assert f'rank {rank}, 42 matrices; residual' in said
    assert '| mlp.up_proj ' in said and 'not in the adapter: ' in said
    space = make_space('weights', 'pocket', [out])
    folded = stack.take(space.experts(), 0)
    found[rank] = _accuracy(config, folded, 'sor')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), folded, known
  )
  assert found[128] == wanted > found[2] > _accuracy(config, base, 'sor')


@pytest.mark.parametrize(
  'settings',
  [
    ['--config=genome_plus', '--config.space=weights'],
    [
      '--config=cma_es',
      '--config.space=merged',
      '--config.merged.on=weights',
      '--config.merged.method=task_arithmetic',
      '--config.merged.evolve=weights',
    ],
  ],
)
def test_a_search_over_dense_experts_exports_what_it_scored(settings, tmp_path):
  run, out = tmp_path / 'run', tmp_path / 'out'
  scores = tmp_path / 'scores.json'
  settings = [
    *settings,
    '--config.experts=pocket',
    '--config.initial=experts,extrapolants',
    '--config.strategy.population=5',
    '--config.strategy.generations=1',
    '--config.ensemble.size=0',
    '--config.tasks=max,cmp',
    '--config.dev_limit=10',
    '--config.test_limit=4',
    f'--workdir={run}',
  ]
  assert running.run_program('evolve', *settings) is None
  summary = json.loads((run / 'summary.json').read_text())
  assert summary['search']['experts'] == list(pocket.dense_names())
  export = [f'--run={run}', f'--out={out}', '--dtype=float32']
  assert running.run_program('export', *export) is None
  score = [f'--model={out}', '--tasks=max,cmp', '--limit=10', f'--out={scores}']
  assert running.run_program('score', *score) is None
  (member,) = json.loads(scores.read_text())['members']
  found = np.mean([task['score'] for task in member['tasks'].values()])
  assert found == pytest.approx(summary['best']['fitness'], abs=1e-6)
