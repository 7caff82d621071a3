"""The export program, on runs of the evolve program."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.models.expression import variables
from evojax_llm.models.transformer import Gemma
from tests.experiments import running


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(scope='module')
def run_folder(finished):
  return finished[0]


@pytest.fixture
def unfinished(run_folder, tmp_path):
  folder = tmp_path / 'unfinished'
  shutil.copytree(run_folder, folder)
  (folder / 'summary.json').unlink()
  shutil.rmtree(folder / 'best')
  return folder


def test_the_adapter_is_that_of_the_run(run_folder, tmp_path):
  out = tmp_path / 'out'
  assert (
    running.run_program('export', f'--run={run_folder}', f'--out={out}') is None
  )
  for file in (run_folder / 'best').iterdir():
    assert (out / file.name).read_bytes() == file.read_bytes()


def test_the_merged_model_computes_what_base_and_adapter_do(
  run_folder, base, tmp_path
):
  out = tmp_path / 'model'
  code = running.run_program(
    'export', f'--run={run_folder}', f'--out={out}', '--merged'
  )
  assert code is None
  _, merged = hub.load_checkpoint(out)
  space = make_space('adapters', base, [run_folder / 'best'])
  params = space.model().params
  member = space.express(jax.tree.map(lambda leaf: leaf[0], space.experts()))
  tokens = jnp.arange(6, 18, dtype=jnp.int32)[None]
  positions = jnp.arange(12, dtype=jnp.int32)[None]
  model = Gemma(space.model().config)
  apart, _ = model.apply(variables(params, member), tokens, positions)
  together, _ = model.apply({'params': merged}, tokens, positions)
  alone, _ = model.apply({'params': params}, tokens, positions)
  np.testing.assert_allclose(together, apart, atol=2e-4)
  assert np.abs(np.asarray(alone) - np.asarray(apart)).max() > 1e-2
  assert (out / 'tokenizer.json').is_file()


def test_an_unfinished_run_needs_to_be_allowed(
  run_folder, unfinished, tmp_path, capsys
):
  out = tmp_path / 'out'
  flags = [f'--run={unfinished}', f'--out={out}']
  assert running.run_program('export', *flags) == 1
  assert '--allow_unfinished' in capsys.readouterr().err
  assert not out.exists()
  assert running.run_program('export', *flags, '--allow_unfinished') is None
  name = 'adapter_model.safetensors'
  assert (out / name).read_bytes() == (run_folder / 'best' / name).read_bytes()


def test_what_is_there_is_not_overwritten(run_folder, tmp_path, capsys):
  (tmp_path / 'mine').touch()
  flags = [f'--run={run_folder}', f'--out={tmp_path}']
  assert running.run_program('export', *flags) == 1
  assert 'Nothing is overwritten' in capsys.readouterr().err


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda run: shutil.rmtree(run), 'no config.json'),
    (lambda run: (run / 'config.json').write_text('{'), 'damaged'),
    (lambda run: shutil.rmtree(run / 'checkpoints'), 'no readable checkpoint'),
  ],
)
def test_folders_that_are_no_runs(unfinished, tmp_path, capsys, spoil, message):
  spoil(unfinished)
  code = running.run_program(
    'export',
    f'--run={unfinished}',
    f'--out={tmp_path / "out"}',
    '--allow_unfinished',
  )
  assert code == 1
  assert message in capsys.readouterr().err
