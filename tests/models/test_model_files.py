"""The tensors of model folders: what is refused before and while it is read."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from evojax_llm.models import hub
from tests.models import damage

Q_PROJ = 'model.layers.1.self_attn.q_proj.weight'


def _edit_config(folder, **changes):
  damage.edit_json(folder / 'config.json', **changes)


def _edit_tensors(folder, edit):
  damage.edit_tensors(folder / 'model.safetensors', edit)


def _refused(folder, *parts, load=hub.load_checkpoint):
  return damage.refused(lambda: load(folder), *parts)


def test_no_weights(folder):
  file = folder / 'model.safetensors'
  file.unlink()
  _refused(folder, folder, 'neither model.safetensors nor')
  file.symlink_to('gone.safetensors')
  _refused(folder, file, 'a link to gone.safetensors', 'not there')
  file.unlink()
  file.symlink_to(file.name)
  _refused(folder, file, 'back to itself')
  file.unlink()
  os.mkfifo(file)
  _refused(folder, file, 'is a FIFO')


def test_one_file_beside_shards(shards):
  single = shards / 'model.safetensors'
  shutil.copyfile(sorted(shards.glob('model-*'))[0], single)
  _refused(shards, single.name, 'model-00003-of-00003', 'Remove')


def test_an_index_of_one_file(folder):
  names = load_file(folder / 'model.safetensors')
  index = {'weight_map': dict.fromkeys(names, 'model.safetensors')}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  hub.load_checkpoint(folder)


@pytest.mark.parametrize('value', [np.nan, -np.inf, 1e39])
@pytest.mark.parametrize('name', [Q_PROJ, 'model.embed_tokens.weight'])
def test_weights_that_are_not_finite(value, name, folder):
  def edit(stored):
    stored[name] = stored[name].astype(np.float64)
    stored[name][1, 2] = value

  _edit_tensors(folder, edit)
  _refused(folder, folder / 'model.safetensors', name, 'finite')


def test_numbers_beyond_the_type(folder):
  def edit(stored):
    stored[Q_PROJ][1, 2] = 1e5

  _edit_tensors(folder, edit)
  hub.load_checkpoint(folder, jnp.bfloat16)
  _refused(
    folder, Q_PROJ, 'float16', load=lambda f: hub.load_checkpoint(f, 'float16')
  )


def test_pickle_is_never_opened(folder):
  (folder / 'model.safetensors').unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"exit"\ntR.')
  _refused(folder, 'pytorch_model.bin', 'never opened', 'safe_serialization')


@pytest.mark.parametrize('keep', [0, 4, 100, -1])
def test_truncated(keep, folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:keep])
  _refused(folder, path, 'truncated or damaged')


def test_lfs_pointer(folder):
  path = folder / 'model.safetensors'
  path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:1\n')
  _refused(folder, path, 'git lfs pull')
  (folder / 'config.json').write_text('version https://git-lfs.github.com/...')
  _refused(folder, folder / 'config.json', 'git lfs pull')


def test_missing_tensors(folder):
  def edit(stored):
    for name in [n for n in stored if 'layers.1' in n]:
      del stored[name]

  _edit_tensors(folder, edit)
  message = _refused(
    folder, 'model.safetensors', 'layers.1.self_attn.q_proj.weight', 'of 24'
  )
  assert '(11 of 24)' in message and message.count('layers.1') == 5


def test_extra_tensors(folder):
  _edit_config(folder, num_hidden_layers=1, layer_types=['sliding_attention'])
  _refused(folder, 'model.safetensors', 'extra tensors', '1 layers of gemma2')


def test_unknown_tensors(folder):
  _edit_tensors(folder, lambda s: s.update(score=np.zeros(2, np.float32)))
  _refused(folder, 'model.safetensors', 'score')


def test_misshapen_tensor(folder):
  def edit(stored):
    stored[Q_PROJ] = np.ascontiguousarray(stored[Q_PROJ].T)

  _edit_tensors(folder, edit)
  _refused(folder, 'model.safetensors', Q_PROJ, '(32, 64)', '(64, 32)')


def test_config_of_another_width(folder):
  _edit_config(folder, intermediate_size=40)
  _refused(folder, 'model.safetensors', 'proj.weight', '40', '48')


def test_integer_tensor(folder):
  _edit_tensors(folder, lambda s: s.update({Q_PROJ: s[Q_PROJ].astype(np.int8)}))
  _refused(folder, Q_PROJ, 'I8', 'expected one of F64, F32, F16, BF16')


def test_untied_lm_head(folder):
  def edit(stored):
    stored['lm_head.weight'] = stored['model.embed_tokens.weight'] * 2

  _edit_tensors(folder, edit)
  _refused(folder, 'lm_head.weight', 'differs from the embedding')


def test_the_same_tensor_twice(folder):
  def edit(stored):
    stored['language_model.model.norm.weight'] = stored['model.norm.weight']

  _edit_tensors(folder, edit)
  _refused(folder, 'language_model.model.norm.weight', 'are the same tensor')


def test_missing_shard(shards):
  file = sorted(shards.glob('model-*'))[1]
  file.unlink()
  _refused(shards, file, 'no such file')


def test_index_of_other_shards(shards):
  first, second, _ = sorted(shards.glob('model-*'))
  shutil.copyfile(first, second)
  _refused(shards, 'model.safetensors.index.json', 'file lacks')


def test_broken_index(shards):
  path = shards / 'model.safetensors.index.json'
  path.write_text('{"weight_map": {"a": "../../secret"}}')
  _refused(shards, path, '../../secret')
  path.write_text('{}')
  _refused(shards, path, 'no weight_map')
