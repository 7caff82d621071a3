"""GGUF files: read as the model folder that they were made from, or refused."""

from importlib import metadata
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from evojax_llm.models import folders
from evojax_llm.models import gguf_config
from evojax_llm.models import gguf_files
from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from tests import tiny

gguf = pytest.importorskip('gguf')

ARCHITECTURE = {'gemma': 'gemma', 'gemma2': 'gemma2', 'gemma3_text': 'gemma3'}
TEXTS = (
  'the  cat in her hat',
  ' leading\n\n1234',
  'Straße \u2603 <start_of_turn>user\nhi<end_of_turn>',
)


def write_gguf(folder, path, kind=None, split=0, **changes):
  """Writes a tiny Gemma folder as llama.cpp's converter does.

  Args:
    folder: of `tiny.write_gemma`.
    path: of the file.
    kind: of the matrices; f32 by default.
    split: tensors of a file, where there are several.
    **changes: of keys without their prefix; None leaves one out.
  """
  config = json.loads((folder / 'config.json').read_text())
  name = ARCHITECTURE[config['model_type']]
  known = gguf_config.ARCHITECTURES[name]
  writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
  values = {
    'block_count': config['num_hidden_layers'],
    'context_length': config['max_position_embeddings'],
    'embedding_length': config['hidden_size'],
    'feed_forward_length': config['intermediate_size'],
    'attention.head_count': config['num_attention_heads'],
    'attention.head_count_kv': config['num_key_value_heads'],
    'attention.key_length': config['head_dim'],
    'attention.layer_norm_rms_epsilon': config['rms_norm_eps'],
    'attention.sliding_window': config.get('sliding_window'),
    **changes,
  }
  for key, value in values.items():
    add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
    if value is not None:
      add(f'{name}.{key}', value)
  if 'layer_types' in config:
    slides = [t == 'sliding_attention' for t in config['layer_types']]
    writer.add_array(f'{name}.attention.sliding_window_pattern', slides)
  vocab = json.loads((folder / 'tokenizer.json').read_text())['model']['vocab']
  tokens = sorted(vocab, key=vocab.get)
  writer.add_tokenizer_model('llama')
  writer.add_token_list(tokens)
  writer.add_token_scores([-float(i) for i in range(len(tokens))])
  control = [1 if i > tiny.END_OF_TURN else 3 for i in range(len(tokens))]
  writer.add_token_types(control)
  writer.add_bos_token_id(tiny.BOS)
  writer.add_eos_token_id(tiny.EOS)
  writer.add_unk_token_id(tiny.UNK)
  writer.add_pad_token_id(tiny.PAD)
  writer.add_eot_token_id(tiny.END_OF_TURN)
  writer.add_chat_template((folder / 'chat_template.jinja').read_text())
  names = {}
  for layer in range(config['num_hidden_layers']):
    parts = gguf_config._LAYER | dict(known.norms)
    for theirs, ours in parts.items():
      stored = f'model.layers.{layer}.{ours}.weight'
      names[stored] = f'blk.{layer}.{theirs}.weight'
  names |= {v: k for k, v in gguf_config._OUTER.items()}
  for stored, tensor in load_file(folder / 'model.safetensors').items():
    tensor = tensor.astype(np.float32)
    if tensor.ndim == 1:
      tensor = tensor + np.float32(known.norm_offset)
    elif kind is not None:
      tensor = gguf.quantize(tensor, kind)
    raw = kind if tensor.ndim > 1 else None
    writer.add_tensor(names[stored], tensor, raw_dtype=raw)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture
def file(tiny_gemma_folder, tmp_path):
  return write_gguf(tiny_gemma_folder('gemma2'), tmp_path / 'tiny.gguf')


