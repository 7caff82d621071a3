"""Model folders: what is read, what is written, what is refused."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from evojax_llm.models import folders
from evojax_llm.models import hub
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.transformer import init_params
from tests import tiny
from tests.models import cases
from tests.models import damage

ROOT = pathlib.Path(__file__).parents[2]
Q_PROJ = 'model.layers.1.self_attn.q_proj.weight'


def _edit_config(folder, **changes):
  damage.edit_json(folder / 'config.json', **changes)


def _edit_tensors(folder, edit):
  damage.edit_tensors(folder / 'model.safetensors', edit)


def _refused(folder, *parts, load=hub.load_checkpoint):
  return damage.refused(lambda: load(folder), *parts)


def _same(x, y):
  jax.tree.map(np.testing.assert_array_equal, x, y)


def test_load_model(tiny_gemma_folder, tiny_adapter_folders):
  folder = tiny_gemma_folder('gemma2')
  model = hub.load_model(folder, dtype=jnp.bfloat16)
  config, params = hub.load_checkpoint(folder, jnp.bfloat16)
  assert model.config == config
  _same(model.params, params)
  assert model.tokenizer.encode('a cat')[0] == tiny.BOS
  adapters = tiny_adapter_folders(2)
  of_model, of_config = (load_adapters(adapters, m) for m in (model, config))
  _same(of_model.factors, of_config.factors)


def test_load_model_asks_for_the_tokenizer_before_it_reads_weights(folder):
  (folder / 'tokenizer.json').unlink()
  (folder / 'model.safetensors').unlink()
  _refused(folder, 'tokenizer.json', load=hub.load_model)


@pytest.mark.parametrize('model_type', tiny.MODEL_TYPES)
def test_tree_is_that_of_the_model(model_type, tiny_gemma_folder):
  config, params = hub.load_checkpoint(tiny_gemma_folder(model_type))
  expected = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  for leaf, like in zip(
    jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert isinstance(leaf, jax.Array)


def test_kernels_are_transposed_and_stacked(folder):
  _, params = hub.load_checkpoint(folder)
  stored = load_file(folder / 'model.safetensors')
  np.testing.assert_array_equal(
    params['layers']['self_attn']['q_proj']['kernel'][1], stored[Q_PROJ].T
  )
  np.testing.assert_array_equal(
    params['embedder']['embedding'], stored['model.embed_tokens.weight']
  )


def test_shards_are_one_file(tiny_gemma_folder):
  _same(
    hub.load_checkpoint(tiny_gemma_folder('gemma2'))[1],
    hub.load_checkpoint(tiny_gemma_folder('gemma2', shards=3))[1],
  )


@pytest.mark.parametrize('stored', ['float32', 'bfloat16', 'float16'])
def test_dtypes(stored, tiny_gemma_folder):
  folder = tiny_gemma_folder('gemma3_text', dtype=stored)
  _, kept = hub.load_checkpoint(folder, dtype=None)
  _, as_f32 = hub.load_checkpoint(folder)
  _, as_bf16 = hub.load_checkpoint(folder, dtype=jnp.bfloat16)
  for k, f, b in zip(
    *map(jax.tree.leaves, (kept, as_f32, as_bf16)), strict=True
  ):
    assert (k.dtype, f.dtype) == (np.dtype(cases.DTYPES[stored]), np.float32)
    np.testing.assert_array_equal(f, np.asarray(k).astype(np.float32))
    np.testing.assert_array_equal(b, np.asarray(k).astype(jnp.bfloat16))


@pytest.mark.parametrize('stored', ['bfloat16', 'float32'])
def test_parts_make_the_same_leaves(stored, tiny_gemma_folder, monkeypatch):
  folder = tiny_gemma_folder('gemma2', dtype=stored)
  read = load_file(folder / 'model.safetensors')
  monkeypatch.setattr(folders, '_PART', 100)  # Three rows of 32 numbers.
  for dtype in (None, jnp.float32, jnp.float16):
    _, params = hub.load_checkpoint(folder, dtype)
    layers = params['layers']['self_attn']['q_proj']['kernel']
    tensor = read[Q_PROJ]
    expected = tensor.astype(dtype or tensor.dtype).T
    assert layers.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(layers[1]), expected)
    tensor = read['model.embed_tokens.weight']
    np.testing.assert_array_equal(
      np.asarray(params['embedder']['embedding']),
      tensor.astype(dtype or tensor.dtype),
    )


def test_place_gets_each_leaf(tiny_gemma_folder):
  seen = []
  _, params = hub.load_checkpoint(
    tiny_gemma_folder('gemma'), place=lambda x: seen.append(x.shape) or x
  )
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  assert sorted(seen) == sorted(x.shape for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
  'prefix',
  ['', 'model.', 'language_model.model.', 'model.language_model.'],
)
def test_spellings_of_the_prefix(prefix, folder):
  _, expected = hub.load_checkpoint(folder)

  def edit(stored):
    for name in list(stored):
      stored[prefix + name.removeprefix('model.')] = stored.pop(name)
    for name in ('vision_tower.x.weight', 'model.multi_modal_projector.y'):
      stored[name] = np.zeros(3, np.float32)

  _edit_tensors(folder, edit)
  _same(hub.load_checkpoint(folder)[1], expected)


def test_tied_lm_head_is_ignored(folder):
  _, expected = hub.load_checkpoint(folder)

  def edit(stored):
    stored['lm_head.weight'] = stored['model.embed_tokens.weight']
    stored['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(
      8, np.float32
    )

  _edit_tensors(folder, edit)
  _same(hub.load_checkpoint(folder)[1], expected)


def test_old_configurations_are_read(tmp_path):
  """Keys that transformers 4 wrote mean the same."""
  case = cases.CASES[4]
  folder = cases.write_model(tmp_path / 'm', case)
  config = hub.load_config(folder)[0]
  path = folder / 'config.json'
  raw = json.loads(path.read_text())
  del raw['rope_parameters'], raw['dtype']
  raw |= dict(
    rope_theta=20_000.0,
    rope_scaling={'rope_type': 'linear', 'factor': 8.0},
    rope_local_base_freq=100.0,
    torch_dtype='float32',
  )
  path.write_text(json.dumps(raw))
  assert hub.load_config(folder)[0] == config


_LOADING = """
import sys
from evojax_llm.models import hub, peft, tokenizer
assert not {'transformers', 'torch'} & set(sys.modules)
hub.load_config(sys.argv[1])
"""


def test_transformers_is_imported_late_and_quietly(tiny_gemma_folder):
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  del environment['TRANSFORMERS_NO_ADVISORY_WARNINGS']
  done = subprocess.run(
    [sys.executable, '-c', _LOADING, str(tiny_gemma_folder('gemma2'))],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


# Refusals.


def test_no_folder(tmp_path, monkeypatch):
  _refused(tmp_path / 'absent', tmp_path / 'absent', 'does not exist')
  _refused('gemma', 'gemma: does not exist', 'expected a model folder')
  for name in ('gemma-toy', 'other'):
    (tmp_path / 'here' / name).mkdir(parents=True)
  hint = "Did you mean 'gemma-toy'?"
  near = tmp_path / 'here' / 'gemma-toyy'
  _refused(near, hint, f'{tmp_path / "here"}/ has gemma-toy, other.')
  monkeypatch.chdir(tmp_path)
  # With a slash it looks like a name of the hub.
  _refused('here/nope', 'layout. here/ has gemma-toy, other.')
  monkeypatch.chdir(tmp_path / 'here')
  _refused('gemma-toyy', hint)
  # pathlib raises on these.
  _refused('~nobody_has_this_name/m', 'does not exist')
  _refused('m' * 5000, 'does not exist')


def test_names_of_the_hub_are_looked_up_in_its_cache(
  tiny_gemma_folder, tmp_path, monkeypatch
):
  name = 'google/gemma-2-2b-it'
  for variable in ('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv('HF_HOME', str(tmp_path))
  repository = tmp_path / 'hub' / 'models--google--gemma-2-2b-it'
  hint = f'hf download {name} --local-dir=gemma-2-2b-it'
  _refused(name, name, tmp_path / 'hub', hint)
  for commit in ('0ld', 'n3w'):
    (repository / 'snapshots' / commit).mkdir(parents=True)
  for file in tiny_gemma_folder('gemma2').iterdir():
    (repository / 'snapshots' / 'n3w' / file.name).symlink_to(file)
  _refused(name, 'has 2 snapshots')
  (repository / 'refs').mkdir()
  (repository / 'refs' / 'main').write_text('n3w')
  assert hub.load_model(name).config == hub.load_config(name)[0]
  snapshot = folders.existing_folder(name, 'a model')
  assert folders.model_name(snapshot) == name
  assert folders.expert_names([snapshot, tmp_path]) == (
    'gemma-2-2b-it',
    tmp_path.name,
  )
  # One snapshot is taken without refs; another variable has another cache.
  shutil.rmtree(repository / 'refs')
  (repository / 'snapshots' / '0ld').rmdir()
  hub.load_config(name)
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'other'))
  _refused(name, tmp_path / 'other', hint)
  for odd in ('google/../gemma', 'google/gemma/x', '/google/gemma'):
    _refused(odd, f'{odd}: does not exist')


def test_a_file_is_no_folder(folder):
  _refused(folder / 'config.json', 'is a file', 'expected a model folder')


def test_no_config(folder):
  (folder / 'config.json').unlink()
  _refused(folder, folder / 'config.json', 'no such file')


def test_broken_json(folder):
  (folder / 'config.json').write_text('{"model_type": "gemma2",')
  _refused(folder, 'config.json', 'not valid JSON at column 25')
  (folder / 'config.json').write_text('[]')
  _refused(folder, 'config.json', 'JSON list', 'expected an object')


@pytest.mark.parametrize('model_type', ['phi3', 'gemma9', None, 'paligemma'])
def test_other_model_types(model_type, folder):
  _edit_config(folder, model_type=model_type)
  _refused(folder, 'config.json', repr(model_type), 'gemma3_text')


def test_adapter_given_as_base(folder):
  _edit_config(folder, model_type=None, peft_type='LORA')
  _refused(folder, 'adapter folder')


@pytest.mark.parametrize(
  'change, part',
  [
    (dict(hidden_size='wide'), 'hidden_size'),
    (dict(hidden_activation='relu'), "'relu'"),
    (dict(attention_bias=True), 'attention_bias'),
    (dict(tie_word_embeddings=False), 'tie_word_embeddings'),
    (dict(use_bidirectional_attention=True), 'use_bidirectional_attention'),
    (dict(sliding_window=None), 'sliding_window'),
    (dict(num_key_value_heads=3), 'num_key_value_heads'),
    (dict(layer_types=['full_attention']), 'layer'),
    (
      dict(
        rope_parameters={
          'rope_type': 'dynamic',
          'factor': 2.0,
          'rope_theta': 9.0,
        }
      ),
      "'dynamic'",
    ),
    (dict(quantization_config={'quant_method': 'x'}), 'quantization_config'),
    (dict(sliding_window=-4), 'sliding_window is -4; expected a whole number'),
    (dict(sliding_window=2.5), 'sliding_window is 2.5'),
    (dict(sliding_window=10**10), 'sliding_window is 10000000000'),
    (dict(attn_logit_softcapping=0.0), 'attn_logit_softcapping is 0.0'),
    (dict(final_logit_softcapping='1'), "final_logit_softcapping is '1'"),
    (dict(query_pre_attn_scalar=0), 'query_pre_attn_scalar is 0'),
    (dict(head_dim=-8), 'head_dim is -8'),
    (dict(head_dim=True), 'head_dim is True'),
    (dict(num_hidden_layers=10**9), 'num_hidden_layers is 1000000000'),
    (dict(num_labels=10**9), 'num_labels is 1000000000'),
    (dict(layer_types='full'), "layer_types is 'full'"),
    (dict(rope_parameters=[1]), 'rope_parameters: is [1]'),
    (dict(rope_scaling={'factor': 0}), 'rope_scaling: factor is 0'),
    (dict(text_config=7), 'text_config: is 7'),
  ],
  ids=str,
)
def test_configurations_refused(change, part, folder):
  _edit_config(folder, **change)
  _refused(folder, folder / 'config.json', part, load=hub.load_config)
