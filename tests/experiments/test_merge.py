"""The programs merge and extract, on Gemma folders that the engine loads."""

import json

import numpy as np
import pytest

from evojax_llm.models import hub
from tests import tiny
from tests.experiments.running import run_program
from tests.recipes import folders


@pytest.fixture(scope='module')
def merged(tiny_gemma_folder, tiny_adapter_folders, tmp_path_factory):
  """A folder merged of a Gemma and of the same with an adapter."""
  root = tmp_path_factory.mktemp('merged')
  base, adapter = tiny_gemma_folder(), tiny_adapter_folders(1)[0]
  (root / 'r.yaml').write_text(
    'merge_method: linear\n'
    f'models:\n- model: {base}+{adapter}\n- model: {base}\n'
    'parameters: {weight: 0.5}\n'
    'chat_template: chatml\n'
  )
  return root


def test_a_merged_gemma_is_scored(
  merged, tiny_gemma_folder, tiny_adapter_folders, tmp_path, capsys
):
  recipe, out = f'--recipe={merged / "r.yaml"}', tmp_path / 'out'
  assert run_program('merge', recipe, '--dry_run') is None
  shown = capsys.readouterr().out
  assert 'linear of 2 folders' in shown
  assert 'layers.1.mlp.up_proj.weight F32[48, 32]: linear of' in shown
  assert 'weights=[0.5, 0.5]' in shown
  assert not out.exists()
  assert (
    run_program('merge', recipe, f'--out={out}', '--shard_size=90KB') is None
  )
  assert len(list(out.glob('*.safetensors'))) > 1
  base, adapter = tiny_gemma_folder(), tiny_adapter_folders(1)[0]
  name = 'layers.1.mlp.up_proj'
  factors = folders.load_adapter(adapter, name)
  start = folders.load(base)[f'model.{name}.weight']
  expected = start + 0.5 * 2.0 * factors['B'] @ factors['A']
  found = hub.load_model(out)
  kernel = found.params['layers']['mlp']['up_proj']['kernel']
  np.testing.assert_allclose(kernel[1].T, expected, rtol=1e-4, atol=1e-5)
  assert '<|im_start|>' in (out / 'chat_template.jinja').read_text()
  task = tmp_path / 'say.json'
  rows = [{'question': 'tea', 'choices': {'A': 'a', 'B': 'b'}, 'answer': 'A'}]
  task.write_text(json.dumps({'name': 'say', 'dev': rows}))
  scores = tmp_path / 'scores.json'
  flags = [f'--model={out}', f'--tasks={task}', f'--out={scores}']
  assert run_program('score', *flags, '--split=dev') is None
  assert json.loads(scores.read_text())['members'][0]['tasks']['say']['n'] == 1


@pytest.mark.parametrize(
  'flags, part',
  [
    (['--out=x', '--recipe=gone.yaml'], 'gone.yaml: no such file'),
    (['--recipe=r.yaml'], '--out is missing'),
    (['--recipe=r.yaml', '--out=x', '--shard_size=5 apples'], 'such as 5GB'),
  ],
)
def test_mistakes_are_one_line(flags, part, capsys):
  assert run_program('merge', *flags) == 1
  said = capsys.readouterr().err
  assert said.startswith('error: ') and part in said


def test_a_folder_that_is_read_is_not_written(
  merged, tiny_gemma_folder, capsys
):
  base = tiny_gemma_folder()
  for out in (base, base / 'inside', base.parent):
    flags = [f'--recipe={merged / "r.yaml"}', f'--out={out}', '--overwrite']
    assert run_program('merge', *flags) == 1
    assert 'this command reads' in capsys.readouterr().err


def test_an_adapter_is_extracted(tiny_gemma_folder, tmp_path, capsys):
  base = tiny_gemma_folder()
  tuned = tiny.write_gemma(tmp_path / 'tuned', seed=1)
  flags = [f'--model={tuned}', f'--base={base}', f'--out={tmp_path / "a"}']
  assert run_program('extract', *flags, '--rank=4') is None
  said = capsys.readouterr().out
  assert 'rank 4, 14 matrices; residual 0.' in said
  assert 'not in the adapter: 10 other tensors' in said
  from evojax_llm.models import peft

  found = peft.load_adapters([tmp_path / 'a'], hub.load_model(base).config)
  assert found.rank == 4