@pytest.mark.parametrize('model_type', tiny.MODEL_TYPES)
def test_reads_as_the_folder_that_it_was_made_from(
  tiny_gemma_folder, tmp_path, model_type
):
  folder = tiny_gemma_folder(model_type)
  model = hub.load_model(write_gguf(folder, tmp_path / 'tiny.gguf'))
  wanted = hub.load_model(folder)
  assert model.config == wanted.config
  # Norms have lost the last bits of what 1 was added to.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7),
    model.params,
    wanted.params,
  )
  kernel = ('layers', 'mlp', 'up_proj', 'kernel')
  for path in (kernel, ('embedder', 'embedding')):
    found, other = model.params, wanted.params
    for key in path:
      found, other = found[key], other[key]
    np.testing.assert_array_equal(found, other)
  for text in TEXTS:
    ids = model.tokenizer.encode(text)
    assert ids == wanted.tokenizer.encode(text)
    assert model.tokenizer.decode(ids) == wanted.tokenizer.decode(ids)
  assert model.tokenizer.stop_ids == wanted.tokenizer.stop_ids
  turn = [{'role': 'user', 'content': 'hi'}]
  assert model.tokenizer.encode_chat(turn) == wanted.tokenizer.encode_chat(turn)


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_0', 'Q5_1', 'F16', 'BF16'])
def test_quantised_blocks_are_those_of_gguf(tiny_gemma_folder, tmp_path, kind):
  folder = tiny_gemma_folder('gemma2', intermediate_size=64)
  kind = gguf.GGMLQuantizationType[kind]
  path = write_gguf(folder, tmp_path / 'tiny.gguf', kind)
  wanted = load_file(folder / 'model.safetensors')
  with gguf_files.GgufTensors(path) as tensors:
    for name in tensors.keys():
      if wanted[name].ndim > 1:
        other = gguf.dequantize(gguf.quantize(wanted[name], kind), kind)
        found = tensors.get_tensor(name)
        np.testing.assert_array_equal(found.astype(np.float32), other)


def test_a_split_model_is_read_and_written(tiny_gemma_folder, tmp_path):
  folder = tiny_gemma_folder('gemma2')
  write_gguf(folder, tmp_path / 'tiny.gguf', split=9)
  first, *others = sorted(tmp_path.glob('*.gguf'))
  assert others
  out = gguf_files.convert(others[0], tmp_path / 'out', max_shard_bytes=10_000)
  assert len(list(out.glob('*.safetensors'))) > 1
  assert 'Gemma Terms of Use' in (out / 'NOTICE').read_text()
  _, params = hub.load_checkpoint(out)
  jax.tree.map(
    np.testing.assert_array_equal, params, hub.load_checkpoint(first)[1]
  )
  others[-1].unlink()
  with pytest.raises(ModelError, match='not beside it'):
    hub.load_checkpoint(first)


def test_an_export_of_a_search_over_a_file_is_a_folder(file, tmp_path):
  config, params = hub.load_checkpoint(file)
  out = hub.save_checkpoint(tmp_path / 'out', params, config, like=file)
  assert folders.existing_folder(out, '') == out
  jax.tree.map(
    np.testing.assert_array_equal, params, hub.load_checkpoint(out)[1]
  )
  text = TEXTS[0]
  tokenizers = [Tokenizer.from_folder(f) for f in (file, out)]
  assert tokenizers[0].encode(text) == tokenizers[1].encode(text)


def _rewritten(path, change):
  path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda b: b'GGML' + b[4:], 'does not begin with GGUF'),
    (lambda b: b[:4] + b'\x01' + b[5:], 'version 1; expected 2 or 3'),
    (lambda b: b[:2], 'does not begin'),
    (lambda b: b[:300], 'header is damaged or ends too early'),
    (lambda b: b[:-40], 'ends within tensor .*truncated'),
    (lambda b: b.replace(b'gemma2', b'mamba2'), "is 'mamba2'; expected one of"),
    (lambda b: b.replace(b'attn_q', b'attn_x'), 'no gemma2 has: blk.0.attn_x'),
    (lambda b: b.replace(b'token_embd', b'token_embe'), 'no gemma2 has'),
    (lambda b: b.replace(b'embedding_l', b'embedding_m'), 'has no gemma2.emb'),
    (lambda b: b.replace(b'ggml.tokens', b'ggml.tokenz'), 'has no tokenizer'),
    (lambda b: b.replace(b'\0llama', b'\0llamb'),
     "tokenizer.ggml.model is 'llamb'"),
  ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(file, change, message):
  _rewritten(file, change)
  with pytest.raises(ModelError, match=message) as error:
    hub.load_model(file)
  assert str(file) in str(error.value)


