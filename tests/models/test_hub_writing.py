"""Model folders that are written: round trips, shards, refusals."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from evojax_llm.models import hub
from evojax_llm.models import model_files
from evojax_llm.models.errors import ModelError
from tests import tiny

LINEAR = {'rope_type': 'linear', 'factor': 8.0}


@pytest.fixture
def folder(tiny_gemma_folder, tmp_path):
  """A copy of a tiny Gemma 2."""
  source = tiny_gemma_folder('gemma2')
  return pathlib.Path(shutil.copytree(source, tmp_path / 'model'))


def _same(x, y):
  jax.tree.map(np.testing.assert_array_equal, x, y)


def test_round_trip_keeps_bits_and_files(tiny_gemma_folder, tmp_path):
  source = tiny_gemma_folder('gemma3_text', dtype='bfloat16')
  config, params = hub.load_checkpoint(source)
  out = hub.save_checkpoint(tmp_path / 'out', params, config, source)
  assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
  for name in (
    'tokenizer.json',
    'chat_template.jinja',
    'generation_config.json',
  ):
    assert (out / name).read_bytes() == (source / name).read_bytes()
  given = load_file(source / 'model.safetensors')
  written = load_file(out / 'model.safetensors')
  assert given.keys() == written.keys()
  for name, tensor in given.items():
    assert written[name].dtype == tensor.dtype
    np.testing.assert_array_equal(written[name], tensor)


def test_all_side_files_are_kept(folder, tmp_path):
  config, params = hub.load_checkpoint(folder)
  names = (
    'additional_chat_templates/tool_use.jinja',
    'chat_template.json',
    'tokenizer.model',
    'vocab.json',
    'merges.txt',
    'LICENSE.md',
  )
  (folder / 'additional_chat_templates').mkdir()
  for name in names:
    (folder / name).write_text(name)
  (folder / 'training_args.bin').write_text('')
  out = hub.save_checkpoint(tmp_path / 'out', params, config, folder)
  assert [(out / name).read_text() for name in names] == list(names)
  assert not (out / 'training_args.bin').exists()


# What transformers 4 reads of the model type, and 5 does not write.
@pytest.mark.parametrize(
  'model_type, options, expected',
  [
    ('gemma', {'rope_theta': 500.0}, {'rope_theta': 500.0}),
    (
      'gemma2',
      {'rope_parameters': {**LINEAR, 'rope_theta': 700.0}},
      {'rope_theta': 700.0, 'rope_scaling': LINEAR},
    ),
    (
      'gemma3_text',
      {
        'rope_parameters': {
          'full_attention': {**LINEAR, 'rope_theta': 1e6},
          'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
        }
      },
      {
        'rope_theta': 1e6,
        'rope_scaling': LINEAR,
        'rope_local_base_freq': 1e4,
      },
    ),
  ],
)
def test_rotary_embeddings_are_written_for_transformers_4_and_5(
  model_type, options, expected, tmp_path
):
  source = tiny.write_gemma(tmp_path / 'in', model_type, **options)
  config, params = hub.load_checkpoint(source)
  out = hub.save_checkpoint(tmp_path / 'out', params, config, source)
  raw = json.loads((out / 'config.json').read_text())
  assert raw['dtype'] == raw['torch_dtype'] == 'float32'
  for spelling in ('rope_parameters', *expected):
    assert raw.get(spelling), spelling
  assert {k: raw[k] for k in expected} == expected
  # Each spelling alone says the same.
  for other in (['rope_parameters'], list(expected)):
    kept = {k: v for k, v in raw.items() if k not in other}
    (out / 'config.json').write_text(json.dumps(kept))
    assert hub.load_config(out)[0] == config


def test_what_a_type_keeps_of_a_change(folder):
  config, params = hub.load_checkpoint(folder)
  types = hub.stored_types(folder, config, jnp.bfloat16)
  base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rng = np.random.default_rng(0)
  draws = jax.tree.map(lambda x: rng.normal(size=x.shape), base)
  kept = []
  for scale in (1.0, 1e-2, 1e-5):
    changed = jax.tree.map(
      lambda x, d, s=scale: np.asarray(x, np.float32) * (1 + s * d),
      *(base, draws),
    )
    kept.append(hub.kept_change(changed, base, types))
  (large, noise), (medium, _), (small, lost) = kept
  assert large > 0.999 and noise < 0.01
  assert 0.9 < medium <= 1.0
  assert small < 0.01 and lost == pytest.approx(1.0, abs=0.1)
  assert hub.kept_change(base, base, types) == (1.0, 0.0)
  exact = hub.stored_types(folder, config)
  assert hub.kept_change(changed, base, exact) == pytest.approx((1.0, 0.0))


def test_dtype_asked_for(tiny_gemma_folder, tmp_path):
  source = tiny_gemma_folder('gemma2')
  config, params = hub.load_checkpoint(source)
  out = tmp_path / 'out'
  hub.save_checkpoint(out, params, config, source, dtype=jnp.bfloat16)
  assert json.loads((out / 'config.json').read_text())['dtype'] == 'bfloat16'
  _same(
    hub.load_checkpoint(out, dtype=None)[1],
    hub.load_checkpoint(source, dtype=jnp.bfloat16)[1],
  )


def test_shards_are_written(tiny_gemma_folder, tmp_path):
  source = tiny_gemma_folder('gemma2')
  config, params = hub.load_checkpoint(source)
  out = tmp_path / 'out'
  hub.save_checkpoint(out, params, config, source, max_shard_bytes=30_000)
  files = sorted(p.name for p in out.glob('*.safetensors'))
  assert (
    len(files) > 2
    and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  )
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == 4 * config.num_params
  _same(hub.load_checkpoint(out)[1], params)


def test_other_layers_are_written(tiny_gemma_folder, tmp_path):
  """A path through the layers is a folder of another depth."""
  source = tiny_gemma_folder('gemma3_text')
  config, params = hub.load_checkpoint(source)
  path = np.array([2, 0, 1, 1])
  config = dataclasses.replace(
    config,
    num_layers=4,
    layer_types=tuple(config.layer_types[i] for i in path),
  )
  params = params | {
    'layers': jax.tree.map(lambda x: x[path], params['layers'])
  }
  out = hub.save_checkpoint(tmp_path / 'out', params, config, source)
  again, reloaded = hub.load_checkpoint(out)
  assert again == config
  _same(reloaded, params)


def test_nothing_is_overwritten(folder, tmp_path):
  config, params = hub.load_checkpoint(folder)
  before = sorted(folder.iterdir())
  with pytest.raises(ModelError, match='not empty'):
    hub.save_checkpoint(folder, params, config, folder)
  assert sorted(folder.iterdir()) == before
  (tmp_path / 'empty').mkdir()
  hub.save_checkpoint(tmp_path / 'empty', params, config, folder)
  assert (tmp_path / 'empty' / 'model.safetensors').is_file()


def test_a_failed_write_leaves_nothing(folder, tmp_path, monkeypatch):
  config, params = hub.load_checkpoint(folder)

  def fail(*args, **kwargs):
    raise OSError('disk full')

  monkeypatch.setattr(model_files, 'save_file', fail)
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(OSError, match='disk full'):
    hub.save_checkpoint(tmp_path / 'out', params, config, folder)
  assert sorted(os.listdir(tmp_path)) == before


def test_params_must_fit(folder, tmp_path):
  config, params = hub.load_checkpoint(folder)
  short = jax.tree.map(lambda x: x[:1], params['layers'])
  with pytest.raises(ModelError, match=r'kernel.*\(1, 32, 64\).*\(2, 32, 64\)'):
    hub.save_checkpoint(
      tmp_path / 'o', params | {'layers': short}, config, folder
    )
  del params['final_norm']
  with pytest.raises(ModelError, match='final_norm/scale.*None'):
    hub.save_checkpoint(tmp_path / 'o', params, config, folder)
  assert not (tmp_path / 'o').exists()


def test_config_must_be_of_the_same_family(folder, tmp_path):
  config, params = hub.load_checkpoint(folder)
  other = dataclasses.replace(config, attn_softcap=7.0)
  with pytest.raises(ModelError, match=r'attn_softcap 7.0, there 50'):
    hub.save_checkpoint(tmp_path / 'o', params, other, folder)
  assert not (tmp_path / 'o').exists()
