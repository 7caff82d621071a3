"""The inputs of a run, found again or missed."""

import json
import os
import shutil

import pytest

from evojax_llm.runs import errors
from evojax_llm.runs import inputs
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs.run_config import RunConfig


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run folder whose inputs were named from the folder above it."""
  monkeypatch.chdir(tmp_path)
  for name, file in (
    ('base', 'config.json'),
    ('x', 'adapter_config.json'),
    ('y', 'adapter_config.json'),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text(f'{{"name": "{name}"}}')
  config = RunConfig(model='base', adapters='x,y')
  files = inputs.locate(config)
  record.RunFolder(
    tmp_path / 'run',
    config.to_dict(),
    recorded_inputs.of_folders(files),
    recorded_inputs.paths(files),
  ).close()
  return tmp_path / 'run'


def _nothing(folder):
  pass


def _elsewhere(folder):
  """As from another folder, in which the same names are of other things."""
  other = folder / 'other' / 'base'
  other.mkdir(parents=True)
  (other / 'config.json').write_text('{}')
  os.chdir(folder / 'other')


def _notes(folder):
  (folder / 'x' / 'README.md').write_text('what it is')


def _change(folder):
  (folder / 'base' / 'config.json').write_text('{"name": "Base"}')


def _swap(folder):
  for name, other in (('x', 'y'), ('y', 'x')):
    text = f'{{"name": "{other}"}}'
    (folder / name / 'adapter_config.json').write_text(text)


def _move(folder):
  """The run and its inputs together, as into a container."""
  os.chdir('/')
  shutil.move(folder, folder.with_name('moved'))
  os.chdir(folder.with_name('moved'))


def _lose(folder):
  shutil.rmtree(folder / 'y')


def _damage(folder):
  path = folder / 'run' / 'config.json'
  kept = json.loads(path.read_text())
  del kept['inputs']['adapters']
  path.write_text(json.dumps(kept))


def _of_an_earlier_version(folder):
  path = folder / 'run' / 'config.json'
  kept = json.loads(path.read_text())
  del kept['files']
  kept['inputs']['model'] = 'made otherwise'
  path.write_text(json.dumps(kept))


def _cut(folder):
  path = folder / 'run' / 'config.json'
  path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_nothing, None),
    (_elsewhere, None),
    (_notes, None),
    (_move, None),
    (_of_an_earlier_version, None),
    (_change, r'base \(model\) has changed'),
    (_swap, r'x \(one of config\.adapters\) has changed(.|\n)*y \(one of'),
    (_lose, r'y \(one of config\.adapters of .* is not there any more'),
    (_damage, r"config\.json is damaged: no 'adapters'"),
    (_cut, r'config\.json: not valid JSON'),
  ],
)
def test_inputs_are_what_the_run_had(run, tmp_path, capsys, change, message):
  change(tmp_path)
  run = run if run.exists() else tmp_path.with_name('moved') / 'run'
  if message is None:
    config, files = recorded_inputs.find(run)
    assert config.adapters == 'x,y' and files.name == 'base'
    found = [files.model, *files.adapters]
    assert [path.name for path in found] == ['base', 'x', 'y']
    kept = (path.resolve().parent for path in found)
    assert set(kept) == {run.parent}
    return
  with pytest.raises(errors.UserError, match=message):
    recorded_inputs.find(run)
  if 'changed' in message:
    recorded_inputs.find(run, allow_changed=True)
    assert 'warning: the inputs are not' in capsys.readouterr().err


def test_a_run_does_not_go_on_with_inputs_that_changed(run, tmp_path):
  config = RunConfig(model='base', adapters='x,y')
  _swap(tmp_path)
  files = inputs.locate(config)
  with pytest.raises(errors.CheckpointError) as error:
    record.RunFolder(
      run,
      config.to_dict(),
      recorded_inputs.of_folders(files),
      recorded_inputs.paths(files),
    )
  for name in ('x', 'y'):
    line = f'{tmp_path / name}: not what the run has read of it (adapters)'
    assert line in str(error.value)


def test_a_fingerprint_is_of_the_content(tmp_path, monkeypatch):
  monkeypatch.setattr(recorded_inputs, '_WHOLE', 1000)
  monkeypatch.setattr(recorded_inputs, '_SAMPLE_BYTES', 16)
  folder, moved = tmp_path / 'folder', tmp_path / 'moved'
  folder.mkdir()
  (folder / 'x.json').write_text('abc')
  (folder / 'y.safetensors').write_bytes(bytes(5000))
  before = recorded_inputs.fingerprint(folder)
  folder.rename(moved)
  assert recorded_inputs.fingerprint(moved) == before
  (moved / 'x.json').write_text('abd')
  assert recorded_inputs.fingerprint(moved) != before
  (moved / 'x.json').write_text('abc')
  # A large file of the same size, of which parts are read.
  (moved / 'y.safetensors').write_bytes(bytes(4990) + b'tuned base')
  assert recorded_inputs.fingerprint(moved) != before