def test_a_quantisation_that_nobody_reads_is_refused(file, monkeypatch):
  def dequantize(*_):
    raise NotImplementedError('Q8_K')

  monkeypatch.setattr(gguf, 'dequantize', dequantize)
  kind = gguf.GGMLQuantizationType.Q8_0
  with pytest.raises(NotImplementedError):
    gguf_files._try_block.__wrapped__(kind)


def test_rows_of_llama_are_put_back():
  config = {'num_attention_heads': 2, 'num_key_value_heads': 1}
  rows = np.arange(16.0)[:, None]
  # What the converter of llama.cpp does with (heads, halves, pairs).
  stored = rows.reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(16, 1)
  known = gguf_config.ARCHITECTURES['llama']
  name = 'model.layers.0.self_attn.q_proj.weight'
  found = gguf_config.restored(name, stored, known, config)
  np.testing.assert_array_equal(found, rows)


def test_factors_of_llama_3_are_said_by_its_parameters():
  metadata = {
    'general.architecture': 'llama',
    'llama.block_count': 1,
    'llama.context_length': 131072,
    'llama.embedding_length': 2048,
    'llama.feed_forward_length': 8192,
    'llama.attention.head_count': 32,
    'llama.attention.head_count_kv': 8,
    'llama.attention.layer_norm_rms_epsilon': np.float32(1e-5).item(),
    'llama.rope.freq_base': 500000.0,
  }
  # As convert_hf_to_gguf.py makes them, for a factor of 32.
  factors = []
  for i in range(0, 64, 2):
    frequency = 1 / 500000.0 ** (i / 64)
    wave = 2 * np.pi / frequency
    smooth = (8192 / wave - 1) / 3
    inner = 1 / ((1 - smooth) / 32 + smooth)
    factors.append(1.0 if wave < 2048 else 32.0 if wave > 8192 else inner)
  made = gguf_config.config_json(
    'x.gguf', metadata, 128256, True, np.asarray(factors, np.float32)
  )
  assert made['rope_parameters']['rope_type'] == 'llama3'
  assert made['rope_parameters']['factor'] == 32.0
  assert made['rope_scaling']['low_freq_factor'] == 1.0
  assert made['rms_norm_eps'] == 1e-5
  with pytest.raises(ModelError, match='not the factors of Llama 3'):
    gguf_config.config_json(
      'x.gguf', metadata, 128256, True, np.asarray(factors) * 2
    )


def test_without_the_package_it_says_what_to_install(file, monkeypatch):
  monkeypatch.setattr(gguf_files.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(ModelError, match=r"pip install 'evojax-llm\[gguf\]'"):
    gguf_files.GgufTensors(file)


def test_the_configuration_says_which_transformers_it_is_for(file):
  # Without it, 5.17 warns of every tokenizer above 100,000 tokens.
  folder = gguf_files.folder_of(file)
  written = json.loads((folder / 'config.json').read_text())
  assert written['transformers_version'] == metadata.version('transformers')


def test_a_changed_file_is_read_again(tiny_gemma_folder, file, tmp_path):
  before = folders.existing_folder(file, '')
  assert folders.existing_folder(file, '') == before
  other = write_gguf(tiny_gemma_folder('gemma'), tmp_path / 'other.gguf')
  shutil.move(other, file)
  assert hub.load_config(file)[0].model_type == 'gemma'
