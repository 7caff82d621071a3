"""The builder, end to end, with everything as small as it goes."""

import json

import jax
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models import peft
from experiments.pocket import data
from experiments.pocket import folders
from experiments.pocket import score
from experiments.pocket import slices
from experiments.pocket import train
from tests.experiments.running import run_program

_TINY = (
  '--seed=1',
  '--layers=2',
  '--width=16',
  '--ffn=16',
  '--base_steps=3',
  '--base_batch=4',
  '--expert_steps=2',
  '--expert_batch=2',
  '--num_dev=4',
  '--num_test=6',
)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pocket')
  run_program('pocket.build', f'--out={folder}', *_TINY)
  return folder


def test_build_writes_folders_that_load(built):
  config, params = hub.load_checkpoint(built / 'base')
  assert config.model_type == 'gemma2'
  assert sum(x.size for x in jax.tree.leaves(params)) == config.num_params
  experts = peft.load_adapters(sorted((built / 'experts').iterdir()), config)
  assert experts.names == tuple(slices.expert_slices())
  assert experts.rank == 8
  for block in experts.scale['layers'].values():
    for value in block.values():
      np.testing.assert_array_equal(value, 2.0)


def test_experts_start_from_the_same_a_and_learn_apart(built):
  config, _ = hub.load_checkpoint(built / 'base')
  experts = peft.load_adapters(sorted((built / 'experts').iterdir()), config)
  first = train.initial_adapter(config, 8, seed=1)['layers']
  for block, projections in experts.factors['layers'].items():
    for name, pair in projections.items():
      # Two steps at a rate of 3e-3 cannot move an element further.
      start = np.asarray(first[block][name]['a'])
      np.testing.assert_allclose(
        pair['a'], start[None].repeat(10, 0), atol=0.01
      )
      assert np.any(pair['b'][0] != pair['b'][1])


def test_dense_experts_are_models_near_the_base(built):
  config, base = hub.load_checkpoint(built / 'base')
  folders_ = sorted((built / 'dense').iterdir())
  assert [f.name for f in folders_] == list(slices.dense_slices())
  embeddings = []
  for folder in folders_:
    same, params = hub.load_checkpoint(folder)
    assert same == config
    embeddings.append(params['embedder']['embedding'])
    # Two steps, of the rate of the second at most.
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=3e-3, rtol=2**-7),
      params,
      base,
    )
    assert np.any(embeddings[-1] != base['embedder']['embedding'])
  assert np.any(embeddings[0] != embeddings[1])


def test_dense_experts_are_built_alone(built):
  kept = {
    f: f.read_bytes()
    for f in built.rglob('*')
    if f.is_file() and built / 'dense' not in f.parents
  }
  before = (built / 'dense').stat().st_mtime_ns
  flags = [f'--out={built}', *_TINY, '--dense']
  assert run_program('pocket.build', *flags) == 1
  assert (built / 'dense').stat().st_mtime_ns == before
  run_program('pocket.build', *flags, '--overwrite')
  assert len(list((built / 'dense').iterdir())) == 4
  assert all(f.read_bytes() == same for f, same in kept.items())


def test_build_writes_tasks_and_stages(built):
  names = {p.stem for p in (built / 'tasks').glob('*.json')}
  assert names == set(slices.task_families())
  stages = json.loads((built / 'stages.json').read_text())
  assert {name: tuple(s) for name, s in stages.items()} == slices.stages()
  assert set().union(*stages.values()) <= names
  task = json.loads((built / 'tasks' / 'sor.json').read_text())
  assert task == data.task('sor', 4, 6, seed=1)


def test_build_refuses_to_overwrite(built, capsys):
  weights = built / 'base' / 'model.safetensors'
  before = weights.read_bytes()
  assert run_program('pocket.build', f'--out={built}', *_TINY) == 1
  assert 'already holds base' in capsys.readouterr().err
  assert weights.read_bytes() == before


def test_build_keeps_the_base_when_told_to(built):
  weights = built / 'base' / 'model.safetensors'
  before = weights.read_bytes()
  run_program(
    'pocket.build', f'--out={built}', *_TINY, '--reuse_base', '--overwrite'
  )
  assert weights.read_bytes() == before
  assert len(list((built / 'experts').iterdir())) == 10


def test_training_lowers_the_loss(tmp_path):
  config = folders.start_base(tmp_path / 'base', folders.base_config(2, 32, 48))
  mixture = data.Mixture({'upc': 1.0}, set(), 'x')
  recipe = train.Recipe(40, 16, 3e-3, 5, seed=0)
  model = train.Transformer(config)
  batch = data.rows(data.Mixture({'upc': 1.0}, set(), 'y').examples(64))

  def loss(params):
    with jax.numpy_dtype_promotion('standard'):
      return float(train.answer_loss(model, {'params': params}, batch))

  before = loss(train.initial_params(config, 0))
  after = loss(train.train_base(config, mixture, recipe))
  assert after < before - 1.0


def test_no_member_picks_two_options(built):
  config, params = hub.load_checkpoint(built / 'base')
  lora = train.initial_adapter(config, 8, seed=0)
  population = jax.tree.map(lambda x: x[None], lora)
  task = json.loads((built / 'tasks' / 'max.json').read_text())
  rows = score.split_rows(task, 'test')
  found = score.correct(config, params, population, rows)
  assert found.shape == (1, 6)
  swapped = score.Rows(rows.batch, (rows.gold + 1) % 3)
  other = score.correct(config, params, population, swapped)
  assert not np.any(found & other)
